"""Robust aggregation against textbook NumPy, what the hardware gives, two cores and other libraries.

``python -m benchmarks layer1 [--format json] [--quick] [--part PART]``. The part ``limits`` (NumPy's rate for
minima and maxima, and growth) is described in `benchmarks._limits`, ``tasks`` (two cores by Ray tasks, and
memory) in `benchmarks._tasks`, ``peers`` (other libraries, where they are installed) in `benchmarks._peers`;
the rest is the part ``core``. The rows are read-only and apart, as they lie in an object store. Times are the
thread's CPU time with one BLAS thread, the least of a few runs; ``ratio`` is ours over the other's: below 1
we are faster, and against a limit of the hardware it says how many times the limit we take.

- *symmetric product*: BLAS's float32 X X^T of cache-resident blocks, the arithmetic that distances need.
- *multiply-adds*: as many of them, n (n + 1) / 2 d, at the rate of BLAS's float32 product of square matrices.
- *memory*: reading every entry once.
- *textbook NumPy*: see `benchmarks._textbook`; where it would take minutes it gets the first columns only,
  and its time is scaled up, which flatters it.

What is being measured stands on the error stream.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any

import numpy as np

from benchmarks import _limits, _peers, _tasks
from benchmarks._textbook import TEXTBOOK
from benchmarks._timing import (
    CASES,
    MOST_ROWS,
    QUICK,
    SIZES,
    Row,
    byzantine,
    cpu_time,
    fits,
    least_time,
    matrix_of,
    progress,
    versus,
)
from scarcity_ray.robust import BLOCK_COLUMNS, aggregate_blocks, inline_blocks, one_blas_thread, row_norms
from scarcity_ray.robust.rules import get_rule

TEXTBOOK_WORK = 1e9
"""n^2 d beyond which the textbook version gets fewer columns."""
FILTER_WORK = 2e8
"""The same for the covariance filter, whose textbook version decomposes the rows up to 2f times."""


def rows(quick: bool = False) -> Iterator[Row]:
    for n, d in QUICK if quick else SIZES:
        if not fits(4 * n * d * 1.5):
            progress(f"skipped: n={n} d={d} (memory)")
            continue
        with one_blas_thread():
            yield from measure_size(n, d)


def measure_size(n: int, d: int) -> Iterator[Row]:
    matrix = matrix_of(n, d)
    matrix.flags.writeable = False
    updates = list(matrix)
    norms = row_norms(updates)
    runs = 9 if n * d <= 10**6 else 3 if n * d <= 10**8 else 1
    product, multiply_adds = symmetric_product(n, d), n * (n + 1) / 2 * d * multiply_add_seconds()
    memory = least_time(lambda: [np.dot(row, row) for row in updates], runs)
    for name, (method, pre) in CASES.items():
        f = byzantine(method, n)
        progress(f"core: {name} n={n} d={d}")
        if n > MOST_ROWS.get(method, n):
            progress(f"skipped: {name} n={n} (exponential)")
            continue
        by_rule = partial(aggregate_blocks, method=method, num_byzantine=f, norms=norms, pre=pre)

        def run(by_rule: Any = by_rule) -> None:
            by_rule(inline_blocks(updates), n)

        seconds = least_time(run, runs)
        case = {"name": name, "n": n, "d": d, "seconds": seconds}
        yield case | versus(seconds, "memory", memory)
        if pre or get_rule(method).needs_distances:
            yield case | versus(seconds, "symmetric product", product)
            yield case | versus(seconds, "multiply-adds", multiply_adds)
        if name in TEXTBOOK:
            yield case | versus(seconds, "textbook NumPy", textbook(name, matrix, f))


def textbook(name: str, matrix: np.ndarray, f: int) -> float:
    n, d = matrix.shape
    columns = min(d, int((FILTER_WORK if name == "caf" else TEXTBOOK_WORK) / (n * max(n, 20))))
    part = np.ascontiguousarray(matrix[:, :columns])
    first = cpu_time(lambda: TEXTBOOK[name](part, f))
    return (first if first > 1.0 else least_time(lambda: TEXTBOOK[name](part, f), 1)) * d / columns


def symmetric_product(n: int, d: int) -> float:
    block = np.random.default_rng(1).standard_normal((n, min(d, BLOCK_COLUMNS)), np.float32)
    repeats = max(1, int(2e7 / block.size))

    def run() -> None:
        for _ in range(repeats):
            block @ block.T

    return least_time(run, 3) / repeats * d / block.shape[1]


@cache
def multiply_add_seconds() -> float:
    """Seconds a float32 multiply-add takes where BLAS is at its best."""
    square = np.random.default_rng(1).standard_normal((1024, 1024), np.float32)
    other = square.copy()
    return least_time(lambda: square @ other, 5) / 1024**3


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "core": rows,
    "limits": _limits.rows,
    "peers": _peers.rows,
    "tasks": _tasks.rows,
}


def run(output: str = "table", quick: bool = False, parts: Sequence[str] = tuple(PARTS)) -> int:
    """Prints every row as soon as it is measured; ``output`` is ``table`` or ``json`` (a line a row)."""
    if output != "json":
        print(f"{'name':<38} {'n':>4} {'d':>8} {'seconds':>10} {'ratio':>8}  versus")
    for row in chain.from_iterable(PARTS[part](quick) for part in parts):
        if output == "json":
            print(json.dumps(row), flush=True)
            continue
        print(
            f"{row['name']:<38} {row['n']:>4} {row['d']:>8} {row['seconds']:>10.5f} {row['ratio']:>8.3f}  "
            f"{row['versus']}",
            flush=True,
        )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--part", choices=sorted(PARTS), help="this part only")
    arguments = parser.parse_args()
    return run(arguments.format, arguments.quick, [arguments.part] if arguments.part else tuple(PARTS))


if __name__ == "__main__":
    raise SystemExit(main())
