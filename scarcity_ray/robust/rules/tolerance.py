"""What each rule tolerates: one table that rules, plans, errors, documents and tests all use.

*Robust* is meant as in Allouah et al. 2023 ("Fixing by Mixing", definition 2): a rule is (f, kappa)-robust
if, for every set S of n - f rows with mean m, |result - m|^2 <= kappa var, where var is the mean of |x_i -
m|^2 over S. No rule has a kappa below f / (n - 2f). Bounds that no paper gives for the rule exactly as it is
defined here are proved in the docstring of their function.

Centred clipping can have no kappa: from the zero vector it moves by at most its radius a step, so equal rows
further away than that leave an error although var is zero. Its paper's bound holds for a start near m and a
radius chosen from the variance, which is unknown here. MoNNA has a bound only in the distances to its pivot,
and only if that is honest (`NearestToPivot`); the weighted mean has none.

Guarantees:
    Every rule has an entry.
    Each bound holds for rows found by search.
    No bound is below f / (n - 2f).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How many Byzantine rows a rule tolerates, and its bound.

    Attributes:
        rows_per_byzantine: a of the least n, a f + b.
        rows_besides: b.
        kappa: The proven bound as a function of (n, f), for n of at least the least n; None if none is known.
        reference: Where least n and bound come from.
    """

    rows_per_byzantine: int
    rows_besides: int
    kappa: Callable[[int, int], float] | None
    reference: str

    @property
    def breakdown(self) -> float:
        """The share of Byzantine rows that the rule tolerates among many; 0 if it tolerates none."""
        return 1.0 / self.rows_per_byzantine if self.rows_per_byzantine else 0.0

    def least_rows(self, num_byzantine: int) -> int:
        """Rows without which the rule does not tolerate that many Byzantine ones."""
        return self.rows_per_byzantine * num_byzantine + self.rows_besides


def least_kappa(num_rows: int, num_byzantine: int) -> float:
    """F / (n - 2f), below which no rule's kappa can be (Allouah et al. 2023)."""
    return num_byzantine / (num_rows - 2 * num_byzantine)


def trimmed_mean_kappa(n: int, f: int) -> float:
    """6 f / (n - 2f) (1 + f / (n - 2f)) (Allouah et al. 2023, table 1)."""
    return 6.0 * f / (n - 2 * f) * (1.0 + f / (n - 2 * f))


def median_kappa(n: int, f: int) -> float:
    """4 (1 + f / (n - 2f))^2, for both medians (Allouah et al. 2023, table 1)."""
    return 4.0 * (1.0 + f / (n - 2 * f)) ** 2


def krum_kappa(n: int, f: int) -> float:
    """(3 + 2 sqrt 2) (n - f) / (n - 2f - 1), for Krum and Multi-Krum with n - f - 2 neighbours.

    The m lowest scores are on average at most the honest ones', and an honest score is at most the row's mean
    squared distance to the other honest rows times n - f - 2. On average over S that makes at most 2 |S| var.
    A selected row x and its neighbours include h >= n - 2f - 1 honest rows x_j, for each of which |x - m|^2
    <= (1 + a) |x - x_j|^2 + (1 + 1/a) |x_j - m|^2. Averaging over them, |x - m|^2 <= ((1 + a) 2 + (1 + 1/a))
    |S| var / h, least at a = 1 / sqrt 2. A mean of several such rows is no further (Jensen).
    """
    return (3.0 + 2.0 * math.sqrt(2.0)) * (n - f) / (n - 2 * f - 1)


def bulyan_kappa(n: int, f: int) -> float:
    """(n - f) (4 / (n - 3f) + 12 / (n - 4f)), whichever n - 2f rows are selected.

    Per coordinate, let y be the median of the selected values. At least (n - 2f) / 2 of them are on y's side
    away from m, and (n - 4f) / 2 of those are honest, so (y - m)^2 <= 2 (n - f) / (n - 4f) var. The n - 4f
    values closest to y are no further from y than the t >= n - 3f honest selected ones, so their mean z has
    (z - y)^2 <= (1/t) sum (x - y)^2 <= 2 (n - f) / (n - 3f) var + 2 (y - m)^2. At last (z - m)^2 <= 2 (z -
    y)^2 + 2 (y - m)^2, and coordinates add up.
    """
    return (n - f) * (4.0 / (n - 3 * f) + 12.0 / (n - 4 * f))


def meamed_kappa(n: int, f: int) -> float:
    """2 + 8 (n - f) / (n - 2f).

    As for Bulyan with all n rows: the median y has (y - m)^2 <= 2 (n - f) / (n - 2f) var, and the n - f
    values closest to y are no further from it than S is: (z - y)^2 <= var + (y - m)^2.
    """
    return 2.0 + 8.0 * (n - f) / (n - 2 * f)


def mda_kappa(n: int, f: int) -> float:
    """8 f^2 / (n - f).

    The chosen set differs from S in q <= f rows and shares one with it, so that each exchanged pair is at
    most the two diameters apart, and the chosen one's is the smaller: |z - m| <= 2 f / (n - f) diam(S)
    (Farhadkhani et al. 2022). And diam(S)^2 <= 2 (n - f) var.
    """
    return 8.0 * f * f / (n - f)


def caf_kappa(n: int, f: int) -> float:
    """(sqrt(2 L) + sqrt(L + 1))^2 f / (n - 2f) with L = 2 (n - f) / (n - 2f); f = 0 gives 0.

    Let s be the greatest variance of S along a direction, so s <= var, and V, B the weight left on S and off
    it. While a step takes less weight from S than from the others, V >= n - 2f + B. Steps cannot all do so:
    n - 2f of the weight is left only after 2f were taken. So take the first that does not. Along its
    direction the deviations off S make up at most half, which bounds its greatest variance l: with A = (n -
    f) s, those within S are at most A V / (V + B) + B l, so (V + B) l <= 2 A + 2 B l, hence l <= L s. Means
    of nested weightings, the outer of weight w and variance l, differ by at most sqrt(l r / (w - r)) if r is
    taken between them (Cauchy-Schwarz). There, the mean is within sqrt(l B / V) of S's weighted mean, and
    that within sqrt(s (n - f - V) / V) of m: together sqrt((L + 1) s f / (n - 2f)). The result's variance is
    no greater than l. If it comes earlier, the same holds of it; if later, at most 2f more were taken, and
    n - 2f are left: sqrt(2 f l / (n - 2f)) more.
    """
    least = 2.0 * (n - f) / (n - 2 * f)
    return (math.sqrt(2.0 * least) + math.sqrt(least + 1.0)) ** 2 * f / (n - 2 * f)


def mean_kappa(n: int, f: int) -> float:
    """0 without Byzantine rows; unbounded with one."""
    return 0.0 if f == 0 else math.inf


def nnm_kappa(num_rows: int, num_byzantine: int, kappa: float) -> float:
    """8 f / (n - f) (kappa + 1): a rule's bound after nearest-neighbour mixing (Allouah et al. 2023)."""
    return 8.0 * num_byzantine / (num_rows - num_byzantine) * (kappa + 1.0)


TOLERANCE: dict[str, Tolerance] = {
    "mean": Tolerance(0, 1, mean_kappa, "one row moves it anywhere"),
    "weighted": Tolerance(0, 1, None, "one row moves it anywhere"),
    "median": Tolerance(2, 1, median_kappa, "Yin et al. 2018; Allouah et al. 2023"),
    "trimmed_mean": Tolerance(2, 1, trimmed_mean_kappa, "Yin et al. 2018; Allouah et al. 2023"),
    "krum": Tolerance(2, 3, krum_kappa, "Blanchard et al. 2017, proposition 4.2"),
    "multi_krum": Tolerance(2, 3, krum_kappa, "Blanchard et al. 2017"),
    "bulyan": Tolerance(4, 3, bulyan_kappa, "El Mhamdi, Guerraoui, Rouault 2018, section 4"),
    "geometric_median": Tolerance(2, 1, median_kappa, "Pillutla et al. 2022; Allouah et al. 2023"),
    "centered_clipping": Tolerance(10, 1, None, "Karimireddy et al. 2021, theorem III: f below n / 10"),
    "meamed": Tolerance(2, 1, meamed_kappa, "Xie et al. 2018"),
    "mda": Tolerance(2, 1, mda_kappa, "El Mhamdi et al. 2021; Farhadkhani et al. 2022"),
    "caf": Tolerance(2, 1, caf_kappa, "Allouah et al. 2025, algorithm 2"),
    "monna": Tolerance(2, 1, None, "Farhadkhani et al. 2023: only while its pivot is honest"),
}
