"""Evaluation: clients' metrics put together, early stopping, and the best model.

Metrics that clients send are plain numbers of their data: no noise, no charge, no clip. Whatever is made of
them, a decision to stop included, lies outside the privacy claim (`OUTSIDE_CLAIM` says so to a reader). What
`Workload.evaluate` measures on a test set of the driver's own tells nothing of clients but through the model,
which was released: post-processing.

Guarantees:
    a_mean_weighs_each_client_by_its_examples
    each_client_counts_in_its_own_domain_and_once_overall
    a_client_that_lacks_a_metric_does_not_count_in_its_mean
    the_best_model_is_that_of_the_best_value_and_the_first_of_equals
    it_stops_after_patience_evaluations_in_a_row_without_improvement
    the_machine_changes_nothing_that_it_is_given
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import UsageError
from scarcity_ray_client import checked_metrics
from scarcity_ray_client.errors import shown

OUTSIDE_CLAIM = "Measured on clients' data and sent without noise: outside the privacy claim."
INSIDE_CLAIM = (
    "Measured on clients' data, summed, noised and charged with the release: inside the privacy claim. "
    "The error is the noise's alone."
)


@dataclass(frozen=True)
class ClientEvaluation:
    """What one client measured of a model on its own data.

    Attributes:
        client_id: Whose data.
        domain_id: Its domain.
        metrics: Numbers by name; those that are not finite are left out.
        num_examples: Examples that they were measured on.

    Raises:
        UsageError: For metrics that are no numbers by name, or no positive count of examples.
    """

    client_id: str
    domain_id: str
    metrics: Mapping[str, float]
    num_examples: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", checked_metrics(self.metrics))
        if not (type(self.num_examples) is int and 0 < self.num_examples < 2**63):
            raise UsageError(
                f"client {shown(self.client_id)}: num_examples: {shown(self.num_examples)} is not accepted; "
                "a positive int"
            )


@dataclass(frozen=True)
class MeanMetrics:
    """Clients' metrics in one: means weighted by examples, each over the clients that have the metric.

    The mean of accuracies, log losses or Brier scores is that of all examples. The mean of AUCs, F1s or
    calibration errors is not: it says how well the model does within a client, on average.

    Attributes:
        metrics: Means by name.
        num_examples: Examples behind each mean, by the same names.
        num_clients: Clients behind each mean.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    num_examples: Mapping[str, int] = field(default_factory=dict)
    num_clients: Mapping[str, int] = field(default_factory=dict)


def mean_metrics(evaluations: Iterable[ClientEvaluation]) -> MeanMetrics:
    """All clients' metrics in one; outside the privacy claim.

    >>> small = ClientEvaluation("a", "north", {"accuracy": 0.5}, num_examples=10)
    >>> large = ClientEvaluation("b", "north", {"accuracy": 0.9, "auc": 0.8}, num_examples=30)
    >>> found = mean_metrics([small, large])
    >>> {name: round(value, 3) for name, value in found.metrics.items()}, found.num_examples
    ({'accuracy': 0.8, 'auc': 0.8}, {'accuracy': 40, 'auc': 30})
    """
    reported: dict[str, list[tuple[float, int]]] = {}
    for evaluation in evaluations:
        for name, value in evaluation.metrics.items():
            reported.setdefault(name, []).append((value, evaluation.num_examples))
    names = sorted(reported)
    return MeanMetrics(
        {name: _mean(reported[name]) for name in names},
        {name: sum(count for _, count in reported[name]) for name in names},
        {name: len(reported[name]) for name in names},
    )


def _mean(pairs: Sequence[tuple[float, int]]) -> float:
    """The mean of values by their counts; between the least and the greatest however large they are."""
    total, values = sum(count for _, count in pairs), [value for value, _ in pairs]
    mean = 2.0 * math.fsum(value / 2.0 * (count / total) for value, count in pairs)
    return min(max(mean, min(values)), max(values))


def mean_metrics_by_domain(evaluations: Iterable[ClientEvaluation]) -> dict[str, MeanMetrics]:
    """`mean_metrics` of each domain, in the order of their ids; outside the privacy claim."""
    domains: dict[str, list[ClientEvaluation]] = {}
    for evaluation in evaluations:
        domains.setdefault(evaluation.domain_id, []).append(evaluation)
    return {domain: mean_metrics(domains[domain]) for domain in sorted(domains)}


@dataclass(frozen=True, eq=False)
class BestModel:
    """The best model so far.

    Attributes:
        round_id: After which round.
        value: Of the metric that is watched.
        model: (d,) float32, a read-only copy.
        metrics: All metrics of that evaluation.
    """

    round_id: int
    value: float
    model: NDArray[np.float32]
    metrics: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Progress:
    """Where `EarlyStopping` stands between evaluations.

    Attributes:
        best: None before the first evaluation that has the metric.
        reference: The value that an improvement is measured from.
        waited: Evaluations since the last improvement.
        stop: Why training should stop, as a sentence; None: go on. Once given it stays.
    """

    best: BestModel | None = None
    reference: float | None = None
    waited: int = 0
    stop: str | None = None


@dataclass(frozen=True)
class EarlyStopping:
    """Keeps the best model, and says when training has stopped improving (Prechelt 1998).

    The best model is that of the best value, however small the gain. An improvement, for which patience
    begins anew, is a value better by more than `min_delta` than at the last improvement: many small gains add
    up to one. An evaluation without the metric (NaN, left out) is one without improvement.

    Attributes:
        metric: Which of the evaluation's metrics.
        mode: Whether it should rise (``max``) or fall (``min``).
        patience: Evaluations in a row without improvement, after which to stop; None: never.
        min_delta: What an improvement must exceed, from 0.

    Raises:
        UsageError: For a setting that cannot work.

    >>> stopping, progress = EarlyStopping("accuracy", patience=2), Progress()
    >>> for round_id, accuracy in enumerate([0.7, 0.9, 0.8, 0.9]):
    ...     progress = stopping.step(progress, round_id, {"accuracy": accuracy}, np.full(3, round_id))
    >>> progress.stop
    'accuracy has not improved in 2 evaluations; best 0.9 in round 1'
    >>> progress.best.model
    array([1., 1., 1.], dtype=float32)
    """

    metric: str
    mode: Literal["max", "min"] = "max"
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(self.metric, str) and self.metric):
            raise UsageError(f"metric: {shown(self.metric)} is not accepted; a metric's name")
        if self.mode not in ("max", "min"):
            raise UsageError(f"mode: {shown(self.mode)} is not accepted; max or min")
        if self.patience is not None and not (type(self.patience) is int and self.patience > 0):
            raise UsageError(f"patience: {shown(self.patience)} is not accepted; a positive int, or None")
        if not 0.0 <= number_of("min_delta", self.min_delta) < math.inf:
            raise UsageError(f"min_delta: {shown(self.min_delta)} is not accepted; a number from 0")

    def step(
        self, progress: Progress, round_id: int, metrics: Mapping[str, float], model: ArrayLike
    ) -> Progress:
        """Where things stand after an evaluation.

        Args:
            progress: As before; `Progress()` at first.
            round_id: After which round the model was evaluated.
            metrics: As `Workload.evaluate` gives them.
            model: (d,) that was evaluated.

        Raises:
            UsageError: For metrics that are no numbers by name.
        """
        found = checked_metrics(metrics)
        value, best, reference = found.get(self.metric), progress.best, progress.reference
        if value is not None and (best is None or self._gain(value, best.value) > 0.0):
            kept = np.array(model, dtype=np.float32)
            kept.setflags(write=False)
            best = BestModel(round_id, value, kept, found)
        waited = progress.waited + 1
        if value is not None and (reference is None or self._gain(value, reference) > self.min_delta):
            reference, waited = value, 0
        after = replace(progress, best=best, reference=reference, waited=waited)
        if progress.stop is None and self.patience is not None and waited >= self.patience:
            return replace(after, stop=self._reason(after, found))
        return after

    def _gain(self, value: float, over: float) -> float:
        return value - over if self.mode == "max" else over - value

    def _reason(self, progress: Progress, metrics: Mapping[str, float]) -> str:
        if progress.best is None:
            names = ", ".join(sorted(metrics)) or "none"
            return f"no evaluation of {progress.waited} gave {self.metric} as a finite number; given: {names}"
        return (
            f"{self.metric} has not improved in {progress.waited} evaluations; "
            f"best {progress.best.value:.6g} in round {progress.best.round_id}"
        )


__all__ = [
    "INSIDE_CLAIM",
    "OUTSIDE_CLAIM",
    "BestModel",
    "ClientEvaluation",
    "EarlyStopping",
    "MeanMetrics",
    "Progress",
    "mean_metrics",
    "mean_metrics_by_domain",
]
