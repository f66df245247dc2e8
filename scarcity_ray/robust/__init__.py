"""Byzantine-robust aggregation: n rows in, one vector out, even if f of the rows are arbitrary.

`aggregate(updates, method=..., num_byzantine=...)` does it in this process. Every rule works in two steps:
selection from the n x n distances, then a combination of each column block on its own.

**Where things are**, from the ground up: `arrays` (column blocks, scratch memory, mixed rows, sorting
networks), `native` (kernels that LLVM compiles), `measures` (norms, distances, order statistics), `rules` (a
file a family, pre-aggregation, what each rule tolerates), `outliers` (how far rows are from a result), and
`aggregation`, which drives all of it; `cost_model` estimates how long that takes.

**Computing the blocks elsewhere.** `aggregate_blocks(map_blocks, num_rows, method=..., num_byzantine=...)` is
the same code without access to the rows. ``map_blocks(kernel, *args)`` must return, in block order, what
``kernel(block, *args)`` gives for each block of `column_blocks(d)`, as any iterable that is consumed once.
Kernels are module-level functions and their arguments picklable. A block is an (n, b) float32 array or a list
of n row slices, never written to; its rows are finite. A driver may compute consecutive blocks together in
one task::

    def blocks_in_task(rows, blocks, kernel, args):  # runs in the task
        return [kernel(take_block(rows, block), *args) for block in blocks]

    def map_blocks(kernel, *args):  # runs where the basket is
        tasks = [submit(blocks_in_task, rows, group, kernel, args) for group in groups_of(column_blocks(d))]
        return [part for task in tasks for part in result_of(task)]

A rule that needs distances usually takes a round for them and one to combine; norms that are not given, a
near tie, a bad centre and colluding rows each add one. The other rules take one. The result is bitwise the
same as that of `aggregate` for any grouping, because blocks are fixed, sums run over blocks in order, and
kernels hold BLAS to one thread.
"""

from scarcity_ray.robust.aggregation import AggregationResult, aggregate, aggregate_blocks
from scarcity_ray.robust.arrays.blocks import (
    BLOCK_COLUMNS,
    MapBlocks,
    ScaledRows,
    column_blocks,
    inline_blocks,
    num_columns,
    sliced_rows,
    take_block,
)
from scarcity_ray.robust.arrays.threads import one_blas_thread
from scarcity_ray.robust.cost_model import estimated_seconds
from scarcity_ray.robust.measures.distances import Geometry, gram_block, measure, pairwise, squared_distances
from scarcity_ray.robust.measures.rows import clip_rows, clip_vector, row_norm, row_norms
from scarcity_ray.robust.outliers import OutlierReport, agreement, detect_outliers
from scarcity_ray.robust.rules.base import Rule, Selection, combine_block
from scarcity_ray.robust.rules.iterative import CenteredClipping
from scarcity_ray.robust.rules.plugin import AggregationRule, PluginRule
from scarcity_ray.robust.rules.preaggregation import (
    AdaptiveClipping,
    Bucketing,
    NearestNeighborMixing,
    PreAggregation,
    StaticClipping,
)
from scarcity_ray.robust.rules.registry import configured_rule, get_pre_aggregation, get_rule, least_rows
from scarcity_ray.robust.rules.subset_averaging import NearestToPivot
from scarcity_ray.robust.rules.tolerance import TOLERANCE, Tolerance

__all__ = [
    "BLOCK_COLUMNS",
    "TOLERANCE",
    "AdaptiveClipping",
    "AggregationResult",
    "AggregationRule",
    "Bucketing",
    "CenteredClipping",
    "Geometry",
    "MapBlocks",
    "NearestNeighborMixing",
    "NearestToPivot",
    "OutlierReport",
    "PluginRule",
    "PreAggregation",
    "Rule",
    "ScaledRows",
    "Selection",
    "StaticClipping",
    "Tolerance",
    "aggregate",
    "aggregate_blocks",
    "agreement",
    "clip_rows",
    "clip_vector",
    "column_blocks",
    "combine_block",
    "configured_rule",
    "detect_outliers",
    "estimated_seconds",
    "get_pre_aggregation",
    "get_rule",
    "gram_block",
    "inline_blocks",
    "least_rows",
    "measure",
    "num_columns",
    "one_blas_thread",
    "pairwise",
    "row_norm",
    "row_norms",
    "sliced_rows",
    "squared_distances",
    "take_block",
]
