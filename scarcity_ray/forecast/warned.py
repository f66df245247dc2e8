"""What a config's owner should be told before anything is spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scarcity_ray.forecast.prospects import Forecast
from scarcity_ray.forecast.remedies import listed, remedies
from scarcity_ray.plan import FederationPlan, masking_warning

WANDERING = 0.5
"""Noise on the share of norms, as a standard deviation, from which it says next to nothing."""


WEAK_MASKING = "weak_masking"
"""The code of the warning that masks hide a basket only from an aggregator that colludes with none."""

About = Literal["noise", "privacy", "clipping"]


@dataclass(frozen=True)
class Warned:
    """Something that a config's owner should know.

    Attributes:
        code: A name for machines.
        message: What is wrong, and what would change it.
        loud: Whether a run says it as well before it starts.
        remedies: What would end it, each tried, the cheapest first; some warnings have them in words alone.
        about: What it is about, which gives the warning's class.
    """

    code: str
    message: str
    loud: bool
    remedies: tuple[str, ...] = ()
    about: About = "noise"


def warnings_of(forecast: Forecast) -> tuple[Warned, ...]:
    """All that is amiss, the worst first."""
    found = (
        _drowned(forecast),
        _stuck(forecast),
        _short(forecast),
        weakly_masked(forecast.plan, len(forecast.sizes)),
        gossip_drowned(forecast.plan),
        _clip_norm_wanders(forecast),
    )
    return tuple(warning for warning in found if warning is not None)


def runs_of(numbers: Sequence[int]) -> list[str]:
    """Rising numbers as runs.

    >>> runs_of([5, 6, 7, 10, 12, 13])
    ['5 to 7', '10', '12 to 13']
    """
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return [f"{first}" if first == last else f"{first} to {last}" for first, last in runs]


def _drowned(forecast: Forecast) -> Warned | None:
    if forecast.signal_to_noise >= 1.0 or not forecast.config.layer2.enabled:
        return None
    ways = remedies(forecast)
    return Warned(
        "noise_drowns_signal",
        f"a release's noise has norm {forecast.noise_norm:.3g}, {1 / forecast.signal_to_noise:.3g} times the "
        f"greatest that its signal can have, {forecast.signal_bound:g} (all {forecast.rounds_possible:.0f} "
        f"rounds together: the signal is at most {forecast.signal_to_noise_over_all_rounds:.3g} times the "
        f"noise); what would bring the noise down to the signal: "
        f"{listed(ways) or 'no single change; a much smaller model of many more clients'}",
        loud=True,
        remedies=tuple(way.change for way in ways),
    )


def _stuck(forecast: Forecast) -> Warned | None:
    if not forecast.stuck_sizes:
        return None
    layer1 = forecast.config.layer1
    here = sorted(set(forecast.stuck_sizes) & set(forecast.sizes))
    return Warned(
        "rule_never_aggregates",
        f"{layer1.aggregation_method.value} needs more rows than there are members in baskets of "
        f"{', '.join(map(str, runs_of(forecast.stuck_sizes)))}, so these never aggregate"
        + (f"; of these baskets, those of {', '.join(map(str, here))}" if here else "")
        + "; set basket.min_clients and basket.max_clients around such sizes, or lower "
        "layer1.byzantine_fraction",
        loud=bool(here),
    )


def _short(forecast: Forecast) -> Warned | None:
    if forecast.rounds_paid >= forecast.rounds:
        return None
    what = "release" if forecast.config.layer2.enabled else "gossip round"
    return Warned(
        "budget_ends_early",
        f"the budget buys {forecast.rounds_paid:.0f} of the {forecast.rounds} rounds; "
        f"`--rounds {forecast.rounds}` solves for the epsilon of a {what} that buys them all",
        loud=False,
    )


def weakly_masked(plan: FederationPlan, num_baskets: int | None = None) -> Warned | None:
    """Whether masks hide a basket only from an aggregator that colludes with none; None: of any number."""
    message = masking_warning(plan.config.layer2, num_baskets)
    return None if message is None else Warned(WEAK_MASKING, message, loud=True, about="privacy")


def gossip_drowned(plan: FederationPlan) -> Warned | None:
    """Whether a gossip vector is lost in its noise, which the config alone says."""
    gossip = plan.gossip
    norm = math.sqrt(gossip.noise_energy)
    if plan.config.gossip_budget_share == 0 or norm <= gossip.clip_norm:
        return None
    enabled = plan.config.layer2.enabled
    remedy = (
        "gossip_budget_share: 0 gives its share to the releases"
        if enabled
        else "without Layer 2 nothing else connects them, and each learns from its own data alone; what "
        "would change it: a larger gossip.local_dp_epsilon, or a model of fewer coordinates"
    )
    return Warned(
        "gossip_noise_drowns_signal",
        f"a gossip vector's noise has norm {norm:.3g}, {norm / gossip.clip_norm:.3g} times its clip norm, "
        f"so that peers gain next to nothing from one; {remedy}",
        loud=not enabled,
    )


def _clip_norm_wanders(forecast: Forecast) -> Warned | None:
    if forecast.share_noise <= WANDERING:
        return None
    return Warned(
        "clip_norm_wanders",
        f"the share of norms below the clip norm, a number from 0 to 1, is released with noise of standard "
        f"deviation {forecast.share_noise:.3g}, so that the clip norm's steps are mostly chance; what would "
        "change it: more clients, a larger epsilon, or adaptive_clipping: false; a smaller "
        "layer2.clip_learning_rate makes the steps smaller",
        loud=False,
    )


__all__ = ["About", "Warned", "gossip_drowned", "runs_of", "warnings_of"]
