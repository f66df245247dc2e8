"""Two aggregation rules of one's own, for `layer1.aggregation_method: custom_rules:NAME`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray import AggregationRule


class MedianOfMeans(AggregationRule):
    """The coordinate-wise median of 2f + 1 groups' means, drawn anew each time (Chen, Su, Xu 2017).

    Each of f Byzantine rows spoils one group at most, so most groups are honest. It states no sensitivity,
    and is charged 2C like every rule without a proof.
    """

    permutation_invariant = False  # which rows share a group is drawn by their place
    translation_equivariant = True
    scale_equivariant = True

    def least_rows(self, num_byzantine: int) -> int:
        """See `AggregationRule.least_rows`."""
        return 2 * num_byzantine + 1

    def aggregate(
        self, rows: NDArray[np.float32], num_byzantine: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """See `AggregationRule.aggregate`."""
        groups = np.array_split(rng.permutation(len(rows)), 2 * num_byzantine + 1)
        means = np.stack([rows[group].mean(axis=0, dtype=np.float64) for group in groups])
        middle: NDArray[np.float64] = np.median(means, axis=0)
        return middle


class ThresholdedMean(AggregationRule):
    """The mean of rows shortened to `radius` (norm thresholding; Sun et al. 2019, section 4).

    Sensitivity: shortening projects a row onto the ball of that radius, so two values of one row end at most
    2 min(radius, C) apart, and the mean moves by that over n.

    Args:
        radius: In the unit of the updates.
    """

    sensitivity_reference = "a projection onto a ball, then a mean: the docstring of ThresholdedMean"

    def __init__(self, radius: float) -> None:
        if not radius > 0.0:
            raise ValueError(f"radius must be positive, got {radius!r}")
        self.radius = radius

    def least_rows(self, num_byzantine: int) -> int:
        """See `AggregationRule.least_rows`."""
        return 2 * num_byzantine + 1

    def sensitivity(self, num_rows: int, num_byzantine: int, clip_norm: float) -> float:
        """See `AggregationRule.sensitivity`."""
        return 2.0 * min(self.radius, clip_norm) / num_rows

    def aggregate(
        self, rows: NDArray[np.float32], num_byzantine: int, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """See `AggregationRule.aggregate`."""
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        factors = np.minimum(1.0, self.radius / np.maximum(norms, 1e-300))
        mean: NDArray[np.float64] = factors @ rows / len(rows)
        return mean
