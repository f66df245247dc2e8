"""What a basket tells of itself: its members, what it counted, and how an aggregation ended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.directory.records import FIRST_TRUST
from scarcity_ray.plan import BasketFacts

NAMED = 10
"""Absent clients of a basket that its backlog names; the others are counted."""


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """A client as its basket knows it.

    Attributes:
        public_key: Ed25519 public bytes, if its updates must be signed.
        features: What it said of itself for grouping.
        trust: What the directory was last told of it, or the basket knows, whoever sends this.
        num_examples: Examples that it said are behind its updates, when it registered; None: it did not say.
        memory: What is remembered of it from before it last left, if it did.
    """

    client_id: str
    domain_id: str
    public_key: bytes | None = None
    features: NDArray[np.float64] | None = None
    trust: float = FIRST_TRUST
    num_examples: int | None = None
    memory: ClientMemory | None = None


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


@dataclass(frozen=True)
class ClippingReport:
    """How long the rows behind an aggregate were. It is made of private values: see `baskets.reputation`.

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


@dataclass(frozen=True)
class ReputationReport:
    """How a basket's members stand to its aggregates. It is made of private values: see `baskets.reputation`.

    Attributes:
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


@dataclass(frozen=True)
class Backlog:
    """What a basket has, as its actor tells it; nothing in it depends on private values.

    Attributes:
        num_senders: Members with buffered updates.
        absent: Up to `NAMED` of the others, sorted.
        staleness: Rounds that the oldest buffered update lies back.
        seconds: Since its last aggregation, or since its first update if there was none.
        fresh: Whether it has an aggregate that is in no release yet.
    """

    basket_id: str
    domain_id: str
    num_members: int
    num_senders: int
    absent: tuple[str, ...]
    staleness: int
    seconds: float
    fresh: bool


@dataclass(frozen=True)
class Registered:
    """Who the next release counts as registered; asked without beginning an epoch.

    Attributes:
        number: Baskets on its roster: all live ones, or with an operator's key those that are signed for.
        known: Those live ones that may take part.
        num_unsigned: Those of the known that are not signed for, and count as corrupt.
        has_roster: Whether there is a roster to release under, or will be without anybody's signature.
    """

    number: int
    known: frozenset[str]
    num_unsigned: int = 0
    has_roster: bool = True
