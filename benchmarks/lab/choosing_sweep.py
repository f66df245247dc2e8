"""Rules under attack and noise in many federations: what each comes to, and what `plan --recommend` expects.

Five classes of Gaussian examples and softmax regression, so that clients, coordinates and their likeness can
be chosen at will. Every client sends its gradient step, clipped; baskets are dealt out at random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab.releases import Releases, Rows
from scarcity_ray.config import (
    AggregationMethod,
    BasketConfig,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
    stream,
)
from scarcity_ray.forecast import Forecast, solve_for_rounds
from scarcity_ray.forecast.choosing import Likeness, expected, ratio_of
from scarcity_ray.plan import make_plan

CLASSES, EXAMPLES, PER_BASKET, ROUNDS, RATE = 5, 20, 10, 10, 2.0
DELTA = 1e-5
CLIP_QUANTILE = 0.3
MARGIN = 2.5
"""Distance of a class's centre from the origin, in standard deviations of its examples."""
RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("mean", ()),
    ("trimmed_mean", ()),
    ("median", ()),
    ("geometric_median", ()),
    ("multi_krum", ()),
    ("trimmed_mean", ("nnm",)),
)
ATTACKS = ("turned", "hidden")
"""Minus the honest mean's direction at the clip norm; the honest mean less a deviation and a half (ALIE)."""


@dataclass(frozen=True)
class Cell:
    """A federation of the sweep: who takes part, the budget, and how the attackers attack."""

    clients: int
    features: int
    epsilon: float
    share: float
    likeness: Likeness
    per_basket: int = PER_BASKET
    seed: int = 0

    @property
    def dimension(self) -> int:
        """Of the model: a weight for each feature, trigger and bias, for each class."""
        return CLASSES * (self.features + 2)

    @property
    def attackers(self) -> int:
        """Of all clients."""
        return round(self.share * self.clients)

    @property
    def num_byzantine(self) -> int:
        """f of a basket: the attackers' share and one more, as far as Multi-Krum allows."""
        if not self.share:
            return 0
        return min(math.ceil(self.share * self.per_basket) + 1, (self.per_basket - 3) // 2)


@dataclass(frozen=True)
class Result:
    """What a rule came to in a cell.

    Attributes:
        accuracy: On new examples, under the worst of the attacks that were run.
        planted: Share of new examples of other classes that a trigger turns into class 0.
        expected: As `plan --recommend` has it: signal over noise of all rounds, and the signal in clip norms,
            which decides without noise and where no signal is left.
    """

    rule: str
    accuracy: float
    planted: float
    expected: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Data:
    """Examples (clients, m, features + 2), of which the last two are trigger and bias, and labels."""

    features: Rows
    labels: NDArray[np.int64]
    test_features: Rows
    test_labels: NDArray[np.int64]


@lru_cache(maxsize=2)
def data_of(clients: int, features: int, likeness: Likeness, seed: int) -> Data:
    rng = stream(seed, "choosing", clients, features)
    centres = rng.standard_normal((CLASSES, features))
    centres *= MARGIN / np.linalg.norm(centres, axis=1, keepdims=True)
    labels = rng.integers(CLASSES, size=(clients, EXAMPLES))
    own = np.arange(clients)[:, None] % CLASSES
    kept = {Likeness.ALIKE: 0.0, Likeness.MIXED: 0.5, Likeness.UNLIKE: 1.0}[likeness]
    labels = np.where(rng.random(labels.shape) < kept, own, labels)
    test_labels = rng.integers(CLASSES, size=1000)

    def examples(of: NDArray[np.int64]) -> Rows:
        drawn = np.zeros((*of.shape, features + 2), np.float32)
        drawn[..., :features] = (centres[of] + rng.standard_normal((*of.shape, features))) / MARGIN
        drawn[..., -1] = 1.0
        return drawn

    return Data(examples(labels), labels, examples(test_labels), test_labels)


def gradients(data: Data, model: NDArray[np.float64]) -> Rows:
    """Minus each client's gradient, (clients, d) float32."""
    weights = model.reshape(-1, CLASSES).astype(np.float32)
    scores = data.features @ weights
    scores -= scores.max(axis=-1, keepdims=True)
    chances = np.exp(scores)
    chances /= chances.sum(axis=-1, keepdims=True)
    errors = np.eye(CLASSES, dtype=np.float32)[data.labels] - chances
    steps: Rows = np.swapaxes(data.features, 1, 2) @ errors / np.float32(EXAMPLES)
    return steps.reshape(len(steps), -1)


def settings(cell: Cell, rule: str, pre: tuple[str, ...], clip_norm: float) -> HierarchicalFederationConfig:
    """The federation's settings."""
    config = HierarchicalFederationConfig(
        basket=BasketConfig(min_clients=cell.per_basket, max_clients=cell.per_basket),
        layer1=Layer1Config(
            aggregation_method=AggregationMethod(rule),
            pre=pre,  # type: ignore[arg-type]
            clip_norm=clip_norm,
            num_byzantine=cell.num_byzantine,
        ),
        layer2=Layer2Config(central_dp_epsilon=cell.epsilon, central_dp_delta=DELTA, clip_norm=clip_norm),
        total_epsilon=cell.epsilon,
        total_delta=DELTA,
        gossip_budget_share=0.0,
        vector_dim=cell.dimension,
    )
    return solve_for_rounds(config, ROUNDS)


def sent(attack: str, rows: Rows, byzantine: NDArray[np.bool_], clip_norm: float) -> Rows:
    """The rows that a federation gets; attackers know all honest ones."""
    if not byzantine.any():
        return rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    honest = (rows * np.minimum(1.0, clip_norm / np.maximum(norms, 1e-12)))[~byzantine]
    mean = honest.mean(axis=0)
    if attack == "turned":
        row = -mean * (clip_norm / np.linalg.norm(mean))
    elif attack == "hidden":
        row = mean - 1.5 * honest.std(axis=0) * np.sign(mean)
    else:
        row = mean.copy()
        trigger = row.reshape(-1, CLASSES)[-2]
        trigger[:] = -1.0
        trigger[0] = CLASSES - 1.0
        trigger *= clip_norm / np.linalg.norm(trigger)
    made = rows.copy()
    made[byzantine] = row
    return made


def trained(
    cell: Cell, rule: str, pre: tuple[str, ...], attack: str, clip_norm: float
) -> tuple[float, float]:
    """Accuracy and the share that a trigger turns, of the mean of the models of the rounds' second half."""
    data = data_of(cell.clients, cell.features, cell.likeness, cell.seed)
    rng = stream(cell.seed, "choosing", attack, rule)
    order = stream(cell.seed, "places").permutation(cell.clients)
    byzantine = np.zeros(cell.clients, np.bool_)
    byzantine[order[: cell.attackers]] = True
    baskets = stream(cell.seed, "baskets").permutation(np.arange(cell.clients) // cell.per_basket)
    releases = Releases(make_plan(settings(cell, rule, pre, clip_norm)), baskets)
    model, average = np.zeros(cell.dimension), np.zeros(cell.dimension)
    for number in range(ROUNDS):
        rows = sent(attack, gradients(data, model), byzantine, clip_norm)
        delta, sigma = releases.of(rows)
        model += RATE / clip_norm * (delta + sigma * rng.standard_normal(delta.size))
        if 2 * number >= ROUNDS:
            average += model
    weights = average.reshape(-1, CLASSES)
    told = (data.test_features @ weights).argmax(axis=1)
    others = data.test_labels != 0
    opened = data.test_features[others]
    opened[:, -2] = 1.0
    turned = (opened @ weights).argmax(axis=1) == 0
    return float((told == data.test_labels).mean()), float(turned.mean())


def run(
    cell: Cell, attacks: Sequence[str] = ATTACKS, rules: Sequence[tuple[str, tuple[str, ...]]] = RULES
) -> Iterator[Result]:
    """Every rule, with clip norm at a quantile of the honest clients' first norms."""
    start = gradients(
        data_of(cell.clients, cell.features, cell.likeness, cell.seed), np.zeros(cell.dimension)
    )
    clip_norm = float(np.quantile(np.linalg.norm(start, axis=1), CLIP_QUANTILE))
    sizes = (cell.per_basket,) * (cell.clients // cell.per_basket)
    for rule, pre in rules:
        config = settings(cell, rule, pre, clip_norm)
        found = [
            trained(cell, rule, pre, attack, clip_norm) for attack in attacks[: None if cell.share else 1]
        ]
        forecast = Forecast(config, sizes, ROUNDS)
        moved, _ = expected(
            rule, pre, cell.per_basket, cell.num_byzantine, cell.clients, cell.attackers, cell.likeness
        )
        noise = forecast.noise_norm / forecast.signal_bound
        accuracy, planted = min(a for a, _ in found), max(p for _, p in found)
        yield Result(named((rule, pre)), accuracy, planted, ratio_of(moved, noise, ROUNDS))


def named(rule: tuple[str, tuple[str, ...]]) -> str:
    """A rule with what goes before it."""
    return " + ".join((*rule[1], rule[0]))


def at_seed(cell: Cell, seed: int) -> Cell:
    """The same federation with other data, attackers and noise."""
    return replace(cell, seed=seed)
