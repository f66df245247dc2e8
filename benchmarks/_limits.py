"""The coordinate-wise rules against the arithmetic they need, and how Layer 1's parts grow.

Times are the thread's CPU time with one BLAS thread, inline.

- *min/max*: `np.minimum` and `np.maximum` on cache-resident rows, as often as Batcher's pruned network needs
  them. *compiled* is with the compiled kernel (the extra ``fast``), *NumPy* without it. Bulyan's second phase
  is that of n rows, f of them Byzantine, and its arithmetic the sorting of n - 2f rows.
- *a tenth of the columns*, *a tenth of the rows*: the same call on a tenth, so that a ratio of 10 is linear
  growth, and 100 the growth of an n x n matrix. *Gram* is the kernel over all blocks: in float32, which
  settles most selections, and in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import numpy as np

from benchmarks._timing import Row, byzantine, least_time, matrix_of, progress, versus
from scarcity_ray.robust import (
    BLOCK_COLUMNS,
    MapBlocks,
    Selection,
    aggregate_blocks,
    combine_block,
    gram_block,
    inline_blocks,
    one_blas_thread,
    row_norms,
)
from scarcity_ray.robust.arrays.sorting_networks import sorting_network
from scarcity_ray.robust.measures import order_statistics
from scarcity_ray.robust.measures.approximate_distances import approximate_gram_block
from scarcity_ray.robust.measures.order_statistics import Window
from scarcity_ray.robust.rules.bulyan import Bulyan
from scarcity_ray.robust.rules.coordinatewise import CoordinatewiseRule, Median, TrimmedMean

CEILINGS: dict[str, CoordinatewiseRule] = {
    "median": Median(),
    "trimmed_mean": TrimmedMean(),
    "bulyan, second phase": Bulyan(),
}
GROWING_RULES = ("median", "trimmed_mean", "bulyan", "krum")
GROWTH = [(100, 100_000), (100, 1_000_000)]
GRAM_GROWTH = [(200, 100_000), (300, 100_000), (1000, 100_000)]


def rows(quick: bool = False) -> Iterator[Row]:
    with one_blas_thread():
        for n in (20,) if quick else (20, 50, 64, 100):
            yield from ceiling(n, 10_000 if quick else 100_000)
        for n, d in [(20, 10_000)] if quick else GROWTH:
            yield from growth(n, d)
        for n, d in [(50, 10_000)] if quick else GRAM_GROWTH:
            yield from gram_growth(n, d)


def ceiling(n: int, d: int) -> Iterator[Row]:
    blocks = inline_blocks(list(matrix_of(n, d)))
    for name, rule in CEILINGS.items():
        progress(f"limits: {name} n={n} d={d}")
        f = byzantine(rule.name, n)
        entering = n - 2 * f if rule.needs_distances else n
        limit = min_max(entering, rule.window(entering, f), d)
        run = partial(second_phase, blocks, rule, Selection(tuple(range(entering))), f)
        with patch.object(order_statistics, "order_statistics_kernel", lambda: None):
            seconds = least_time(run, 9)
        yield {"name": f"{name}, NumPy", "n": n, "d": d, "seconds": seconds} | versus(
            seconds, "min/max", limit
        )
        if order_statistics.order_statistics_kernel() is None:
            progress("skipped: the compiled kernel (the extra fast is not installed)")
            continue
        compiled = least_time(run, 9)
        case = {"name": f"{name}, compiled", "n": n, "d": d, "seconds": compiled}
        yield case | versus(compiled, "min/max", limit)
        yield case | versus(compiled, "NumPy", seconds)


def second_phase(blocks: MapBlocks, rule: CoordinatewiseRule, selection: Selection, f: int) -> None:
    for _ in blocks(combine_block, rule, selection, f):
        pass


def growth(n: int, d: int) -> Iterator[Row]:
    whole = list(matrix_of(n, d))
    tenth = [row[: d // 10].copy() for row in whole]
    for method in GROWING_RULES:
        progress(f"limits: growth of {method} to n={n} d={d}")
        before = least_time(aggregation(tenth, method), 20)
        after = least_time(aggregation(whole, method), 5)
        case = {"name": f"growth, {method}", "n": n, "d": d, "seconds": after}
        yield case | versus(after, "a tenth of the columns", before)


def aggregation(rows: list[np.ndarray], method: str) -> Callable[[], object]:
    blocks, norms, f = inline_blocks(rows), row_norms(rows), byzantine(method, len(rows))
    return lambda: aggregate_blocks(blocks, len(rows), method=method, num_byzantine=f, norms=norms)


def gram_growth(n: int, d: int) -> Iterator[Row]:
    whole = list(matrix_of(n, d))
    progress(f"limits: growth of the Gram to n={n} d={d}")
    for name, kernel in (("float32", approximate_gram_block), ("float64", gram_block)):
        before = least_time(partial(gram, whole[: n // 10], kernel), 20)
        after = least_time(partial(gram, whole, kernel), 5)
        case = {"name": f"growth, {name} Gram", "n": n, "d": d, "seconds": after}
        yield case | versus(after, "a tenth of the rows", before)


def gram(rows: list[np.ndarray], kernel: Callable[..., object]) -> None:
    for _ in inline_blocks(rows)(kernel, 0):
        pass


def min_max(n: int, window: Window, d: int) -> float:
    """Seconds for the minima and maxima of a network for a window's ranks, at NumPy's cache-resident rate."""
    ranks = (0, n) if window.around_median else window[:2]
    operations = sum(c.keeps_low + c.keeps_high for c in sorting_network(n, *ranks))
    first, second, out = np.random.default_rng(2).standard_normal((3, BLOCK_COLUMNS), np.float32)

    def run() -> None:
        for _ in range(500):
            np.minimum(first, second, out=out)
            np.maximum(first, second, out=out)

    return least_time(run, 5) / 1000 * operations * d / BLOCK_COLUMNS
