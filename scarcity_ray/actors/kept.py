"""What the roles keep in snapshots, and the classes that these may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scarcity_ray.actors.messages import Fault
from scarcity_ray.baskets.basket import ClientMigration
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.kept import BasketState
from scarcity_ray.baskets.reports import ClippingReport
from scarcity_ray.baskets.reputation import Reputation
from scarcity_ray.baskets.update_buffer import ClientUpdates, ReplayKey
from scarcity_ray.directory.manager import ManagerState
from scarcity_ray.directory.records import ClientInfo, Departure, Move, OrderNumber
from scarcity_ray.directory.roster import Basket, RosterState
from scarcity_ray.gossip import GossipMessage, GossipMigration, GossipState
from scarcity_ray.gossip.protocol import ProtocolState
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel, Placing
from scarcity_ray.secagg import Endorsement, Party, Roster
from scarcity_ray.storage.codec import Codec
from scarcity_ray_client import NoisedMean

RELEASES_KEPT = 8
"""Last releases that are kept."""


@dataclass(frozen=True, eq=False)
class DirectoryState:
    """A directory's memory; see its attributes."""

    round_id: int
    manager: ManagerState
    slots: Mapping[str, int]
    num_slots: int
    identities: Mapping[str, bytes]
    dead: Mapping[str, bytes]
    keys: Mapping[str, bytes | None]
    examples: Mapping[str, int]
    unknown: int
    number: OrderNumber
    memories: tuple[ClientMemory, ...]
    faults: tuple[Fault, ...]
    rosters: tuple[Roster, ...]
    endorsements: tuple[Endorsement, ...]


@dataclass(frozen=True, eq=False)
class HostSnapshot:
    """What a basket actor keeps of its baskets, by id, as they were at a round's end."""

    baskets: Mapping[str, BasketState]


@dataclass(frozen=True, eq=False)
class GossipRun:
    """The last gossip run of a basket actor.

    Attributes:
        name: The caller's; empty if it has none.
        delivered: Messages by basket.
        after: Gossip of each basket after it.
    """

    name: str = ""
    delivered: Mapping[str, int] = field(default_factory=dict)
    after: Mapping[str, ProtocolState] = field(default_factory=dict)


CODEC = Codec(
    Basket, BasketModel, BasketState, ClientInfo, ClientMemory, ClientMigration, ClientUpdates,
    ClippingReport, Departure, DirectoryState, Endorsement, Fault, GlobalMetaModel, GossipMessage,
    GossipMigration, GossipRun, GossipState, HostSnapshot, ManagerState, Move, NoisedMean, OrderNumber,
    Party, Placing, ProtocolState, ReplayKey, Reputation, Roster, RosterState,
)  # fmt: skip
