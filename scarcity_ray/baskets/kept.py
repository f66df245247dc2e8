"""What a snapshot keeps of a basket: all but the updates that wait, which its actor's journal has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scarcity_ray.baskets.reports import ClippingReport
from scarcity_ray.gossip.protocol import ProtocolState
from scarcity_ray.layers.models import BasketModel

if TYPE_CHECKING:
    from scarcity_ray.baskets.basket import ClientMigration


@dataclass(frozen=True, eq=False)
class BasketState:
    """A basket as it was at a round's end.

    An aggregate is kept to be shown. Whether a release may still use it, only the journal knows, so a
    restored one is not fresh.

    Attributes:
        clients: What each member would take along to another basket, without its updates that wait.
        gossip: Of the basket as a whole.
        model: The latest aggregate.
        made: Aggregates made so far; `superseded` and `discarded` likewise.
        last_layer1: When the last one was made, in seconds.
    """

    clients: tuple[ClientMigration, ...]
    gossip: ProtocolState
    model: BasketModel | None
    made: int
    superseded: int
    discarded: int
    rule_failures: int
    last_layer1: float | None
    clipping: ClippingReport | None
