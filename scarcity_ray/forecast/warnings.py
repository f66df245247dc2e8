"""The warnings for a config's owner and a federation's driver, each with what would change it.

`warnings_of` judges a forecast and `weak_settings` a config; the other functions judge what a driver learns
in a run. `Told` gives each warning once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scarcity_ray.config import (
    HierarchicalFederationConfig,
    Layer2Config,
    NoisePlace,
    PrivacyConfig,
    PrivacyUnit,
)
from scarcity_ray.errors import (
    ClippingWarning,
    FaultWarning,
    NoiseWarning,
    PrivacyWarning,
    ScarcityWarning,
    warn_caller,
)
from scarcity_ray.forecast.feasibility import Forecast, noise_norm_of, signal_bound
from scarcity_ray.forecast.remedies import HUGE_EPSILON, listed, remedies
from scarcity_ray.plan import (
    BasketFacts,
    FederationPlan,
    hides_from,
    masking_warning,
    persons_of_a_client,
)

WANDERING = 0.5
"""Noise on the share of norms, as a standard deviation, from which it says next to nothing."""
WEAK_MASKING = "weak_masking"
"""The code of the warning that masks hide a basket only from an aggregator that colludes with none."""

About = Literal["noise", "privacy", "clipping", "fault"]
CATEGORIES: dict[About, type[ScarcityWarning]] = {
    "noise": NoiseWarning,
    "privacy": PrivacyWarning,
    "clipping": ClippingWarning,
    "fault": FaultWarning,
}
MOSTLY_CLIPPED = 0.9
"""Share of clipped updates from which it is said that nearly all are."""
_EQUAL = 1e-6
"""Claims that differ by less are equal."""


@dataclass(frozen=True)
class Warned:
    """Something that a config's owner should know.

    Attributes:
        code: A fixed name, for programs.
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
    """All warnings on a forecast, the worst first."""
    found = (
        _drowned(forecast),
        _rows_are_noise(forecast),
        _stuck(forecast),
        _short(forecast),
        _falls_too_late(forecast),
        weakly_masked(forecast.plan, len(forecast.sizes)),
        gossip_drowned(forecast.plan),
        _clip_norm_wanders(forecast),
        rule_from_outside(forecast.plan),
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
    whose = (
        "a release's noise" if forecast.plan.site_noise is None else "the rows' noise in the mean of all rows"
    )
    return Warned(
        "noise_drowns_signal",
        f"{whose} has norm {forecast.noise_norm:.3g}, {1 / forecast.signal_to_noise:.3g} times the "
        f"greatest that its signal can have, {forecast.signal_bound:g} (all {forecast.rounds_possible:.0f} "
        f"rounds together: the signal is at most {forecast.signal_to_noise_over_all_rounds:.3g} times the "
        f"noise); what would bring the noise down to the signal: "
        f"{listed(ways) or 'no single change; a much smaller model of many more clients'}",
        loud=True,
        remedies=tuple(way.change for way in ways),
    )


def _rows_are_noise(forecast: Forecast) -> Warned | None:
    """Whether a client's row is more noise than signal, so that only many rows together say anything."""
    site, noise = forecast.plan.site_noise, forecast.row_noise_norm
    if site is None or noise <= site.clip_norm:
        return None
    clients, beta = sum(forecast.sizes), forecast.config.layer1.momentum
    fade = "" if beta else "; layer1.momentum: 0.9 leaves 0.23 of it in what the rule sees"
    return Warned(
        "rows_are_noise",
        f"each client noises its own row: its noise has norm {noise:.3g}, the row itself "
        f"{site.clip_norm:g} at most. The mean of all {clients} rows has noise {forecast.noise_norm:.3g}, "
        f"sqrt({clients}) = {math.sqrt(clients):.3g} times what central noise on a mean needs. A rule that "
        f"picks rows passes their noise on, and attackers hide in it{fade}; what would change it: more "
        "persons behind each row (privacy.min_persons), fewer rounds, or privacy.noise: central, which "
        "guards against less (docs/site_noise.md)",
        loud=False,
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
    what = what if forecast.plan.site_noise is None else "row"
    return Warned(
        "budget_ends_early",
        f"the budget buys {forecast.rounds_paid:.0f} of the {forecast.rounds} rounds; "
        f"`--rounds {forecast.rounds}` solves for the epsilon of a {what} that buys them all",
        loud=False,
    )


def _falls_too_late(forecast: Forecast) -> Warned | None:
    plan, rounds = forecast.plan, forecast.rounds
    is_site = plan.site_noise is not None
    schedule, what = (plan.row_schedule, "row") if is_site else (plan.schedule, "release")
    if schedule.is_constant or plan.num_releases <= rounds:
        return None
    return Warned(
        "noise_falls_too_late",
        f"noise falls until the last of the {plan.num_releases:.0f} {what}s that the budget buys, and the "
        f"{rounds} that are wanted are the noisiest; `--rounds {rounds}` solves for the epsilon of a {what} "
        "that spends the budget on them",
        loud=False,
    )


def weakly_masked(plan: FederationPlan, num_baskets: int | None = None) -> Warned | None:
    """Whether masks hide a basket only from an aggregator that colludes with none; None: of any number.

    Where clients noise their rows, nothing that masks hide counts on them.
    """
    message = masking_warning(plan.config.layer2, num_baskets)
    if message is None or plan.site_noise is not None:
        return None
    return Warned(WEAK_MASKING, message, loud=True, about="privacy")


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


def weak_settings(config: HierarchicalFederationConfig, num_clients: int | None = None) -> tuple[Warned, ...]:
    """Settings with which the promises are weaker than a newcomer may take them for.

    Args:
        num_clients: Registered clients, which delta is compared with; None: not known yet.

    >>> [warning.code for warning in weak_settings(HierarchicalFederationConfig(), 20_000)]
    ['basket_models_exposed', 'delta_not_small']
    """
    found, privacy = {}, config.privacy
    unit = privacy.unit.value
    if privacy.unit is not PrivacyUnit.CLIENT and persons_of_a_client(FederationPlan(config)) < 1.01:
        found["unit_without_gain"] = (
            f"privacy.unit is {unit}, but layer1 ({config.layer1.aggregation_method.value}"
            f"{' behind ' + ', '.join(config.layer1.pre) if config.layer1.pre else ''}) has no proved bound "
            f"for one {unit}, so its noise is that for a whole client; mean, weighted, trimmed_mean, median "
            "and centered_clipping without pre have one"
        )
    if math.isinf(config.total_epsilon):
        found["no_privacy_claim"] = (
            "total_epsilon is infinite: nothing is promised to anybody, and whoever sees the models may "
            "learn all that a client sent; set a finite total_epsilon for data that matter"
        )
    elif config.total_epsilon > HUGE_EPSILON:
        found["huge_epsilon"] = (
            f"total_epsilon is {config.total_epsilon:g}: one {unit}'s values may change the odds of what "
            f"is seen by a factor of e^{config.total_epsilon:g}, which promises next to nothing; set at "
            "most 10"
        )
    is_central = config.privacy.noise is NoisePlace.CENTRAL
    if config.layer2.enabled and not config.layer2.use_secure_aggregation and is_central:
        found["secure_aggregation_off"] = (
            "layer2.use_secure_aggregation is false: the global aggregator sees each basket's aggregate "
            "without noise; set it to true unless its operator may see them"
        )
    if config.expose_basket_models and is_central:
        found["basket_models_exposed"] = (
            "basket models, outliers and the share of clipped updates are shown to every driver, and lie "
            "outside the privacy claim: set expose_basket_models: false for data that matter"
        )
    protected = None if num_clients is None else num_clients * (privacy.min_persons or 1)
    if protected is not None and config.total_delta >= 1.0 / protected:
        found["delta_not_small"] = (
            f"total_delta is {config.total_delta:g}, and 1/n with {protected} {unit}s is "
            f"{1 / protected:.3g}: such a delta allows that some {unit}'s update is shown to all; set "
            "it well below 1/n"
        )
    return tuple(Warned(code, message, loud=False, about="privacy") for code, message in found.items())


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
        """All warnings given, as plain data, except those with a code in `moot`."""
        return [asdict(warning) for warning in self._told.values() if warning.code not in moot]


def warnings_at_start(plan: FederationPlan) -> tuple[Warned, ...]:
    """The warnings on the config alone, before anybody is registered."""
    found = (weakly_masked(plan), gossip_drowned(plan), rule_from_outside(plan))
    return weak_settings(plan.config) + tuple(warning for warning in found if warning is not None)


def rule_from_outside(plan: FederationPlan) -> Warned | None:
    """What the privacy claim takes on the word of a rule's author."""
    if not plan.rule_claim:
        return None
    message = f"{plan.rule_claim}; scarcity_ray.testing.check_rule looks for the opposite"
    return Warned("rule_from_outside", message, loud=False, about="privacy")


def warning_of_failures(failures: Sequence[str]) -> Warned | None:
    """A warning that Layer 1's rule, one from outside, failed in some baskets; a sentence for each."""
    if not failures:
        return None
    more = f" (and in {len(failures) - 1} more baskets)" if len(failures) > 1 else ""
    message = f"{failures[0]}{more}; these baskets wait and keep their updates, and nothing was charged"
    return Warned("rule_failed", message, loud=True, about="fault")


def moot_warnings(layer2: Layer2Config, registered: int, released: int) -> tuple[str, ...]:
    """Codes of warnings given at the start that nothing is left of.

    `registered` counts baskets; `released` those in the last release, 0 before the first.
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
    """The warnings for baskets of these sizes that are about to make a release, before it costs anything.

    Baskets that are too small for the rule are left out; None while too few are left to make a release.
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
    """A warning if unequal claims of examples bring more noise than there is signal.

    The noise must hide the client with the greatest share of a weighted mean; a forecast takes the shares to
    be equal. `facts` are of the baskets that may take part in the next release.
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


def warning_of_few_persons(privacy: PrivacyConfig, counts: Sequence[int], num_clients: int) -> Warned:
    """A warning that clients with `counts` persons, of `num_clients` in all, are left out of a training."""
    unit, spread = privacy.unit.value, f"{min(counts)} to {max(counts)}"
    left_out = (
        f"all {num_clients} clients"
        if len(counts) == num_clients
        else (f"{len(counts)} of {num_clients} clients")
    )
    return Warned(
        "too_few_persons",
        f"{left_out} have fewer {unit}s than privacy.min_persons = {privacy.min_persons} ({spread}) and are "
        f"left out before they train: each {unit} counts on so many; what would change it: clients "
        f"that join their data, or a smaller privacy.min_persons, which brings as much more noise",
        loud=2 * len(counts) > num_clients,
        about="privacy",
    )


def warning_of_clipping(
    num_rows: int, num_clipped: int, median_norm: float, clip_norm: float
) -> Warned | None:
    """A warning if nearly all of the updates in aggregates were longer than Layer 1's clip norm."""
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
