"""What the roles and the driver tell each other; plain frozen data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.basket.trust import FIRST_TRUST
from scarcity_ray.buffer import Receipt
from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.plan import BasketFacts
from scarcity_ray.privacy.noise import NoiseSource


@dataclass(frozen=True, eq=False)
class Member:
    """A client as its basket knows it.

    Attributes:
        client_id: Who.
        domain_id: Its domain.
        public_key: Ed25519 public bytes, if its updates must be signed.
        features: What it said of itself for grouping.
        trust: What the directory was last told of it, or the basket knows, whoever sends this.
        num_examples: Examples that it said are behind its updates, when it registered; None: it did not say.
    """

    client_id: str
    domain_id: str
    public_key: bytes | None = None
    features: NDArray[np.float64] | None = None
    trust: float = FIRST_TRUST
    num_examples: int | None = None


@dataclass(frozen=True)
class BasketPlace:
    """Where a basket lives.

    Attributes:
        basket_id: The basket.
        domain_id: Its domain.
        slot: Number of the basket actor that holds it.
        identity: Ed25519 public bytes of the basket's key, once its actor has made one.
        members: Its clients, sorted.
    """

    basket_id: str
    domain_id: str
    slot: int
    identity: bytes = b""
    members: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Admission:
    """New members for one basket, which is opened if its actor does not have it yet."""

    place: BasketPlace
    members: tuple[Member, ...] = ()


@dataclass(frozen=True)
class Return:
    """A client that left one basket and came back to another.

    What it released and sent must follow it, and a fresh aggregate there that holds it must not be released
    beside its new one.
    """

    client_id: str
    source: BasketPlace
    target: BasketPlace


@dataclass(frozen=True, eq=False)
class Registration:
    """What follows from registering clients.

    Attributes:
        baskets: Basket of each client, in the order asked.
        admissions: What the basket actors must be told.
        returned: Clients that were in another basket before.
    """

    baskets: tuple[str, ...]
    admissions: tuple[Admission, ...] = ()
    returned: tuple[Return, ...] = ()


@dataclass(frozen=True, eq=False)
class Rehousing:
    """What follows from a split or a disband.

    Attributes:
        closed: Basket that is no longer live.
        admissions: Its clients' new baskets, each with those that move there.
    """

    closed: BasketPlace
    admissions: tuple[Admission, ...]


@dataclass(frozen=True)
class ClientActivity:
    """What a basket saw of a client since it last reported.

    Attributes:
        accepted: Updates that were accepted.
        seen: Seconds since the epoch when the last of them came.
        trust: Trust as it stands now.
    """

    accepted: int
    seen: float
    trust: float


@dataclass(frozen=True)
class ActivityReport:
    """What a basket actor saw since it last reported; updates never pass the directory, counts do.

    Attributes:
        clients: What it saw of each client of which there is news.
        baskets: Basket id to time last active.
    """

    clients: dict[str, ClientActivity] = field(default_factory=dict)
    baskets: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FederationIdentity:
    """What stays the same for a federation's whole life; a second driver reads it from the directory.

    Attributes:
        federation_id: Unique.
        config: Its settings.
        ledger_path: The ledger's file on `ledger_node`, or its database's URL.
        ledger_node: The node that the accountant must run on; None: any, for the ledger is in a database.
        noise: Where privacy noise comes from.
        run: Random, of the federation as it was begun: clients sign for it, so that a signature of an earlier
            run on the same ledger is worth nothing.
    """

    federation_id: str
    config: HierarchicalFederationConfig
    ledger_path: str
    ledger_node: str | None
    noise: NoiseSource
    run: int = 0


@dataclass(frozen=True)
class Whereabouts:
    """Round, live baskets and basket actors at one moment."""

    round_id: int
    places: tuple[BasketPlace, ...]
    num_slots: int


@dataclass(frozen=True, eq=False)
class SubmissionResult:
    """A basket actor's answer to a batch of updates.

    Attributes:
        receipts: One an update, in order.
        due: Baskets whose Layer 1 is due.
    """

    receipts: tuple[Receipt, ...]
    due: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClippingReport:
    """How long the rows behind an aggregate were. It is made of private values: see `basket.trust`.

    Attributes:
        num_rows: Rows whose length is known.
        num_clipped: Those that were longer than the clip norm.
        median_norm: Of all of them, before they were clipped and gossip moved them.
        clip_norm: To which they were clipped.
    """

    num_rows: int
    num_clipped: int
    median_norm: float
    clip_norm: float


@dataclass(frozen=True)
class Layer1Outcome:
    """What Layer 1 did in one basket.

    Attributes:
        basket_id: The basket.
        aggregated: Whether there is a new basket model.
        reason: What triggered it, or why it waits.
        num_rows: Clients with buffered updates.
        least_rows: Clients that the rule needs.
        clipping: How long their rows were; None where basket models are private.
    """

    basket_id: str
    aggregated: bool
    reason: str
    num_rows: int
    least_rows: int
    clipping: ClippingReport | None = None


@dataclass(frozen=True, eq=False)
class Layer2Outcome:
    """What Layer 2 did.

    Attributes:
        model: The new global model, if there is one.
        reason: What triggered it, or why there is none.
        read_only: Whether the budget is spent.
        lost_roles: Basket actors that did not answer.
        dropped: Baskets that took part and dropped out.
        aborted: Whether a session ended without a release.
    """

    model: GlobalMetaModel | None
    reason: str
    read_only: bool = False
    lost_roles: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    aborted: bool = False


@dataclass(frozen=True)
class ConductReport:
    """How a basket's members stand to its aggregates. It is made of private values: see `basket.trust`.

    Attributes:
        mean_trust: Of its members.
        least_trust: Likewise.
        outliers: Clients that did not agree with the latest aggregate at all, sorted.
        clipping: How long the rows behind the latest aggregate were; None before the first.
    """

    mean_trust: float
    least_trust: float
    outliers: tuple[str, ...]
    clipping: ClippingReport | None = None


@dataclass(frozen=True, eq=False)
class BasketReport:
    """A basket's state for statistics and for Layer 2's trigger; nothing in it depends on private values."""

    facts: BasketFacts
    num_buffered: int
    least_rows: int
    rejections: dict[str, int] = field(default_factory=dict)
    withdrawn: int = 0
    layer1_aggregations: int = 0
    superseded: int = 0
    discarded: int = 0
    messages_delivered: int = 0
    sessions_refused: int = 0
    gossip: dict[str, Any] = field(default_factory=dict)

    def closed(self, facts: BasketFacts, earlier: BasketReport | None) -> BasketReport:
        """What stays of it in the counts after its basket has closed, added to those that closed before."""
        past = earlier or BasketReport(facts, 0, 0)
        return BasketReport(
            facts=facts,
            num_buffered=0,
            least_rows=0,
            rejections=dict(Counter(past.rejections) + Counter(self.rejections)),
            withdrawn=past.withdrawn + self.withdrawn,
            layer1_aggregations=past.layer1_aggregations + self.layer1_aggregations,
            superseded=past.superseded + self.superseded,
            discarded=past.discarded + self.discarded,
            messages_delivered=past.messages_delivered + self.messages_delivered,
            sessions_refused=past.sessions_refused + self.sessions_refused,
        )
