"""The compiled means and weighted sums of rows; the code is `native.sums`.

Columns are taken `TOTALS` at a time, so that their float64 totals stay in the first-level cache; the row
`ROWS_AHEAD` places on is fetched while one is added. Each operation is the IEEE one, in the order of the
rows, and the bits are NumPy's for any number of lanes. NumPy adds float32 rows to float64 totals by way of a
buffer; the kernel takes half to two thirds of its time, which is the memory's.

Guarantees:
    The compiled kernel's bits are those of NumPy's.
    Rows are never written to.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Rows, Vector, contiguous_rows
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.layout import TOTALS
from scarcity_ray.robust.native.loader import compiled


class SumKernel:
    """The kernel's machine code for this processor; raises what `compiled` does."""

    def __init__(self) -> None:
        self._code = compiled("sums", {"mean": "ndf", "weighted_sum": "nddf"})

    def __call__(self, rows: Rows, weights: NDArray[np.float64] | None) -> Vector:
        """Sum of weights[i] * rows[i], or the mean without weights; see `mean.weighted_sum`."""
        rows, addresses = contiguous_rows(rows)
        totals = workspace("totals", (TOTALS,), np.float64)
        result = np.empty(len(rows[0]), np.float32)
        if weights is None:
            self._code["mean"](addresses, totals, result)
        else:
            self._code["weighted_sum"](addresses, np.array(weights, np.float64), totals, result)
        return result
