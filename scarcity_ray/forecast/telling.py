"""What a federation's driver is told while it works: each warning once, and all of them in the statistics."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config
from scarcity_ray.errors import ClippingWarning, NoiseWarning, PrivacyWarning, ScarcityWarning, warn_caller
from scarcity_ray.forecast.prospects import Forecast
from scarcity_ray.forecast.rules import noise_norm_of, signal_bound
from scarcity_ray.forecast.warned import (
    WEAK_MASKING,
    About,
    Warned,
    gossip_drowned,
    warnings_of,
    weakly_masked,
)
from scarcity_ray.forecast.weak import weak_settings
from scarcity_ray.plan import BasketFacts, FederationPlan, hides_from, masking_warning

CATEGORIES: dict[About, type[ScarcityWarning]] = {
    "noise": NoiseWarning,
    "privacy": PrivacyWarning,
    "clipping": ClippingWarning,
}
MOSTLY_CLIPPED = 0.9
"""Share of clipped updates from which it is said that nearly all are."""
_EQUAL = 1e-6
"""Claims that differ by less are equal."""


class Told:
    """The warnings that one federation object has given.

    Guarantees:
        a_warning_is_given_once: However often it is found.
        a_warning_that_is_an_error_is_raised_each_time: With ``warnings.simplefilter("error")`` what it stops
            stays stopped.
    """

    def __init__(self) -> None:
        self._told: dict[str, Warned] = {}

    def note(self, found: Iterable[Warned]) -> list[Warned]:
        """Keep what is new for the statistics, and return it."""
        new = [warning for warning in found if warning.code not in self._told]
        self._told.update((warning.code, warning) for warning in new)
        return new

    def tell(self, found: Iterable[Warned]) -> None:
        """Warn of what is new, at the line outside this package that led here."""
        for warning in found:
            if warning.code in self._told:
                continue
            warn_caller(warning.message, CATEGORIES[warning.about])
            self.note([warning])

    def as_json(self, moot: Collection[str] = ()) -> list[dict[str, Any]]:
        """All that was told, as plain data, but for the codes that have become `moot`."""
        return [asdict(warning) for warning in self._told.values() if warning.code not in moot]


def warnings_at_start(plan: FederationPlan) -> tuple[Warned, ...]:
    """What the config alone says, before anybody is registered."""
    found = (weakly_masked(plan), gossip_drowned(plan))
    return weak_settings(plan.config) + tuple(warning for warning in found if warning is not None)


def moot_warnings(layer2: Layer2Config, registered: int, released: int) -> tuple[str, ...]:
    """Codes of warnings given at the start that nothing is left of.

    Args:
        layer2: Settings.
        registered: Baskets that are.
        released: Baskets in the last release; 0 before the first.
    """
    enough = hides_from(layer2)
    hidden = (
        enough is not None
        and registered >= enough
        and masking_warning(layer2, registered) is None
        and (released == 0 or released >= enough)
    )
    return (WEAK_MASKING,) if hidden else ()


def warnings_at_release(
    config: HierarchicalFederationConfig, sizes: Sequence[int]
) -> tuple[Warned, ...] | None:
    """What is known once baskets of these sizes are about to make a release, before it costs anything.

    Args:
        config: The federation.
        sizes: Members of each basket; those that are too small for the rule are left out.

    Returns:
        The warnings; None while too few of the baskets could make a release.
    """
    weak = weak_settings(config, max(1, sum(sizes)))
    if not config.layer2.enabled:
        return weak
    plan = FederationPlan(config)
    able = [size for size in sizes if size and size >= plan.least_rows(size)]
    if len(able) < config.layer2.min_baskets:
        return None
    releases = plan.num_releases
    return weak + warnings_of(Forecast(config, able, int(releases) if 1 <= releases < math.inf else 1))


def warning_of_weights(plan: FederationPlan, facts: Iterable[BasketFacts]) -> Warned | None:
    """What to say where unequal claims of examples bring more noise than there is signal.

    One client's share of a weighted mean is what it can change, so one claim above all others is paid for in
    noise by everybody; a forecast takes the claims to be equal.

    Args:
        plan: The federation's.
        facts: Of the baskets that may take part in the next release.
    """
    config = plan.config
    fresh = [replace(basket, clip_norm=None) for basket in facts if basket.fresh]
    unequal = [b for b in fresh if (b.max_row_share or 0.0) * b.num_rows > 1.0 + _EQUAL]
    if not config.layer2.enabled or not unequal or len(fresh) < config.layer2.min_baskets:
        return None
    noise, signal = noise_norm_of(plan, plan.release(fresh)), signal_bound(config)
    if noise <= signal:
        return None
    equal = noise_norm_of(plan, plan.release([replace(b, max_row_share=1.0 / b.num_rows) for b in fresh]))
    worst = max(unequal, key=lambda basket: (basket.max_row_share or 0.0) * basket.num_rows)
    return Warned(
        "weights_drown_signal",
        f"one client claims so many examples that it has {worst.max_row_share:.3g} of the weight in basket "
        f"{worst.basket_id!r} of {worst.num_rows} rows, and noise must hide as much: the next release's has "
        f"norm {noise:.3g}, {noise / signal:.3g} times the greatest that its signal can have, {signal:g} "
        f"(with equal claims {equal:.3g}); what would change it: a smaller layer1.max_examples (now "
        f"{plan.max_examples}), at which claims end, or layer1.aggregation_method: mean",
        loud=True,
    )


def warning_of_clipping(
    num_rows: int, num_clipped: int, median_norm: float, clip_norm: float
) -> Warned | None:
    """What to say where nearly all updates are longer than they may be; None where they are not.

    Args:
        num_rows: Updates that went into aggregates.
        num_clipped: Those that were longer than the clip norm.
        median_norm: Of all of them, before clipping.
        clip_norm: Layer 1's.
    """
    if num_rows == 0 or num_clipped < MOSTLY_CLIPPED * num_rows:
        return None
    return Warned(
        "updates_clipped",
        f"{num_clipped} of {num_rows} updates were longer than layer1.clip_norm = {clip_norm:g} (median norm "
        f"{median_norm:.3g}) and were shortened to it: of these only the direction counts. If they are "
        "weights, send what training changed instead (the new weights less the global model). For deltas it "
        "may be right: a larger clip norm (layer1.clip_norm and layer2.clip_norm together) brings more "
        "noise, and layer2.adaptive_clipping: true looks for the best",
        loud=True,
        about="clipping",
    )


__all__ = [
    "CATEGORIES",
    "Told",
    "moot_warnings",
    "warning_of_clipping",
    "warning_of_weights",
    "warnings_at_release",
    "warnings_at_start",
]
