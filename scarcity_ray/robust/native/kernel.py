"""The compiled column kernel, where LLVM is installed (the extra ``fast``).

It is compiled when a process first needs it (about 0.05 s). A process without it gets the same bits from
NumPy, so that nodes that differ in the extra agree.

*Guarantees*
    - The kernel's bits are those of NumPy's.
    - Rows are never written to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.mixed_rows import GROUP, Means, MixedRows
from scarcity_ray.robust.arrays.scratch import workspace
from scarcity_ray.robust.arrays.sorting_networks import unit_network
from scarcity_ray.robust.native.column_kernel import TILE, UNIT_FIELDS, kernel_code
from scarcity_ray.robust.native.kernel_mixing import ENTRY_BYTES, GROUP_BYTES, MIXED_COLUMNS, PASS_GROUPS
from scarcity_ray.robust.native.loader import MachineCode, aligned

LINE = 16
"""float32 entries of a cache line: rows begin on one, and blocks are filled up to whole ones."""


class ColumnKernel:
    """The kernel's machine code for this processor; raises what `MachineCode` does."""

    def __init__(self) -> None:
        self._code = MachineCode(
            lambda wide: kernel_code(16 if wide else 8),
            {"columns": "piiippiiiip", "mixed_columns": "piiippiiiipipppp"},
        )

    def __call__(
        self, rows: Sequence[NDArray[np.float32]], start: int, stop: int, *, around_median: bool
    ) -> NDArray[np.float32]:
        """Mean, least and largest of a window of each sorted column; see `columns.window_summary`.

        Args:
            rows: m float32 rows of length b without NaN. `MixedRows` that are means are not formed in memory.
            start: First rank, from 0.
            stop: One past the last, at most m.
            around_median: Whether it is the stop - start values closest to the median instead; start is 0.

        Returns:
            (3, b) float32 in scratch memory of this thread that is valid until the next call.
        """
        means = rows.mixture if isinstance(rows, MixedRows) and isinstance(rows.mixture, Means) else None
        given = rows.rows if isinstance(rows, MixedRows) and means is not None else rows
        num_rows, length = len(rows), len(given[0])
        filled = -(-length // LINE) * LINE
        rest = 0 if means is None else GROUP * means.patterns.shape[1] - len(given)
        block = aligned("kernel rows", (len(given) + rest, filled + LINE), np.float32)
        for row, copied in zip(given, block, strict=False):
            np.copyto(copied[:length], row)
        block[: len(given), length:filled] = 0.0
        block[len(given) :] = 0.0
        tile = aligned("kernel tile", (num_rows + 1, TILE), np.float32)
        tile[num_rows] = np.inf
        units = _encoded(num_rows, *((0, num_rows) if around_median else (start, stop)))
        out = workspace("kernel out", (3, filled), np.float32)
        arguments = (
            block.ctypes.data,
            filled + LINE,
            num_rows,
            filled,
            tile.ctypes.data,
            units.ctypes.data,
            len(units),
            start,
            stop,
            num_rows if around_median else stop,
            out.ctypes.data,
        )
        if means is None:
            self._code("columns", *arguments)
        else:
            offsets = _offsets(means)
            within = aligned("kernel sums in groups", (PASS_GROUPS, GROUP_BYTES // 8), np.float64)
            sums = aligned("kernel sums", (num_rows, MIXED_COLUMNS), np.float64)
            shares = np.ascontiguousarray(means.shares)
            self._code(
                "mixed_columns",
                *arguments,
                offsets.shape[1],
                offsets.ctypes.data,
                within.ctypes.data,
                sums.ctypes.data,
                shares.ctypes.data,
            )
        summary: NDArray[np.float32] = out[:, :length]
        return summary


def _offsets(means: Means) -> NDArray[np.int32]:
    """Where the kernel finds the sum of each group that enters a mixed row, (m, groups) in bytes."""
    places = np.arange(means.patterns.shape[1], dtype=np.int32) % PASS_GROUPS
    return means.patterns * np.int32(ENTRY_BYTES) + places * np.int32(GROUP_BYTES)


@functools.lru_cache(maxsize=256)
def _encoded(num_wires: int, start: int, stop: int) -> NDArray[np.int64]:
    units = [(kind, *(wire * TILE for wire in wires)) for kind, wires in unit_network(num_wires, start, stop)]
    return np.array(units, np.int64).reshape(-1, UNIT_FIELDS)
