"""How far a row agrees with the result, in [0, 1], from the distances in its report.

A row agrees as long as it stands about as far from the result as the middle row does. The yardstick is the
rows' own spread (median and median absolute deviation, which fewer than half of the rows cannot move far),
but never finer than a twentieth of the median distance, so that rows that all stand alike are not told apart
by accident, as few rows would be.

A row stands nearer to a mean that holds it than to what the others make of it, the more so the fewer are
averaged. With a share w in the result, its distance is taken to be 1/(1 - w) of what it is: that to the
weighted mean of the others. So whether a rule selected a row decides nothing: Krum selects one row of n,
whoever is honest.

*Guarantees*
    - Agreement is bounded: in [0, 1], for any distances.
    - Agreement is monotone: a row that stands further off, all else equal, never agrees more.
    - Agreement does not depend on the unit of distance.
    - A row no further off than the middle one agrees entirely; one that is not finite, not at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.outliers import MAD_TO_SIGMA

FULL, NONE = 2.0, 4.0
"""Robust standard deviations above the median up to which a row agrees, and from which on it does not."""

FINEST = 0.05
"""Least standard deviation, relative to the median distance."""


def agreement(
    distances: NDArray[np.float64], shares: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Each row's agreement with the result.

    Args:
        distances: (n,) float64 distances to the result, at least 0; ``inf`` for a row that was masked.
        shares: (n,) float64, each row's share in the result, in [0, 1]; 0 for all by default. A row that is
            the result has distance 0 and the share 1.

    Returns:
        (n,) float64: 1 up to two robust standard deviations above the median distance, 0 from four on, linear
        in between.

    >>> agreement(np.array([1.0, 1.0, 1.0, 1.15, 3.0])).round(2).tolist()
    [1.0, 1.0, 1.0, 0.5, 0.0]
    """
    finite = np.isfinite(distances)
    agreed = np.zeros(len(distances))
    if not finite.any():
        return agreed
    alone = np.ones(len(distances)) if shares is None else np.where(shares < 1.0, 1.0 - shares, 1.0)
    with np.errstate(over="ignore"):
        apart = distances[finite] / alone[finite]
    middle = float(np.median(apart))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(apart - middle)))
    scale = max(spread, FINEST * middle, float(np.finfo(np.float64).tiny))
    excess = np.clip(apart - middle, 0.0, NONE * scale) / scale
    agreed[finite] = np.minimum((NONE - excess) / (NONE - FULL), 1.0)
    return agreed
