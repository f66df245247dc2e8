"""The compiled means and weighted sums of rows, where LLVM is installed (the extra ``fast``).

NumPy adds float32 rows to float64 totals by way of a buffer; the kernel takes a third to a half of its time,
which is the memory's.

*Guarantees*
    - The kernel's bits are those of NumPy's.
    - Rows are never written to.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.blocks import Rows, Vector, contiguous_rows
from scarcity_ray.robust.arrays.scratch import workspace
from scarcity_ray.robust.native.loader import MachineCode
from scarcity_ray.robust.native.sum_kernel import CHUNK, sum_code


class SumKernel:
    """The kernel's machine code for this processor; raises what `MachineCode` does."""

    def __init__(self) -> None:
        self._code = {
            weighted: MachineCode(partial(_assembly, weighted), {"sum": "piippp"})
            for weighted in (False, True)
        }

    def __call__(self, rows: Rows, weights: NDArray[np.float64] | None) -> Vector:
        """Sum of weights[i] * rows[i], or the mean without weights; see `linear.weighted_sum`.

        Args:
            rows: m >= 1 float32 rows of length b.
            weights: (m,) float64, or None for 1/m each.

        Returns:
            (b,) float32, rounded once from float64.
        """
        rows, addresses = contiguous_rows(rows)
        shares = None if weights is None else np.ascontiguousarray(weights, np.float64)
        totals = workspace("totals", (CHUNK,), np.float64)
        result = np.empty(len(rows[0]), np.float32)
        self._code[shares is not None](
            "sum",
            addresses.ctypes.data,
            len(addresses),
            len(result),
            0 if shares is None else shares.ctypes.data,
            totals.ctypes.data,
            result.ctypes.data,
        )
        return result


def _assembly(weighted: bool, has_wide_vectors: bool) -> str:
    return sum_code(16 if has_wide_vectors else 8, weighted=weighted)
