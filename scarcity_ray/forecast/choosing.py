"""Which rule, how many baskets and which clip norm: the setting whose signal stands furthest above its noise.

The noise of a release is the planner's own, exact. Its signal is what the rule leaves of the honest clients'
direction under the worst attack tried, found on drawn rows that are all as long as the clip norm. Over T
rounds the signal adds up to T times as much and the noise to sqrt(T) times, while a budget spread over T
rounds makes each release's noise sqrt(T) times as large: their ratio over all rounds does not depend on T.

It is measured, not proved: attackers may know a worse attack than those of `attacks_on`, and clients may
differ in another way than the drawn ones. ``docs/choosing.md`` shows how far it agrees with training.

Guarantees:
    the_chosen_setting_has_the_highest_ratio_of_all_that_were_tried
    without_attackers_the_mean_is_chosen
    a_setting_that_holds_off_back_doors_has_a_rule_that_does
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, Layer1Config, PrivacyUnit
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast.feasibility import Forecast, solve_for_rounds
from scarcity_ray.forecast.remedies import MOST_PERSONS, least_number, with_persons
from scarcity_ray.plan import FederationPlan
from scarcity_ray.robust import aggregate

Rows = NDArray[np.float32]

RULES: tuple[tuple[AggregationMethod, tuple[str, ...]], ...] = (
    (AggregationMethod.MEAN, ()),
    (AggregationMethod.TRIMMED_MEAN, ()),
    (AggregationMethod.MEDIAN, ()),
    (AggregationMethod.GEOMETRIC_MEDIAN, ()),
    (AggregationMethod.KRUM, ()),
    (AggregationMethod.MULTI_KRUM, ()),
    (AggregationMethod.BULYAN, ()),
    (AggregationMethod.MEAMED, ()),
    (AggregationMethod.CAF, ()),
    (AggregationMethod.TRIMMED_MEAN, ("nnm",)),
)
"""Rules and what goes before them. Centred clipping around zero at the clip norm is the mean of clipped rows,
and so are fedavg and weighted with equal weights; MDA looks at all subsets, which takes too long here."""
DIMENSION, DRAWS, SEED = 64, 2, 0
"""Of the drawn rows."""
MOST_SIZES = 5
"""Numbers of baskets that are tried with each rule."""
LARGEST = 50
"""Clients of a basket that are tried; a larger one needs clients in the tens of thousands to be worth it."""
FEWEST_BASKETS = 4
"""So that one may be missing from a secure sum; fewer only where clients are too few for it."""
HELD_OFF = 0.25
"""Of a back door's pull on the mean, from which on down a rule holds it off."""
NOTHING = 0.1
"""Ratio below which nothing is learned: the angle between what is released and the signal is 84 degrees."""
WORTH = 1.02
"""By which a setting with more baskets must be better than one with fewer, which hide a client among more."""
CLIP_QUANTILE, CLIP_LEARNING_RATE = 0.3, 1.0
"""Of adaptive clipping for tens of rounds, as ``python -m benchmarks clipping`` has measured."""


class Likeness(StrEnum):
    """How the honest clients of one basket resemble each other.

    ALIKE: The mean of their clipped updates is 0.9 of the clip norm, as with examples dealt out at random.
    MIXED: It is 0.4: what clients have in common is shorter than what each has for itself.
    UNLIKE: Of five kinds, each moves coordinates that the others hardly move, as with clients of one or two
        classes; the mean is 0.45.
    """

    ALIKE = "alike"
    MIXED = "mixed"
    UNLIKE = "unlike"


class Verdict(StrEnum):
    """What is to be expected of a setting.

    TEACHES: Over all rounds its signal is above its noise.
    LITTLE: It is below, by less than `NOTHING`.
    NOTHING: It is further below.
    OUTWEIGHED: Under the worst attack tried nothing is left of the honest clients' direction.
    """

    TEACHES = "teaches"
    LITTLE = "little"
    NOTHING = "nothing"
    OUTWEIGHED = "outweighed"


@dataclass(frozen=True)
class Choice:
    """One setting, and what is to be expected of it.

    Attributes:
        rule, pre: Of Layer 1.
        num_byzantine: f of each basket.
        sizes: Clients of each basket.
        federation: The settings with all that, and with the release's epsilon that buys the rounds.
        noise_norm: Norm of a release's noise.
        signal_norm: What a release moves in the honest direction, under the worst attack tried; below 0, it
            moves against them.
        back_door: Of the clip norm, what attackers move along a coordinate that no honest client moves.
        ratio: Signal over noise of all rounds together; 0 without signal.
    """

    rule: AggregationMethod
    pre: tuple[str, ...]
    num_byzantine: int
    sizes: tuple[int, ...]
    federation: HierarchicalFederationConfig
    noise_norm: float
    signal_norm: float
    back_door: float
    ratio: float

    @property
    def name(self) -> str:
        """The rule with what goes before it."""
        return " + ".join((*self.pre, self.rule.value))


@dataclass(frozen=True)
class Recommendation:
    """The best setting and, best first, that of every rule that fits.

    Attributes:
        chosen: None where no rule fits so many attackers.
        by_rule: Each rule at its best number of baskets and f.
        rounds: That the budget is spread over.
        min_persons: Where the client is the unit of privacy and noise outweighs the signal of every setting:
            the fewest persons of each client with which some setting teaches once a person is the unit.
    """

    chosen: Choice | None
    by_rule: tuple[Choice, ...]
    rounds: int
    min_persons: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What is to be expected of the chosen setting."""
        if self.chosen is None or self.chosen.ratio == 0.0:
            return Verdict.OUTWEIGHED
        if self.chosen.ratio >= 1.0:
            return Verdict.TEACHES
        return Verdict.LITTLE if self.chosen.ratio >= NOTHING else Verdict.NOTHING


def recommend(
    config: HierarchicalFederationConfig,
    *,
    clients: int,
    attackers: int,
    rounds: int,
    likeness: Likeness = Likeness.MIXED,
    back_doors: bool = False,
) -> Recommendation:
    """The setting with the highest ratio of signal to noise over all rounds, and its alternatives.

    Args:
        config: Of which the budget, the unit of privacy, the model's dimension, the clip norms and the
            noise's kind are kept.
        clients: All of the federation; attackers among them are spread over baskets at random.
        attackers: How many may attack.
        back_doors: Choose only among rules that hold off what attackers plant where the others are silent.

    Raises:
        ConfigError: If there are too few clients for two baskets, too many attackers, or no budget for the
            rounds.
    """
    if not 0 <= attackers < clients / 2:
        raise ConfigError("attackers", attackers, f"fewer than half of the {clients} clients")
    asked = Asked(config, clients, attackers, rounds, likeness, back_doors)
    found = [best for rule, pre in RULES if (best := _best_of(rule, pre, asked)) is not None]
    if not found:
        raise ConfigError("clients", clients, f"more, or fewer attackers than {attackers}: no rule fits")
    found.sort(key=lambda choice: preference(choice.ratio, choice.signal_norm), reverse=True)
    chosen = next((choice for choice in found if asked.accepts(choice.back_door)), None)
    made = Recommendation(chosen, tuple(found), rounds)
    if config.privacy.unit is not PrivacyUnit.CLIENT or made.verdict in (Verdict.TEACHES, Verdict.OUTWEIGHED):
        return made

    def teaches(least: int) -> bool:
        other = replace(asked, config=with_persons(config, least))
        return recommend(**vars(other)).verdict is Verdict.TEACHES

    return replace(made, min_persons=least_number(teaches, above=1, most=MOST_PERSONS))


@dataclass(frozen=True)
class Asked:
    """The arguments of `recommend`."""

    config: HierarchicalFederationConfig
    clients: int
    attackers: int
    rounds: int
    likeness: Likeness
    back_doors: bool

    def accepts(self, back_door: float) -> bool:
        """Whether so strong a back door may pass."""
        return not self.back_doors or back_door <= HELD_OFF * self.attackers / self.clients


def _best_of(rule: AggregationMethod, pre: tuple[str, ...], asked: Asked) -> Choice | None:
    """A rule at the baskets and the f that suit it best, of those that are accepted if any are."""
    settings = []
    for sizes, f in _settings(asked):
        federation = with_setting(asked.config, rule, pre, f, sizes)
        plan = FederationPlan(federation)
        if all(size >= plan.least_rows(size) for size in sizes):
            settings.append((Forecast(solve_for_rounds(federation, asked.rounds), sizes, asked.rounds), f))
    # A release moves hardly further than the honest mean: what its noise already rules out is not drawn.
    settings.sort(key=lambda setting: (float(f"{setting[0].noise_norm:.2g}"), len(setting[0].sizes)))
    bound = min(1.0, LEEWAY * LENGTHS[asked.likeness])
    best: Choice | None = None
    for forecast, f in settings:
        unit, noise = forecast.signal_bound, forecast.noise_norm
        holds = best is not None and asked.accepts(best.back_door)
        if best is not None and holds and not _is_better(bound * unit, noise, best, asked.rounds):
            continue
        moved, planted = expected(
            rule.value, pre, min(forecast.sizes), f, asked.clients, asked.attackers, asked.likeness
        )
        signal = moved * unit
        accepted = asked.accepts(planted)
        gains = best is None or _is_better(signal, noise, best, asked.rounds)
        if (accepted, gains) > (holds, False) or best is None:
            ratio, _ = ratio_of(signal, noise, asked.rounds)
            best = Choice(rule, pre, f, forecast.sizes, forecast.config, noise, signal, planted, ratio)
    return best


def _is_better(signal: float, noise: float, than: Choice, rounds: int) -> bool:
    gain = (WORTH - 1.0) * abs(than.signal_norm)
    return ratio_of(signal, noise, rounds) > (WORTH * than.ratio, than.signal_norm + gain)


def ratio_of(signal: float, noise: float, rounds: int) -> tuple[float, float]:
    """Signal over noise of all rounds together, and the signal: it decides without noise, and below 0."""
    if signal <= 0.0:
        return 0.0, signal
    return (math.sqrt(rounds) * signal / noise if noise else math.inf), signal


def preference(ratio: float, signal: float) -> tuple[float, float]:
    """What rules are ordered by; of equals the first of `RULES`, which are simple before they are costly.

    Without noise every rule with a signal learns, and in the sweep one with more of it learned no better.
    """
    return ratio, min(signal, 0.0)


def _settings(asked: Asked) -> Iterator[tuple[tuple[int, ...], int]]:
    """Sizes of baskets, and the f of each: of the attackers' share, and a standard deviation or two more."""
    config, clients = asked.config, asked.clients
    fewest, least = config.layer2.min_baskets, config.layer1.min_updates
    if clients >= FEWEST_BASKETS * least:
        fewest = max(fewest, FEWEST_BASKETS)
    fewest = max(fewest, math.ceil(clients / LARGEST))
    most = clients // least
    if most < fewest:
        raise ConfigError("clients", clients, f"at least {fewest * least} (min_baskets times min_updates)")
    for number in np.unique(np.geomspace(fewest, most, MOST_SIZES).round().astype(int)).tolist():
        fewer, more = divmod(clients, number)
        sizes = tuple(fewer + (place < more) for place in range(number))
        mean = asked.attackers / number
        spread = math.sqrt(mean * (1.0 - asked.attackers / clients))
        for f in sorted({math.ceil(mean + steps * spread) for steps in range(2 + asked.back_doors)}):
            yield sizes, f


def with_setting(
    config: HierarchicalFederationConfig,
    rule: AggregationMethod,
    pre: tuple[str, ...],
    f: int,
    sizes: Sequence[int],
) -> HierarchicalFederationConfig:
    """The config with another rule, what goes before it, f and sizes of baskets."""
    layer1 = Layer1Config(
        aggregation_method=rule,
        min_updates=config.layer1.min_updates,
        clip_norm=config.layer1.clip_norm,
        byzantine_fraction=0.0,
        num_byzantine=f,
        pre=pre,  # type: ignore[arg-type]
    )
    basket = replace(config.basket, min_clients=min(sizes), max_clients=max(2, *sizes))
    return replace(config, layer1=layer1, basket=basket)


def expected(
    rule: str, pre: tuple[str, ...], size: int, f: int, clients: int, attackers: int, likeness: Likeness
) -> tuple[float, float]:
    """Progress and a back door's pull, in clip norms, with attackers spread over all baskets at random."""
    moved = planted = 0.0
    for liars, share in over_baskets(size, clients, attackers):
        progress, pull = measured(rule, pre, size, f, liars, likeness)
        moved, planted = moved + share * progress, planted + share * pull
    return moved, planted


def over_baskets(size: int, clients: int, attackers: int) -> list[tuple[int, float]]:
    """Numbers of attackers in a basket with the share of baskets that have them, spread at random.

    The hypergeometric number is taken at three points of its mean and variance.
    """
    mean = size * attackers / clients
    spread = math.sqrt(mean * (1.0 - attackers / clients) * (clients - size) / max(1, clients - 1))
    found: dict[int, float] = {}
    for steps in (-math.sqrt(1.5), 0.0, math.sqrt(1.5)):
        liars = min(float(size - 1), float(attackers), max(0.0, mean + steps * spread))
        for number, share in ((math.floor(liars), 1.0 - liars % 1.0), (math.ceil(liars), liars % 1.0)):
            if share:
                found[number] = found.get(number, 0.0) + share / 3.0
    return sorted(found.items())


@lru_cache(maxsize=4096)
def measured(
    rule: str, pre: tuple[str, ...], size: int, f: int, liars: int, likeness: Likeness
) -> tuple[float, float]:
    """What one basket with so many liars makes of drawn rows of length 1.

    Returns:
        The progress: the part of the result along the direction that all honest clients have in
        common, under the worst of `attacks_on`. And the pull of a back door: the result along
        a coordinate that is 0 in every honest row, the most over the attacks that plant it.
    """
    rng = np.random.default_rng([SEED, size, liars])
    moved, planted = [], []
    for _ in range(DRAWS):
        honest = drawn_rows(size - liars, likeness, rng)

        def result(sent: Rows, honest: Rows = honest) -> NDArray[np.float64]:
            rows = np.concatenate([honest, np.broadcast_to(sent, (liars, sent.size))])
            vector = aggregate(rows, method=rule, num_byzantine=f, pre=pre).vector.astype(np.float64)
            return vector / max(1.0, float(np.linalg.norm(vector)))

        tried = attacks_on(honest) if liars else [COMMON]
        moved.append(min(float(result(sent) @ COMMON) for sent in tried))
        planted.append(max(float(result(sent)[-1]) for sent in back_doors_in(honest)) if liars else 0.0)
    return float(np.mean(moved)), float(np.mean(planted))


KINDS = 5
LENGTHS = {Likeness.ALIKE: 0.9, Likeness.MIXED: 0.4, Likeness.UNLIKE: 1.0 / math.sqrt(KINDS)}
"""Of the honest mean, in clip norms."""
LEEWAY = 1.5
"""By which a rule's result may be longer than the honest mean."""
COMMON = np.append(np.full(DIMENSION - 1, 1.0 / math.sqrt(DIMENSION - 1), np.float32), np.float32(0.0))
"""The direction that all honest clients have in common; the last coordinate is for back doors."""


def drawn_rows(count: int, likeness: Likeness, rng: np.random.Generator) -> Rows:
    """Honest rows (count, `DIMENSION`) of length 1; the last coordinate is 0 in all."""
    own = rng.standard_normal((count, DIMENSION))
    own[:, -1] = 0.0
    if likeness is Likeness.UNLIKE:
        kind = rng.permutation(np.arange(count) % KINDS)
        moves = (np.arange(DIMENSION) % KINDS) == kind[:, None]
        return _unit(np.where(moves, COMMON, 0.3 * COMMON[0] * own))
    share = LENGTHS[likeness]
    return _unit(share * COMMON + math.sqrt(1.0 - share**2) * _unit(own))


def _unit(rows: NDArray[np.float64]) -> Rows:
    unit: Rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def attacks_on(honest: Rows) -> list[Rows]:
    """The rows that colluders all send to turn the result, of length 1 at most.

    Minus the common direction, long and short (IPM, Xie et al. 2020; at length 1 a clipped sign flip); the
    honest mean less a multiple of the deviation in every coordinate (ALIE, Baruch et al. 2019), against the
    common direction; the honest row that is furthest from it (mimic, Karimireddy et al. 2022).
    """
    mean, deviation = honest.mean(axis=0), honest.std(axis=0)
    turned = [np.float32(-length) * COMMON for length in (0.3, 1.0)]
    hidden = [_clipped(mean - np.float32(z) * deviation * np.sign(COMMON)) for z in (1.0, 2.0)]
    return [*turned, *hidden, honest[int(np.argmin(honest @ COMMON))]]


def back_doors_in(honest: Rows) -> list[Rows]:
    """The rows that push the last coordinate: alone, and beside the honest mean."""
    rows = []
    for beside, strength in ((0.0, 1.0), (1.0, 0.3), (1.0, 1.0)):
        row = np.float32(beside) * honest.mean(axis=0)
        row[-1] = strength
        rows.append(_clipped(row))
    return rows


def _clipped(row: Rows) -> Rows:
    clipped: Rows = (row / max(1.0, float(np.linalg.norm(row)))).astype(np.float32)
    return clipped


__all__ = [
    "RULES",
    "Choice",
    "Likeness",
    "Recommendation",
    "expected",
    "measured",
    "over_baskets",
    "preference",
    "ratio_of",
    "recommend",
    "with_setting",
]
