"""What the roles keep in snapshots, and the classes that these may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from scarcity_ray.actors.messages import Admission, BasketPlace, Fault, Operation, OperationKind, Order
from scarcity_ray.baskets.basket import ClientMigration
from scarcity_ray.baskets.client_memory import ClientMemories, ClientMemory
from scarcity_ray.baskets.kept import BasketState
from scarcity_ray.baskets.reports import ClippingReport, Member
from scarcity_ray.baskets.reputation import Reputation
from scarcity_ray.baskets.update_buffer import ClientUpdates, ReplayKey
from scarcity_ray.directory.manager import ManagerChange, ManagerState, changed
from scarcity_ray.directory.records import ClientInfo, Departure, Move, OrderNumber
from scarcity_ray.directory.roster import Basket, RosterState
from scarcity_ray.gossip import GossipMessage, GossipMigration, GossipState
from scarcity_ray.gossip.protocol import ProtocolState
from scarcity_ray.layers.models import BasketModel, GlobalMetaModel, Placing
from scarcity_ray.secagg import Endorsement, Party, Roster
from scarcity_ray.storage.codec import Codec
from scarcity_ray_client import NoisedMean
from scarcity_ray_client.receipts import CountedRoot


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
    pending: Operation | None = None


@dataclass(frozen=True, eq=False)
class DirectoryChange:
    """What has changed of a `DirectoryState` as clients came and left; see there.

    Attributes:
        keys: Of the changed clients that are there, as `examples`.
        slots: Of the changed baskets, as `identities`.
        memories: Of the changed clients.
    """

    manager: ManagerChange
    slots: Mapping[str, int]
    num_slots: int
    identities: Mapping[str, bytes]
    keys: Mapping[str, bytes | None]
    examples: Mapping[str, int]
    unknown: int
    number: OrderNumber
    memories: tuple[ClientMemory, ...]
    pending: Operation | None


def directory_after(state: DirectoryState, changes: Sequence[DirectoryChange]) -> DirectoryState:
    """A directory's memory after the changes, oldest first."""
    if not changes:
        return state
    slots, identities = dict(state.slots), dict(state.identities)
    keys, examples = dict(state.keys), dict(state.examples)
    memories = {memory.client_id: memory for memory in state.memories}
    for change in changes:
        remembered = {memory.client_id: memory for memory in change.memories}
        for client_id in (*(client.client_id for client in change.manager.clients), *change.manager.gone):
            if client_id not in change.keys:
                keys.pop(client_id, None)
            if client_id not in change.examples:
                examples.pop(client_id, None)
            if client_id not in remembered:
                memories.pop(client_id, None)
        slots |= change.slots
        identities |= change.identities
        keys |= change.keys
        examples |= change.examples
        memories |= remembered
    last = changes[-1]
    return replace(
        state,
        manager=changed(state.manager, [change.manager for change in changes]),
        slots=slots,
        num_slots=last.num_slots,
        identities=identities,
        keys=keys,
        examples=examples,
        unknown=last.unknown,
        number=last.number,
        memories=ClientMemories(memories.values()).all(),
        pending=last.pending,
    )


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
    Admission, Basket, BasketModel, BasketPlace, BasketState, ClientInfo, ClientMemory, ClientMigration,
    ClientUpdates, ClippingReport, CountedRoot, Departure, DirectoryChange, DirectoryState, Endorsement,
    Fault, GlobalMetaModel, GossipMessage, GossipMigration, GossipRun, GossipState, HostSnapshot,
    ManagerChange, ManagerState, Member, Move, NoisedMean, Operation, OperationKind, Order, OrderNumber,
    Party, Placing, ProtocolState, ReplayKey, Reputation, Roster, RosterState,
)  # fmt: skip
