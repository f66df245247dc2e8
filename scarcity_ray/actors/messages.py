"""What the directory, the basket actors and drivers tell each other of who is where; plain frozen data."""

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
    """Where a basket lives.

    Attributes:
        slot: Number of the basket actor that holds it.
        identity: Ed25519 public bytes of the basket's key, once its actor has made one.
    """

    basket_id: str
    domain_id: str
    slot: int
    identity: bytes = b""

    def holding(self) -> bytes:
        """What the basket signs to show that it lives here."""
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
    """What a basket actor is told of the operation that a call belongs to, and keeps of the last one.

    It is enough to finish a migration when the directory has died that began it.

    Attributes:
        number: Calls of a lower number than the actor has heard of are refused: their operation is over.
        operation_id: Stays the same when a directory that came back begins the operation again.
        closing: The basket that its clients leave, where it is a split or a disband.
        homes: Their new baskets, by client.
        round_id: The new round, where it is one.
        done: Ids of the operations before it that were last done, so that a directory that comes back can
            tell a slow driver that what it asked for is done.
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
    """A basket actor's answer to a call of an operation that is over: the lowest that it still obeys."""

    number: OrderNumber


@dataclass(frozen=True, eq=False)
class Operation:
    """An operation on the federation that the directory has decided and the basket actors must follow.

    The directory begins one at a time. Every driver that asks it anything is told of one that is not
    finished, and finishes it first. Its steps are done in the order of the attributes; each may be done any
    number of times, by any number of drivers at once.

    Attributes:
        order: What the basket actors are told of it.
        admissions: Clients that come into baskets, which are opened where they are new.
        leavers: Clients that leave a basket for good, each with that basket.
        closed: Baskets that end; the one that the order names, once its clients have moved.
        num_slots: Basket actors that there must be, all of which are told of a new round.
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
        is_asked_for: Whether that is what was asked for; else it was pending, and comes first.
        answer: What the caller is told once it is done; None before another.
    """

    operation: Operation | None
    is_asked_for: bool = True
    answer: T | None = None


@dataclass(frozen=True, eq=False)
class Closing:
    """The directory's answer to the word that an operation's steps are done, or were overtaken.

    Attributes:
        stands: Whether it is done; if not, nobody who lives knows that it was begun.
        again: The same operation, begun again by a directory that came back.
    """

    stands: bool
    again: Operation | None = None


@dataclass(frozen=True)
class Fault:
    """A death, under one id whoever notes it: what was lost with the role, and what to do, in a sentence."""

    fault_id: str
    loss: str


@dataclass(frozen=True)
class News:
    """What every driver is told when it asks the directory for something else.

    It finishes what is pending first, and asks for the faults if it has not heard of the last.
    """

    pending: Operation | None = None
    last_fault: str | None = None


@dataclass(frozen=True, eq=False)
class SlotState:
    """What the directory knows of one basket actor, for one that starts in its place.

    Attributes:
        number: The lowest order that it must obey.
        order: Of the operation that is pending, whose effects are in the rest.
        baskets: What it had, one that is being closed included.
        keys: Identity keys of those of them that are known: none before it was first started.
    """

    admissions: tuple[Admission, ...]
    memories: tuple[ClientMemory, ...]
    number: OrderNumber
    order: Order | None = None
    baskets: tuple[str, ...] = ()
    keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, eq=False)
class FederationIdentity:
    """What stays the same for a federation's whole life; a second driver reads it from the directory.

    Attributes:
        federation_id: Random, made with the ledger and kept in it; empty until that is open.
        ledger_path: The ledger's file on `ledger_node`, or its database's URL.
        ledger_node: The node that the accountant must run on; None: any, for the ledger is in a database.
        name: What people call it, if they do.
        incarnation: How often a federation was opened on the ledger, this time included; 0 until it is.
        run: That opening's random number, which clients sign their updates for; 0 until it is open.
        private_ledger: Whether the ledger's folder must be this user's alone.
        actors_key: Held by drivers and basket actors alone: what tells an actor another one
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
    actors_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)


@dataclass(frozen=True)
class RoutingTable:
    """Round, live baskets and basket actors at one moment, and what else a driver should know.

    Attributes:
        version: Another one whenever anything above has changed, or the directory was made anew.
        news: What else the driver should know, which has no part in the version.
    """

    round_id: int
    places: tuple[BasketPlace, ...]
    num_slots: int
    version: str = field(default="", compare=False)
    news: News = field(default_factory=News, compare=False)


@dataclass(frozen=True, eq=False)
class Located:
    """Basket and slot of each client that is registered, and what else the driver should know."""

    routes: dict[str, tuple[str, int]]
    news: News


@dataclass(frozen=True)
class Registry:
    """Who is registered, as the directory tells a driver.

    Attributes:
        rosters: The epochs asked for, the newest last; none before the first.
        endorsements: Of baskets that are not signed for yet.
        known: Identity keys of all who may take part.
        draft: With an operator's key, the next epoch, which waits for its signature.
        life: Of the directory (`OrderNumber`): a basket actor follows no roster of an earlier one.
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
    """What a basket signs as it closes."""
    return encode("basket closed", basket_id)


def has_closed(basket_id: str, key: bytes, signatures: Mapping[str, bytes]) -> bool:
    """Whether a basket of this key has signed that it closed."""
    return IdentityKeyPair.verify_with(key, closed(basket_id), signatures.get(basket_id, b""))


def operator_key_of(config: HierarchicalFederationConfig) -> bytes | None:
    """The key that rosters must be signed with; None where they need no signature."""
    return None if config.operator_key is None else bytes.fromhex(config.operator_key)
