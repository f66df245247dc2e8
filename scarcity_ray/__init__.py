"""Federated learning on Ray among parties that do not trust each other.

Clients of a domain form a basket; inside it they gossip under local differential privacy. Layer 1 aggregates
each basket by a Byzantine-robust rule; Layer 2 sums the baskets' aggregates by secure aggregation, adds
central noise, and charges a privacy budget that is spent once and never forgotten.

Importing this package imports no Ray.
"""

from scarcity_ray.baskets import BufferedUpdate, Receipt, Rejection, ReplayGuard, UpdateBuffer
from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    BufferConfig,
    GossipConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
    RuntimeConfig,
)
from scarcity_ray.directory import BasketInfo, BasketManager, BasketStatus, ClientInfo
from scarcity_ray.errors import (
    ActorLost,
    ClippingWarning,
    ConfigError,
    ConfigFileError,
    FaultWarning,
    LedgerCorrupted,
    LedgerError,
    LedgerHeld,
    LedgerMissing,
    LedgerRolledBack,
    LedgerTakenOver,
    LedgerWarning,
    MessageRefused,
    NoiseWarning,
    PrivacyBudgetExhausted,
    PrivacyWarning,
    ProtocolViolation,
    RuleFailed,
    ScarcityError,
    ScarcityWarning,
    SecureAggregationAborted,
    StorageError,
    TooFewUpdates,
    UsageError,
)
from scarcity_ray.federation.evaluation import EarlyStopping
from scarcity_ray.federation.fit_terms import FitResult, RoundRecord
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.federation.waiting import Missing, WaitingFor
from scarcity_ray.gossip import GossipMessage, GossipProtocol, MaterialityDetector, PeerSampler
from scarcity_ray.layers import (
    BasketModel,
    GlobalMetaModel,
    Layer1Aggregator,
    Layer2Aggregator,
    TriggerEngine,
)
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.mechanisms import CentralDPMechanism, LocalDPMechanism
from scarcity_ray.release import __version__
from scarcity_ray.robust import AggregationRule, aggregate, detect_outliers
from scarcity_ray.secagg import IdentityKeyPair
from scarcity_ray.updates import SigningScope, UpdateStatement, sign_update, update_message

__all__ = [
    "ActorLost",
    "AggregationMethod",
    "AggregationRule",
    "BasketConfig",
    "BasketInfo",
    "BasketManager",
    "BasketModel",
    "BasketStatus",
    "BufferConfig",
    "BufferedUpdate",
    "CentralDPMechanism",
    "ClientInfo",
    "ClippingWarning",
    "ConfigError",
    "ConfigFileError",
    "EarlyStopping",
    "FaultWarning",
    "FederationPlan",
    "FitResult",
    "GlobalMetaModel",
    "GossipConfig",
    "GossipMessage",
    "GossipProtocol",
    "HierarchicalFederation",
    "HierarchicalFederationConfig",
    "IdentityKeyPair",
    "Layer1Aggregator",
    "Layer1Config",
    "Layer2Aggregator",
    "Layer2Config",
    "LedgerCorrupted",
    "LedgerError",
    "LedgerHeld",
    "LedgerMissing",
    "LedgerRolledBack",
    "LedgerTakenOver",
    "LedgerWarning",
    "LocalDPMechanism",
    "MaterialityDetector",
    "MessageRefused",
    "Missing",
    "NoiseWarning",
    "PeerSampler",
    "PrivacyAccountant",
    "PrivacyBudgetExhausted",
    "PrivacyWarning",
    "ProtocolViolation",
    "Receipt",
    "Rejection",
    "ReplayGuard",
    "RoundRecord",
    "RuleFailed",
    "RuntimeConfig",
    "ScarcityError",
    "ScarcityWarning",
    "SecureAggregationAborted",
    "SigningScope",
    "StorageError",
    "TooFewUpdates",
    "TriggerEngine",
    "UpdateBuffer",
    "UpdateStatement",
    "UsageError",
    "WaitingFor",
    "__version__",
    "aggregate",
    "detect_outliers",
    "make_plan",
    "sign_update",
    "update_message",
]
