"""Clients' metrics under differential privacy: what a client reports, and the mean that releases give of it.

A client that trains measures the model that it was handed on its own data, and reports two *meta-parameters*
for each metric beside its update. Let v in [low, high] be the metric, m = (v - middle) / half its place in
that range, -1 to 1, and q = min(examples, max_examples) / max_examples. The reports are q m and q. They go
with the update through the secure sum, under its noise and its charge: clipped to [-1, 1] and [0, 1] in the
basket, so what a client lies about is bounded as well.

A release gives S = sum a q m + noise and Q = sum a q + noise, where a = w / n for a client of a basket of
weight w with n clients behind its aggregate. So middle + half S/Q estimates the mean of v, each client
weighted by a min(examples, max_examples). Where baskets weigh by size and all their members sent, a is the
same for all clients, and the weights are the capped examples alone; where some did not send, a basket's
clients stand for its members; with ``layer2.weight_by_size: false`` every basket counts alike.

The noises of S and Q are independent, of standard deviations s and t. By the first-order expansion of S/Q the
estimate's standard error is half sqrt(s^2 + (S/Q)^2 t^2) / Q. A ratio of normal variables is nearly normal
once its denominator is over four standard deviations from 0 (Marsaglia 2006, Journal of Statistical Software
16(4)); a smaller Q gives no number.

Guarantees:
    a_client_without_the_metric_weighs_nothing
    no_report_leaves_its_range
    without_noise_it_is_the_weighted_mean
    the_error_is_within_the_stated_one_as_often_as_a_normal_variable
    a_mean_of_a_count_that_noise_dominates_is_unknown
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scarcity_ray_client.errors import UsageError, shown

LEAST_OVER_NOISE = 4.0
"""Standard deviations of its noise by which a denominator must exceed 0."""


@dataclass(frozen=True)
class NoisedMean:
    """A released mean, noise and all, and the standard deviation of that noise."""

    value: float
    sigma: float


@dataclass(frozen=True)
class PrivateMetric:
    """A metric's mean over clients, inside the privacy claim.

    Attributes:
        mean: Within the metric's range; None where noise dominates the count, or nobody has the metric.
        standard_error: Of `mean`, by the noise alone; None without one.
        examples: Examples behind it for each client, `max_examples` at most; noised, so it may be below 0.
        examples_error: Standard deviation of the noise in `examples`.
    """

    mean: float | None
    standard_error: float | None
    examples: float
    examples_error: float

    def __str__(self) -> str:
        if self.mean is None or self.standard_error is None:
            return "unknown: the noise is larger than what clients report"
        return f"{self.mean:.4g} +- {self.standard_error:.2g}"


@dataclass(frozen=True)
class PrivateEvaluation:
    """Which of `Workload.evaluate_client`'s metrics are measured privately.

    Attributes:
        metrics: The least and greatest value of each by name; what lies outside is clipped.
        max_examples: Up to so many examples a client counts by. The closer to what clients have, the less
            noise in proportion; a client with fewer counts for less, one with more counts as this.

    Raises:
        UsageError: If there is no metric, or a value is not accepted.

    >>> accuracy = PrivateEvaluation({"accuracy": (0.0, 1.0)}, max_examples=200)
    >>> accuracy.meta_parameters()
    {'accuracy_times_examples': (-1.0, 1.0), 'accuracy_examples': (0.0, 1.0)}
    >>> accuracy.report({"accuracy": 0.75}, 100)
    {'accuracy_times_examples': 0.25, 'accuracy_examples': 0.5}
    >>> accuracy.report({}, 100)
    {'accuracy_times_examples': 0.0, 'accuracy_examples': 0.0}
    """

    metrics: Mapping[str, tuple[float, float]]
    max_examples: int

    def __post_init__(self) -> None:
        if not isinstance(self.metrics, Mapping) or not self.metrics:
            raise UsageError(f"metrics: {shown(self.metrics)} is not accepted; ranges by name")
        ranges = {name: _range(name, given) for name, given in self.metrics.items()}
        object.__setattr__(self, "metrics", dict(sorted(ranges.items())))
        if not (type(self.max_examples) is int and self.max_examples > 0):
            raise UsageError(f"max_examples: {shown(self.max_examples)} is not accepted; a positive int")
        if len(self.meta_parameters()) < 2 * len(ranges):
            raise UsageError(f"metrics: {sorted(ranges)}: two metrics' meta-parameters have one name")

    def meta_parameters(self) -> dict[str, tuple[float, float]]:
        """The ranges that the federation's configuration must have in ``meta_parameters``."""
        ranges: dict[str, tuple[float, float]] = {}
        for name in self.metrics:
            ranges |= {_product(name): (-1.0, 1.0), _count(name): (0.0, 1.0)}
        return ranges

    def report(self, found: Mapping[str, float], num_examples: int) -> dict[str, float]:
        """What a client reports.

        Args:
            found: Its metrics; one that is missing or not finite weighs nothing.
            num_examples: That they were measured on.
        """
        share = min(max(num_examples, 0), self.max_examples) / self.max_examples
        told: dict[str, float] = {}
        for name, (low, high) in self.metrics.items():
            value = float(found.get(name, math.nan))
            weight = share if math.isfinite(value) else 0.0
            place = (min(max(value, low), high) - low) / (high - low) if weight else 0.5
            told |= {_product(name): weight * (2.0 * place - 1.0), _count(name): weight}
        return told

    def read(self, released: Mapping[str, NoisedMean]) -> dict[str, PrivateMetric]:
        """The metrics of a release, by post-processing.

        Args:
            released: The means of `meta_parameters`, in their units and not clipped.
        """
        return {
            name: self._read(low, high, released[_product(name)], released[_count(name)])
            for name, (low, high) in self.metrics.items()
        }

    def _read(self, low: float, high: float, product: NoisedMean, count: NoisedMean) -> PrivateMetric:
        examples, error = self.max_examples * count.value, self.max_examples * count.sigma
        if not count.value > LEAST_OVER_NOISE * count.sigma:
            return PrivateMetric(None, None, examples, error)
        half, ratio = (high - low) / 2.0, min(max(product.value / count.value, -1.0), 1.0)
        mean = min(max(low + half * (ratio + 1.0), low), high)
        return PrivateMetric(
            mean, half * math.hypot(product.sigma, ratio * count.sigma) / count.value, examples, error
        )


def _product(metric: str) -> str:
    return f"{metric}_times_examples"


def _count(metric: str) -> str:
    return f"{metric}_examples"


def _range(name: object, given: object) -> tuple[float, float]:
    if not (isinstance(name, str) and name):
        raise UsageError(f"metrics: {shown(name)} is not accepted; a metric's name")
    if isinstance(given, tuple | list) and len(given) == 2:
        low, high = given
        if all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) and (
            low < high and math.isfinite(float(high) - float(low))
        ):
            return float(low), float(high)
    raise UsageError(
        f"metrics: {name}: {shown(given)} is not accepted; a finite least value below a finite greatest one"
    )


__all__ = ["LEAST_OVER_NOISE", "NoisedMean", "PrivateEvaluation", "PrivateMetric"]
