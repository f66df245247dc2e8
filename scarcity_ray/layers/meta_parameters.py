"""Meta-parameters: named scalars that clients report beside their updates, and the noised mean of them.

A report is mapped to [-1, 1] by its declared range. A basket takes the plain mean over the clients behind its
aggregate, whatever the aggregation rule selects; a client without a report counts as the middle of the range.
The means are extra coordinates of the basket's vector and get the same noise; `FederationPlan.release` says
how far they are scaled.

Guarantees:
    One client moves a basket's mean by at most two over the number of clients, per parameter.
    what_is_learned_lies_in_the_declared_range
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.errors import UsageError
from scarcity_ray.updates import canonical_report
from scarcity_ray_client import NoisedMean
from scarcity_ray_client.errors import shown

Ranges = Mapping[str, tuple[float, float]]


def check_report(report: object, ranges: Ranges) -> None:
    """Check a report of meta-parameters.

    Raises:
        UsageError: If it is no mapping, or has a name that was not declared.
    """
    if not isinstance(report, Mapping | None):
        raise UsageError(f"meta must map meta-parameters to numbers, got {shown(report)}")
    unknown = [name if isinstance(name, str) else repr(name) for name in report or {} if name not in ranges]
    if unknown:
        raise UsageError(
            f"meta-parameters {shown(sorted(unknown))} are not declared in meta_parameters "
            f"(declared: {sorted(ranges)})"
        )


def encode_report(report: Mapping[str, float] | None, ranges: Ranges) -> NDArray[np.float64]:
    """One client's report as coordinates in [-1, 1], in the order of `ranges`.

    Values are clipped to their range; one that is no finite number counts as not reported.

    Raises:
        UsageError: As `check_report`.

    >>> encode_report({"learning_rate": 0.75}, {"learning_rate": (0.0, 1.0), "decay": (0.0, 2.0)}).tolist()
    [0.5, 0.0]
    """
    check_report(report, ranges)
    told = dict(canonical_report(report or {}))
    coordinates = np.zeros(len(ranges))
    for index, (name, (low, high)) in enumerate(ranges.items()):
        if name in told:
            inside = min(max(told[name], low), high)
            coordinates[index] = np.clip(2.0 * (inside - low) / (high - low) - 1.0, -1.0, 1.0)
    return coordinates


def mean_reports(reports: Sequence[NDArray[np.float64]], num_meta: int) -> NDArray[np.float64]:
    """The mean of encoded reports, float64, shape (num_meta,)."""
    return np.mean(reports, axis=0) if num_meta and len(reports) else np.zeros(num_meta)


def decode_mean(mean: NDArray[np.float64], ranges: Ranges) -> dict[str, float]:
    """The noised mean back in each parameter's own units, clamped to its range (post-processing)."""
    clamped = np.clip(mean, -1.0, 1.0)
    return {
        name: min(high, low + (high - low) * ((float(value) + 1.0) / 2.0))
        for (name, (low, high)), value in zip(ranges.items(), clamped, strict=True)
    }


def unclamped_means(mean: NDArray[np.float64], sigma: float, ranges: Ranges) -> dict[str, NoisedMean]:
    """The noised mean in each parameter's own units, outside its range too, with its noise's deviation.

    Args:
        mean: (k,) on [-1, 1] but for the noise.
        sigma: Standard deviation of the noise on each.
        ranges: k of them.
    """
    return {
        name: NoisedMean(low + (high - low) * ((float(value) + 1.0) / 2.0), sigma * (high - low) / 2.0)
        for (name, (low, high)), value in zip(ranges.items(), mean, strict=True)
    }
