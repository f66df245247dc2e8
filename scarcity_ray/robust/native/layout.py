"""Sizes that the compiled kernels and those who prepare their arguments share; without Numba.

A chunk or tile of columns stays in a cache while it is worked on.
"""

from scarcity_ray.robust.arrays.sorting_networks import WIRES

TILE = 128
"""Columns sorted at once: a hundred rows of them nearly fill a first-level cache, and stay in the second."""

UNIT_FIELDS = 1 + WIRES
"""Integers that encode a unit: its kind, and where in the tile each wire begins, in entries."""

MIXED_COLUMNS = 16
"""Columns mixed at once: one look-up of a pattern serves all of them."""

PASS_GROUPS = 13
"""Groups whose sums are formed before the mixed rows add them up: 26 KB of sums."""

CHUNK = 512
"""Columns whose points are formed at once: 4 KiB of a row at most, 200 to 400 KiB of a hundred rows."""

TILE_ROWS = 4
"""Rows of a tile of inner products, whose 16 sums are in registers."""

CHAIN_COLUMNS = 128
"""Columns after which the lanes of a tile's sums are added up: of longer chains the error is larger."""

PAIR_LANES = 16
"""Sums a pair of rows has: two or four vectors of float64, so that additions need not wait for each other."""

TOTALS = 1024
"""Columns whose totals are formed at once by the sum kernel: 8 KiB."""

ROWS_AHEAD = 8
"""Rows between the one that is added and the one that is fetched."""
