"""The compiled column kernel: sorts tiles of columns and averages a window of each.

What it computes, in the words of `order_statistics.window_summary`, is defined by the NumPy code there. A
process without it gets the same bits from NumPy, so that nodes that differ in the extra ``fast`` agree. It
sorts by a network of units (`sorting_networks.bitonic_network`). The code is `native.columns`.

Means of rows (`mixed_rows.Means`) are formed straight in the tile that is sorted, in the order that
`Means.sums` defines: all sums of `GROUP` rows once, then one of them a group for each mixed row. The sums of
`PASS_GROUPS` groups over `MIXED_COLUMNS` columns stay in the first-level cache; where there are more groups,
the mixed rows' sums so far wait in memory.

Guarantees:
    The kernel's bits are those of NumPy's.
    Rows are never written to.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.mixed_rows import GROUP, PATTERNS, Means, MixedRows
from scarcity_ray.robust.arrays.sorting_networks import bitonic_network
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.layout import MIXED_COLUMNS, PASS_GROUPS, TILE
from scarcity_ray.robust.native.loader import aligned, compiled

LINE = 16
"""float32 entries of a cache line: rows begin on one, and blocks are filled up to whole ones."""

GROUP_ENTRIES = PATTERNS * MIXED_COLUMNS
"""float64 entries of the sums of a group."""


class OrderStatisticsKernel:
    """The kernel's machine code for this processor; raises what `compiled` does."""

    def __init__(self) -> None:
        self._code = compiled(
            "columns", {"sort_and_average": "fiifniiif", "mix_sort_and_average": "fiifniiifmddd"}
        )

    def __call__(
        self, rows: Sequence[NDArray[np.float32]], start: int, stop: int, *, around_median: bool
    ) -> NDArray[np.float32]:
        """Mean, least and largest of a window of each sorted column; see `order_statistics.window_summary`.

        `MixedRows` that are means are not formed in memory. Around the median, start is 0.

        Returns:
            (3, b) float32 in scratch memory that is valid until this thread's next call.
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
            *(block.reshape(-1), filled + LINE, num_rows, tile.reshape(-1), units),
            *(start, stop, num_rows if around_median else stop, out.reshape(-1)),
        )
        if means is None:
            self._code["sort_and_average"](*arguments)
        else:
            within = aligned("kernel sums in groups", (PASS_GROUPS, GROUP_ENTRIES), np.float64)
            sums = aligned("kernel sums", (num_rows, MIXED_COLUMNS), np.float64)
            self._code["mix_sort_and_average"](
                *arguments, _offsets(means), within.reshape(-1), sums.reshape(-1), np.array(means.shares)
            )
        summary: NDArray[np.float32] = out[:, :length]
        return summary


def _offsets(means: Means) -> NDArray[np.int64]:
    """Where the sums of groups begin that enter each mixed row, (m, groups)."""
    places = np.arange(means.patterns.shape[1]) % PASS_GROUPS
    offsets = means.patterns.astype(np.int64) * MIXED_COLUMNS + places * GROUP_ENTRIES
    return np.ascontiguousarray(offsets)


@functools.lru_cache(maxsize=256)
def _encoded(num_wires: int, start: int, stop: int) -> NDArray[np.int64]:
    units = [
        (kind, *(wire * TILE for wire in wires)) for kind, wires in bitonic_network(num_wires, start, stop)
    ]
    return np.array(units, np.int64).reshape(-1)
