"""The client's half of scarcity_ray: train your own model on your own data, without Ray.

Derive from `Workload`; `ModelCodec` turns the model into the one float32 vector that is aggregated, and back.
PyTorch and scikit-learn are used where a model is of theirs, and are not imported otherwise.
`FederationClient` takes part in a federation that is served over HTTPS; its modules are imported when it is
asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from scarcity_ray_client.errors import (
    MessageRefused,
    ModelRefused,
    ModelWarning,
    ScarcityError,
    ScarcityWarning,
    SiteLedgerRefused,
    TooFewPersons,
    UsageError,
)
from scarcity_ray_client.identity import IdentityKeyPair
from scarcity_ray_client.loading import load_workload
from scarcity_ray_client.models import ModelCodec, Part, export_model, initialised, load_model, save_model
from scarcity_ray_client.persons import (
    LinearModel,
    PersonMean,
    RecordGradients,
    SoftmaxModel,
    TanhMlp,
    local_steps,
    person_gradient,
    person_mean,
    standardise,
)
from scarcity_ray_client.policy import Policy, SignedPolicy
from scarcity_ray_client.private_evaluation import NoisedMean, PrivateEvaluation, PrivateMetric
from scarcity_ray_client.proximal import proximal_gradient
from scarcity_ray_client.site_ledger import SiteLedger, SiteLedgers
from scarcity_ray_client.site_noise import SiteNoise, noised_row
from scarcity_ray_client.training import (
    Cause,
    Noising,
    Outbox,
    Refusal,
    Update,
    evaluate_client,
    train_client,
    train_clients,
)
from scarcity_ray_client.updates import SigningScope, UpdateStatement, sign_update, update_message
from scarcity_ray_client.workload import Client, Trained, Workload, checked_clients, checked_metrics

if TYPE_CHECKING:
    from scarcity_ray_client.connection import GatewayRefused, GatewayUnreachable
    from scarcity_ray_client.federation_client import FederationClient
    from scarcity_ray_client.site_file import SiteFile, load_site_file
    from scarcity_ray_client.site_home import SiteHome

_OVER_HTTPS = {
    "FederationClient": "federation_client",
    "GatewayRefused": "connection",
    "GatewayUnreachable": "connection",
    "SiteFile": "site_file",
    "SiteHome": "site_home",
    "load_site_file": "site_file",
}

__all__ = [
    "Cause",
    "Client",
    "FederationClient",
    "GatewayRefused",
    "GatewayUnreachable",
    "IdentityKeyPair",
    "LinearModel",
    "MessageRefused",
    "ModelCodec",
    "ModelRefused",
    "ModelWarning",
    "NoisedMean",
    "Noising",
    "Outbox",
    "Part",
    "PersonMean",
    "Policy",
    "PrivateEvaluation",
    "PrivateMetric",
    "RecordGradients",
    "Refusal",
    "ScarcityError",
    "ScarcityWarning",
    "SignedPolicy",
    "SigningScope",
    "SiteFile",
    "SiteHome",
    "SiteLedger",
    "SiteLedgerRefused",
    "SiteLedgers",
    "SiteNoise",
    "SoftmaxModel",
    "TanhMlp",
    "TooFewPersons",
    "Trained",
    "Update",
    "UpdateStatement",
    "UsageError",
    "Workload",
    "checked_clients",
    "checked_metrics",
    "evaluate_client",
    "export_model",
    "initialised",
    "load_model",
    "load_site_file",
    "load_workload",
    "local_steps",
    "noised_row",
    "person_gradient",
    "person_mean",
    "proximal_gradient",
    "save_model",
    "sign_update",
    "standardise",
    "train_client",
    "train_clients",
    "update_message",
]


def __getattr__(name: str) -> object:
    if name not in _OVER_HTTPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"scarcity_ray_client.{_OVER_HTTPS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OVER_HTTPS})
