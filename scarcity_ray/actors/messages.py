"""Messages between the directory, the basket actors and drivers about baskets and clients; frozen data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.reports import Member
from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.secagg import Endorsement, IdentityKeyPair, Roster
from scarcity_ray.secagg.transcript import encode

T = TypeVar("T")


@dataclass(frozen=True)
class BasketPlace:
    """A basket and the actor that holds it.

    Attributes:
        slot: Number of the basket actor.
        identity: Ed25519 public bytes of the basket's key, once its actor has made one.
    """

    basket_id: str
    domain_id: str
    slot: int
    identity: bytes = b""

    def holding(self) -> bytes:
        """The bytes that the basket signs to prove that this actor holds it."""
        return encode("basket lives here", self.basket_id, self.slot)


@dataclass(frozen=True, eq=False)
class Admission:
    """New members for one basket, which is opened if its actor does not have it yet."""

    place: BasketPlace
    members: tuple[Member, ...] = ()


class OperationKind(StrEnum):
    """Operations of several calls."""

    REGISTER = "register"
    UNREGISTER = "unregister"
    SPLIT = "split"
    DISBAND = "disband"
    ADVANCE_ROUND = "advance_round"
    RECOVER = "recover"


@dataclass(frozen=True, eq=False)
class Order:
    """An operation as basket actors are told of it, in each call that belongs to it.

    An actor keeps the last one, which is enough for a restarted directory to finish a migration.

    Attributes:
        number: An actor refuses calls with a lower number than it knows: their operation is over.
        operation_id: Stays the same when a restarted directory begins the operation again.
        closing: In a split or disband, the basket that its clients leave.
        homes: Their new baskets, by client.
        round_id: The new round, if the operation begins one.
        done: Ids of the last operations before it, so that a restarted directory can answer the drivers that
            finished them.
    """

    number: OrderNumber
    operation_id: str
    kind: OperationKind
    closing: BasketPlace | None = None
    homes: Mapping[str, BasketPlace] = field(default_factory=dict)
    round_id: int | None = None
    done: tuple[str, ...] = ()


@dataclass(frozen=True)
class Overtaken:
    """A basket actor's refusal of a call of an operation that is over; `number` is the lowest it obeys."""

    number: OrderNumber


@dataclass(frozen=True, eq=False)
class Operation:
    """A change to the federation that the directory has decided, as the steps that a driver has to do.

    The directory begins one at a time. It tells every driver of an unfinished one, and the driver finishes it
    first. The steps are done in the order of the attributes; each may be repeated, by several drivers at
    once.

    Attributes:
        order: What the basket actors are told of it.
        admissions: Clients to add to baskets; new baskets are opened.
        leavers: Clients that leave the federation, each with its basket.
        closed: Baskets to close, once their clients have moved.
        num_slots: Number of basket actors, all of which are told of a new round.
    """

    order: Order
    admissions: tuple[Admission, ...] = ()
    leavers: tuple[tuple[BasketPlace, str], ...] = ()
    closed: tuple[BasketPlace, ...] = ()
    num_slots: int = 0


@dataclass(frozen=True, eq=False)
class Begun(Generic[T]):
    """The directory's answer to a request for an operation.

    Attributes:
        operation: What to do now; None if there is nothing to do.
        is_asked_for: Whether that is what was asked for; else an earlier one is pending and must be done
            first.
        answer: The caller's answer once it is done; None if `is_asked_for` is False.
    """

    operation: Operation | None
    is_asked_for: bool = True
    answer: T | None = None


@dataclass(frozen=True, eq=False)
class Closing:
    """The directory's answer when a driver reports that an operation's steps are done, or were overtaken.

    Attributes:
        stands: Whether it is done; if not, it is void: a restarted directory does not know it.
        again: The same operation, begun again by a restarted directory.
    """

    stands: bool
    again: Operation | None = None


@dataclass(frozen=True)
class Fault:
    """A role's death: what was lost and what to do, in a sentence; all drivers note it under the same id.

    Attributes:
        baskets: Those that have lost all updates that they had; each driver names its own.
        clients: Who was in them, or on the way out of one of them.
        survivors: Where who was in which basket is lost too: the only baskets that are left.
    """

    fault_id: str
    loss: str
    baskets: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    survivors: tuple[str, ...] | None = None


@dataclass(frozen=True)
class News:
    """The pending operation and the last fault, which the directory adds to its other answers.

    The driver finishes the operation first, and asks for the faults if it does not know the last one.
    """

    pending: Operation | None = None
    last_fault: str | None = None


@dataclass(frozen=True, eq=False)
class SlotState:
    """What the directory knows of one basket actor, for its successor.

    Attributes:
        number: The lowest order that it must obey.
        order: Of the pending operation, whose effects the other fields include.
        baskets: Ids of its baskets, with one that is being closed.
        keys: Their known identity keys; none before the actor's first start.
        placed_domain: The domain whose baskets alone it holds, if ``runtime.placement`` names one.
        faults: All that are known; the actor keeps them for a restarted directory.
    """

    admissions: tuple[Admission, ...]
    memories: tuple[ClientMemory, ...]
    number: OrderNumber
    order: Order | None = None
    baskets: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()
    placed_domain: str | None = None
    faults: tuple[Fault, ...] = ()

    @property
    def clients(self) -> tuple[str, ...]:
        """Its clients, with those on their way out of a basket that is closing; some may have arrived."""
        there = {member.client_id for admission in self.admissions for member in admission.members}
        closing = None if self.order is None else self.order.closing
        if self.order is not None and closing is not None and closing.basket_id in self.baskets:
            there |= self.order.homes.keys()
        return tuple(sorted(there))


@dataclass(frozen=True, eq=False)
class FederationIdentity:
    """What stays the same while a federation runs; it is the card that other drivers find.

    Attributes:
        federation_id: Random, made with the ledger and kept in it; empty until that is open.
        ledger_path: The ledger's file on `ledger_node`, or its database's URL.
        ledger_node: The node that the accountant must run on; None: any, since the ledger is in a database.
        name: The federation's name, if it has one.
        incarnation: How often a federation was opened on the ledger, with this time; 0 until it is open.
        run: This opening's random number, which clients sign their updates for; 0 until it is open.
        private_ledger: Whether the ledger's folder must be this user's alone.
        first_head: The ledger's head as this federation began: what was charged before is another's.
        actors_key: Shared by drivers and basket actors; it authenticates actors to each other
            (`actors.migration`).
    """

    federation_id: str
    config: HierarchicalFederationConfig
    ledger_path: str
    ledger_node: str | None
    noise: NoiseSource
    name: str | None = None
    incarnation: int = 0
    run: int = 0
    private_ledger: bool = False
    first_head: str = ""
    actors_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)


@dataclass(frozen=True)
class RoutingTable:
    """Round, live baskets and basket actors at one moment.

    Attributes:
        version: Changes with each of the fields above, and when the directory is restarted.
        news: Is no part of the version.
    """

    round_id: int
    places: tuple[BasketPlace, ...]
    num_slots: int
    version: str = field(default="", compare=False)
    news: News = field(default_factory=News, compare=False)


@dataclass(frozen=True, eq=False)
class Located:
    """Basket and slot of each registered client, by id."""

    routes: dict[str, tuple[str, int]]
    news: News


@dataclass(frozen=True)
class Registry:
    """The registered baskets, as the directory tells a driver.

    Attributes:
        rosters: The epochs asked for, the newest last; none before the first.
        endorsements: Of baskets that are not on a signed roster yet.
        known: Identity keys of all baskets that may take part.
        draft: With an operator's key, the next epoch, if it waits for a signature.
        life: Of the directory (`OrderNumber`); a basket actor follows no roster of an earlier life.
    """

    rosters: tuple[Roster, ...]
    endorsements: tuple[Endorsement, ...] = ()
    known: dict[str, bytes] = field(default_factory=dict)
    draft: Roster | None = None
    life: int = 0

    @property
    def newest(self) -> Roster | None:
        """The newest roster."""
        return self.rosters[-1] if self.rosters else None


def closed(basket_id: str) -> bytes:
    """The bytes that a basket signs as it closes."""
    return encode("basket closed", basket_id)


def has_closed(basket_id: str, key: bytes, signatures: Mapping[str, bytes]) -> bool:
    """Whether a basket of this key has signed that it closed."""
    return IdentityKeyPair.verify_with(key, closed(basket_id), signatures.get(basket_id, b""))


def operator_key_of(config: HierarchicalFederationConfig) -> bytes | None:
    """The key that rosters must be signed with; None where they need no signature."""
    return None if config.operator_key is None else bytes.fromhex(config.operator_key)
