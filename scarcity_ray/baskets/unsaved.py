"""What a basket has changed since its journal was last written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from scarcity_ray.baskets.local_state import MetaReport
from scarcity_ray.baskets.update_buffer import ClientUpdates, JudgedUpdate


class Accepted(NamedTuple):
    """An accepted update, with all that is needed to accept it again."""

    judged: JudgedUpdate
    report: MetaReport | None
    time: float


@dataclass
class Unsaved:
    """A basket's changes, beside those of its latest aggregate.

    Attributes:
        accepted: Updates, in order.
        arrived: What clients have brought along.
        clients: Those whose trust, local state or gossip has changed other than by an update.
        gone: Those that have left, whose updates are withdrawn.
        has_consumed: Whether all updates from before have gone into an aggregate.
        has_counted: Whether the basket's own counts have changed.
    """

    accepted: list[Accepted] = field(default_factory=list)
    arrived: list[ClientUpdates] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    has_consumed: bool = False
    has_counted: bool = False


@dataclass(frozen=True)
class BasketCounts:
    """A basket's counts as its journal keeps them.

    Attributes:
        number: Of the last batch in the journal when they were taken.
        updates: `BasketBuffer.counts`.
        messages: Of gossip, that had not reached a client.
    """

    number: int
    domain_id: str
    updates: dict[str, int]
    rejections: dict[str, int]
    made: int
    superseded: int
    discarded: int
    last_layer1: float | None
    rule_failures: int
    sessions_refused: int
    messages: int
