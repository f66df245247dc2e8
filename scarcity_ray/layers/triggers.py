"""When Layer 1 and Layer 2 are due, by counts and times."""

from __future__ import annotations

from enum import StrEnum

from scarcity_ray.config import BufferConfig, Layer2Config


class TriggerReason(StrEnum):
    """What made an aggregation due."""

    COUNT = "count"
    TIME = "time"
    STALENESS = "staleness"


def basket_due(
    config: BufferConfig,
    n_updates: int,
    time_since_last: float,
    *,
    n_active: int | None = None,
    least: int = 1,
    oldest_staleness: int = 0,
    gossip_to_come: bool = False,
) -> TriggerReason | None:
    """Whether a basket's Layer 1 is due, and why; None if it must wait.

    It is never due with fewer than `least` rows. Otherwise it is due by COUNT once `min_updates_trigger`
    clients (all `n_active` members if that is None) have updates buffered, by STALENESS when the oldest
    update is `max_staleness` rounds old (at least one), and by TIME after `time_trigger_seconds`.

    Args:
        n_updates: Clients with buffered updates, one row each.
        time_since_last: Seconds since the basket's last aggregation, or since its first update if none yet.
        n_active: Members of the basket; None if not known, and then only `min_updates_trigger` counts.
        least: Rows that the basket's rule needs.
        oldest_staleness: Age of the oldest buffered update, in rounds.
        gossip_to_come: Whether the round's gossip is still to run; then that all members have sent is not
            enough, so that states are mixed before they are aggregated.
    """
    if n_updates < max(1, least):
        return None
    wanted = config.min_updates_trigger
    if wanted is None and not gossip_to_come:
        wanted = n_active
    if wanted is not None and n_updates >= wanted:
        return TriggerReason.COUNT
    if oldest_staleness >= max(1, config.max_staleness):
        return TriggerReason.STALENESS
    return TriggerReason.TIME if time_since_last >= config.time_trigger_seconds else None


def global_due(
    num_fresh: int, num_active: int, seconds_since_last: float, config: Layer2Config
) -> TriggerReason | None:
    """Whether Layer 2 is due, and why; None if it must wait.

    Due if at least `min_baskets` baskets have a fresh aggregate, and either `min_baskets_trigger` of them
    (all active ones if that is None) have one (COUNT) or `update_interval_seconds` have passed (TIME).

    Args:
        num_fresh: Baskets with an aggregate that entered no release yet.
        seconds_since_last: Since the last release, or since the federation began.
    """
    if num_fresh < config.min_baskets:
        return None
    wanted = config.min_baskets_trigger if config.min_baskets_trigger is not None else num_active
    if num_fresh >= wanted:
        return TriggerReason.COUNT
    return TriggerReason.TIME if seconds_since_last >= config.update_interval_seconds else None


class TriggerEngine:
    """Asks `basket_due` and remembers, for each basket, a trigger that fired until it is acted on."""

    def __init__(self, config: BufferConfig) -> None:
        self.config = config
        self._fired: dict[str, TriggerReason] = {}

    def should_trigger(
        self,
        basket_id: str,
        n_updates: int,
        time_since_last: float,
        *,
        n_active: int | None = None,
        least: int = 1,
        oldest_staleness: int = 0,
    ) -> TriggerReason | None:
        """`basket_due` for one basket; its latest answer is what `check_and_clear` gives."""
        reason = basket_due(
            self.config,
            n_updates,
            time_since_last,
            n_active=n_active,
            least=least,
            oldest_staleness=oldest_staleness,
        )
        self._fired.pop(basket_id, None)
        if reason is not None:
            self._fired[basket_id] = reason
        return reason

    def check_and_clear(self, basket_id: str) -> TriggerReason | None:
        """The trigger of a basket that has fired and was not acted on yet; asking again gives None."""
        return self._fired.pop(basket_id, None)
