"""How far apart the clients' states are, judged from nothing but what they released.

Released vectors are y_i = x_i + sigma z_i. Half the squared difference of two of them has the expectation
S + N, where S is the states' spread (the trace of their covariance) and N = sigma^2 d is known: the moment
estimate with known within-variance of DerSimonian and Laird (1986), from successive differences (von Neumann
1941), which need one pass and of which one liar spoils two. Everything here is a function of released
vectors, so it is post-processing and costs no budget.

A wrong S costs: `GossipPlan.mixing_weight` does harm once S is overrated by more than 2, so the estimate is a
lower bound. It takes a quantile of the differences that f liars cannot lift above the honest median, and goes
down from there by `MARGIN` standard errors of what the noise alone does to it. Where noise hides the spread,
S is 0 and nobody moves; what is forgone there is at most about K S / N of the error.

Guarantees:
    - Without spread the lower bound is 0 but for one time in a hundred, whatever f clients release.
    - The lower bound is at most that of the clip norm.
    - Nothing but released vectors enters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.gossip.neighbour_sums import Scales, column_steps, scaled_block
from scarcity_ray.plan import GossipPlan

MARGIN = 3.0
"""Standard errors that the estimate is lowered by."""

DEPENDENCE = 1.5
"""Standard error of the median of m halved squared differences of pure noise over N sqrt(2 / (d m)), at most;
neighbours share vectors (simulated: 1 for m = 1, up to 1.46 else)."""


@dataclass(frozen=True)
class Spread:
    """What released vectors say.

    Attributes:
        lower: Lower bound of the states' spread S, a squared norm; 0 if nothing can be said.
        typical: A squared distance of two honest states, one of them noised, 2 S + N, as released vectors
            suggest it; 0 with fewer than two of them.
    """

    lower: float
    typical: float


def estimate_spread(
    vectors: Sequence[NDArray[np.float32]], scales: Scales, plan: GossipPlan, num_byzantine: int
) -> Spread:
    """Judge the spread of the states behind released vectors.

    Args:
        vectors: m float32 vectors of length d, one a sender, in an order that their values did not choose.
        scales: (m,) factors that clip them to ``plan.receive_norm``.
        plan: Noise scale and clip norm.
        num_byzantine: f, how many of the senders may lie.
    """
    halves = np.sort(successive_differences(vectors, scales, plan.clip_norm)) / 2.0
    honest = len(halves) - 2 * num_byzantine
    if honest < 1:
        return Spread(0.0, 0.0)
    unit, dimension = plan.clip_norm**2, plan.dimension
    noise = plan.noise_energy / unit
    median = float(halves[(honest - 1) // 2] + halves[honest // 2]) / 2.0
    error = DEPENDENCE * max(noise, median) * math.sqrt(2.0 / (dimension * honest)) if noise else 0.0
    lower = median - noise * _chi_square_median(dimension) - MARGIN * error
    return Spread(unit * min(max(0.0, lower), 1.0), unit * max(0.0, 2.0 * median - noise))


def successive_differences(
    vectors: Sequence[NDArray[np.float32]], scales: Scales, unit: float
) -> NDArray[np.float64]:
    """Squared distances of neighbours in the sequence, the last and the first among them, in unit^2.

    Returns:
        (m,) float64; (1,) for two vectors and (0,) for fewer.
    """
    count = len(vectors)
    if count < 2:
        return np.zeros(0)
    squared = np.zeros(count)
    for columns in column_steps(len(vectors[0]), count):
        block = scaled_block("vectors", vectors, columns, scales / unit)
        for first, second in ((slice(1, None), slice(None, -1)), (slice(0, 1), slice(-1, None))):
            difference = block[first] - block[second]
            squared[first] += np.einsum("ij,ij->i", difference, difference)
    return squared if count > 2 else squared[:1]


def _chi_square_median(dimension: int) -> float:
    """Median of a chi-squared variable over its mean (Wilson and Hilferty 1931)."""
    return (1.0 - 2.0 / (9.0 * dimension)) ** 3


__all__ = ["MARGIN", "Spread", "estimate_spread", "successive_differences"]
