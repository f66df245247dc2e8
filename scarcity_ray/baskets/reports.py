"""What a basket reports: its members, its counts, and how an aggregation ended."""

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
"""Absent clients that a basket's backlog names; the others are counted."""


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """A client as its basket knows it.

    Attributes:
        public_key: Ed25519 public bytes, if its updates must be signed.
        features: Its fingerprint for splits, if it gave one.
        trust: In [0, 1], as the sender of this record knows it.
        num_examples: Training examples behind its updates, as it stated when it registered; None if it did
            not.
        memory: What is remembered of it from before it last left, if it did.
    """

    client_id: str
    domain_id: str
    public_key: bytes | None = None
    features: NDArray[np.float64] | None = None
    trust: float = FIRST_TRUST
    num_examples: int | None = None
    memory: ClientMemory | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # As a call of the class: what `dataclass` makes for slots takes a third of a registration's time.
        return Member, (
            self.client_id,
            self.domain_id,
            self.public_key,
            self.features,
            self.trust,
            self.num_examples,
            self.memory,
        )


@dataclass(frozen=True)
class ClientActivity:
    """A client's activity since its basket last reported.

    Attributes:
        accepted: Number of accepted updates.
        seen: When the last of them came, in seconds since the epoch.
        trust: Its current trust.
    """

    accepted: int
    seen: float
    trust: float


@dataclass(frozen=True)
class ActivityReport:
    """Activity in a basket actor since it last reported to the directory.

    Attributes:
        clients: By id, those whose activity or trust has changed.
        baskets: Basket id to time last active.
    """

    clients: dict[str, ClientActivity] = field(default_factory=dict)
    baskets: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClippingReport:
    """Norms of the rows behind an aggregate. They are private values: see `baskets.reputation`.

    Attributes:
        num_rows: Rows whose norm is known.
        num_clipped: Those with a norm above the clip norm.
        median_norm: Of all of them, before clipping and gossip.
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
        clipping: Norms of their rows; None if basket models are private.
        failure: How a rule from outside failed, as a sentence; empty if it did not.
    """

    basket_id: str
    aggregated: bool
    reason: str
    num_rows: int
    least_rows: int
    clipping: ClippingReport | None = None
    failure: str = ""


@dataclass(frozen=True)
class ReputationReport:
    """Trust of a basket's members, computed from private values: see `baskets.reputation`.

    Attributes:
        outliers: Clients whose agreement with the latest aggregate was 0, sorted.
        clipping: Norms of the rows behind the latest aggregate; None before the first.
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
    rule_failures: int = 0
    gossip: dict[str, Any] = field(default_factory=dict)

    def closed(self, facts: BasketFacts, earlier: BasketReport | None) -> BasketReport:
        """Its counts after the basket has closed, added to those of baskets that closed before."""
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
            rule_failures=past.rule_failures + self.rule_failures,
        )


@dataclass(frozen=True)
class Backlog:
    """What a basket has for its next aggregate; nothing in it depends on private values.

    Attributes:
        num_senders: Members with buffered updates.
        absent: Up to `NAMED` of the others, sorted.
        staleness: Age of the oldest buffered update, in rounds.
        seconds: Since its last aggregation, or since its first update if there was none.
        fresh: Whether it has an aggregate that is in no release yet.
        failure: How a rule from outside failed when it was last run; empty if it did not.
        num_left_out: Clients at ceilings of their own, who are no members any more.
        left_out: Up to `NAMED` of them, sorted.
        num_able: Members that have sent, or whose budget has room for another row; None where releases are
            noised, not rows.
    """

    basket_id: str
    domain_id: str
    num_members: int
    num_senders: int
    absent: tuple[str, ...]
    staleness: int
    seconds: float
    fresh: bool
    failure: str = ""
    num_left_out: int = 0
    left_out: tuple[str, ...] = ()
    num_able: int | None = None


@dataclass(frozen=True)
class Registered:
    """Which baskets the next release counts as registered.

    Attributes:
        number: Baskets on the roster: all live ones, or with an operator's key those that it has signed.
        known: Live baskets that may take part.
        num_unsigned: Known baskets that are not on a signed roster, and count as corrupt.
        has_roster: Whether there is a roster to release under, or one needs no signature.
    """

    number: int
    known: frozenset[str]
    num_unsigned: int = 0
    has_roster: bool = True
