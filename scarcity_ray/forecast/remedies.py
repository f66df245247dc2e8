"""Changes that would bring a release's noise within its signal, each tried by the planner.

They come in the order of what they cost: another rule, fewer rounds, more clients, more baskets, a larger
epsilon, a smaller model. Where no single change suffices and a less noisy rule fits, each is tried with that
rule, and fewer rounds with more clients. No remedy weakens a promise: none takes a rule that tolerates fewer
Byzantine clients, or a total epsilon above `HUGE_EPSILON`. The last one makes another promise: to each person
of a client instead of to the client, if clients have so many persons as it says.

Guarantees:
    every_remedy_does_what_it_says: With it, a forecast's noise is at most the signal's bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice

from scarcity_ray.config import (
    AggregationMethod,
    HierarchicalFederationConfig,
    NoisePlace,
    PrivacyConfig,
    PrivacyUnit,
)
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast.feasibility import Forecast, rule_cost, solve_for_rounds, with_rule

HUGE_EPSILON = 20.0
"""Total epsilon beyond which one client's values may change the odds of what is seen by a factor of 5e8."""
MOST_CLIENTS = 10_000
"""Clients in a basket that are looked at."""
MOST_PERSONS = 1_000_000
"""Persons of a client that are looked at."""
FEW_ROUNDS = 10
"""Rounds that more clients are tried with, where clients alone do not suffice."""
_CLOSE = 1.0 + 1e-5
"""Slack for epsilons, which are solved for to six digits."""


@dataclass(frozen=True)
class Remedy:
    """One change, and the noise that it leaves.

    Attributes:
        kinds: What it changes, of ``rule``, ``rounds``, ``clients``, ``baskets``, ``epsilon``, ``dimension``,
            ``unit``.
        change: The change in words.
        config: The federation's settings with the change.
        sizes: Clients of each basket with the change.
        noise_norm: Norm of a release's noise with the change.
    """

    kinds: tuple[str, ...]
    change: str
    config: HierarchicalFederationConfig
    sizes: tuple[int, ...]
    noise_norm: float


def remedies(forecast: Forecast, most: int = 3) -> tuple[Remedy, ...]:
    """The cheapest ways to bring the noise of `forecast` within its signal; none if it is there already.

    Beside `most` of them there is that by the unit of privacy.
    """
    if forecast.signal_to_noise >= 1.0:
        return ()
    quiet, first = _quieter(forecast), list[Remedy]()
    bases: list[Base] = [(forecast, (), "")]
    if quiet is not None:
        change = f"layer1.aggregation_method: {quiet.config.layer1.aggregation_method.value}"
        if quiet.signal_to_noise >= 1.0:
            first.append(_remedy(quiet, ("rule",), change))
        else:
            bases.append((quiet, ("rule",), f"{change} and "))
    cheapest = islice(chain(first, _tried(bases, _WAYS)), most)
    return (*cheapest, *_tried(bases, {"unit": _persons}))


def _tried(bases: Sequence[Base], ways: Mapping[str, Way]) -> Iterator[Remedy]:
    for kind, way in ways.items():
        for base, before, words in bases:
            tried = way(base)
            if tried is not None and tried[0].signal_to_noise * _CLOSE >= 1.0:
                yield _remedy(tried[0], (*before, *kind.split("+")), words + tried[1])
                break


def _remedy(tried: Forecast, kinds: tuple[str, ...], change: str) -> Remedy:
    return Remedy(kinds, change, tried.config, tried.sizes, tried.noise_norm)


def _quieter(forecast: Forecast) -> Forecast | None:
    """With a rule that stands as many liars for less noise: trimmed mean, or the mean if f is 0."""
    liars = any(forecast.plan.num_byzantine(size) for size in forecast.sizes)
    rule = AggregationMethod.TRIMMED_MEAN if liars else AggregationMethod.MEAN
    cost = rule_cost(forecast.config, rule, forecast.sizes)
    if not cost.fits or (cost.signal_to_noise or 0.0) <= 1.01 * forecast.signal_to_noise:
        return None
    return Forecast(with_rule(forecast.config, rule), forecast.sizes, forecast.rounds)


Tried = tuple[Forecast, str] | None
Way = Callable[[Forecast], Tried]
Base = tuple[Forecast, tuple[str, ...], str]
"""A forecast to change, what it changes already, and that in words."""


def _fewer_rounds(base: Forecast) -> Tried:
    rounds = base.rounds_at_equal_noise
    if not 1.0 <= rounds < math.inf:
        return None
    tried = _in_rounds(base, int(rounds))
    if tried is None:
        return None
    return (
        tried,
        f"spending this budget in at most {rounds:.10g} round{'s' * (rounds > 1)} ({_spent(tried.config)})",
    )


def _spent(config: HierarchicalFederationConfig) -> str:
    """The setting that says how much of the budget a round takes."""
    if config.privacy.noise is NoisePlace.SITE:
        return f"privacy.row_epsilon: {config.privacy.row_epsilon:g}"
    return f"layer2.central_dp_epsilon: {config.layer2.central_dp_epsilon:g}"


def _in_rounds(base: Forecast, rounds: int) -> Forecast | None:
    """The same with the whole budget spent in so many rounds; gossip's epsilon stays."""
    try:
        solved = solve_for_rounds(base.config, rounds)
    except ConfigError:
        return None
    return Forecast(replace(solved, gossip=base.config.gossip), base.sizes, rounds)


def _more_clients(base: Forecast) -> Tried:
    def crowd(size: int) -> Forecast:
        return Forecast(base.config, [max(size, old) for old in base.sizes], base.rounds)

    count = least_number(
        lambda size: crowd(size).signal_to_noise >= 1.0, above=min(base.sizes), most=MOST_CLIENTS
    )
    if count is None:
        return None
    room = f" (basket.max_clients: {count})" if count > base.config.basket.max_clients else ""
    return crowd(count), f"{count} clients in each of the {len(base.sizes)} baskets{room}"


def least_number(suffices: Callable[[int], bool], *, above: int, most: int) -> int | None:
    """The least number above one that does not suffice, if all beyond it do; None if it is beyond `most`.

    >>> least_number(lambda number: number >= 11, above=1, most=100)
    11
    """
    low, high = above, 2 * above
    while not suffices(high):
        low, high = high, 2 * high
        if high > most:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def with_persons(config: HierarchicalFederationConfig, least: int) -> HierarchicalFederationConfig:
    """The config with the person as the unit of privacy, or the record where it is that, `least` a client.

    What is refused beside it is off (docs/privacy_units.md).
    """
    privacy = config.privacy
    if privacy.unit is PrivacyUnit.CLIENT:
        privacy = PrivacyConfig(unit=PrivacyUnit.PERSON)
    return replace(
        config,
        privacy=replace(privacy, min_persons=least),
        gossip_budget_share=0.0,
        meta_parameters={},
        layer2=replace(config.layer2, adaptive_clipping=False),
    )


def _persons(base: Forecast) -> Tried:
    """Enough persons behind each row, one of whom moves it by so much less than the client does."""
    config = base.config
    if not config.layer2.enabled:
        return None

    def tried(least: int) -> Forecast:
        return Forecast(with_persons(config, least), base.sizes, base.rounds)

    least = least_number(
        lambda number: tried(number).signal_to_noise >= 1.0,
        above=config.privacy.min_persons or 1,
        most=MOST_PERSONS,
    )
    if least is None:
        return None
    if config.privacy.unit is not PrivacyUnit.CLIENT:
        return tried(least), f"privacy.min_persons: {least}, if enough clients have so many"
    off = ["gossip_budget_share: 0"] if config.gossip_budget_share else []
    off += ["layer2.adaptive_clipping: false"] if config.layer2.adaptive_clipping else []
    off += ["no meta_parameters"] if config.meta_parameters else []
    beside = f" with {' and '.join(off)}" if off else ""
    return tried(least), (
        f"privacy: {{unit: person, min_persons: {least}}}{beside}, if each client's update is a mean over so "
        "many persons; it protects each of them instead of the client (docs/privacy_units.md)"
    )


def _fewer_rounds_of_more_clients(base: Forecast) -> Tried:
    if not FEW_ROUNDS < base.plan.num_releases < math.inf:
        return None
    few = _in_rounds(base, FEW_ROUNDS)
    tried = None if few is None else _more_clients(few)
    if tried is None:
        return None
    return tried[0], (
        f"spending this budget in {FEW_ROUNDS} rounds ({_spent(tried[0].config)}) with {tried[1]}"
    )


def _more_baskets(base: Forecast) -> Tried:
    count = base.baskets_at_equal_noise
    if count is None or count <= len(base.sizes) or count > MOST_CLIENTS:
        return None
    widest = max(base.release.sensitivities, key=lambda b: base.release.sensitivities[b])
    sizes = [base.sizes[int(widest)]] * count
    return Forecast(base.config, sizes, base.rounds), f"at least {count} baskets like these"


def _larger_epsilon(base: Forecast) -> Tried:
    """The same rounds for more epsilon: a release's, and with it the total."""
    config, plan = base.config, base.plan
    factor = _CLOSE / base.signal_to_noise
    is_site = plan.site_noise is not None
    delta = (config.privacy.row_delta or config.total_delta) if is_site else config.layer2.central_dp_delta
    mu = plan.mu_row if is_site else plan.mu_release
    epsilon = _rounded_up(plan.accounting.epsilon_of(mu * factor, delta))
    if is_site:
        larger = replace(config, privacy=replace(config.privacy, row_epsilon=epsilon))
    else:
        larger = replace(config, layer2=replace(config.layer2, central_dp_epsilon=epsilon))
    change = _spent(larger)
    total = config.total_epsilon
    if math.isfinite(total):
        total = _rounded_up(plan.accounting.epsilon_of(plan.mu_total * factor, config.total_delta))
        if total > HUGE_EPSILON:
            return None
        change += f" with total_epsilon: {total:g}"
    return Forecast(replace(larger, total_epsilon=total), base.sizes, base.rounds), change


def _smaller_model(base: Forecast) -> Tried:
    dimension = int(base.config.vector_dim * base.signal_to_noise**2)
    while dimension >= 1:
        tried = Forecast(replace(base.config, vector_dim=dimension), base.sizes, base.rounds)
        if tried.signal_to_noise >= 1.0:
            return tried, f"a model of at most {dimension} coordinates (vector_dim)"
        dimension = int(0.99 * dimension)
    return None


_WAYS: dict[str, Way] = {
    "rounds": _fewer_rounds,
    "clients": _more_clients,
    "baskets": _more_baskets,
    "epsilon": _larger_epsilon,
    "rounds+clients": _fewer_rounds_of_more_clients,
    "dimension": _smaller_model,
}


def _rounded_up(value: float) -> float:
    """To three digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.ceil(value / step) * step:.3g}")


def listed(found: Sequence[Remedy]) -> str:
    """The remedies in a sentence, each with the noise that it leaves."""
    return "; or ".join(f"{remedy.change}: noise {remedy.noise_norm:.3g}" for remedy in found)
