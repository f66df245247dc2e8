"""Robust aggregation against textbook NumPy, what the hardware gives, two cores and other libraries.

``python -m benchmarks layer1 [--format json] [--quick] [--part PART]``. The part ``limits`` (NumPy's rate for
minima and maxima, and growth) is described in `benchmarks._limits`, ``tasks`` (two cores by Ray tasks, and
memory) in `benchmarks._tasks`, ``peers`` (other libraries, where they are installed) in `benchmarks._peers`;
the rest is the part ``core``. The rows are read-only and apart, as they lie in an object store. Times are the
thread's CPU time with one BLAS thread, the least of a few runs; ``ratio`` is ours over the other's: below 1
we are faster, and against a limit of the hardware it says how many times the limit we take.

- *symmetric product*: float32 X X^T of cache-resident blocks, the arithmetic that distances need.
- *memory*: reading every entry once.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from benchmarks import _limits, _peers, _tasks
from benchmarks._timing import BYZANTINE_SHARE, Row, least_time, versus
from scarcity_ray.robust import BLOCK_COLUMNS, aggregate_blocks, inline_blocks, one_blas_thread, row_norms

SIZES = [(n, d) for d in (10_000, 100_000, 1_000_000) for n in (20, 50, 100, 300)]
QUICK = [(20, 10_000), (50, 10_000)]
MOST_TEXTBOOK_WORK = 3e9
"""n^2 d beyond which the textbook version, which takes minutes then, is left out."""

DISTANCE_RULES = ("krum", "multi_krum", "bulyan", "geometric_median", "centered_clipping", "mda", "caf")
RULES = (
    "mean",
    "median",
    "trimmed_mean",
    "meamed",
    "krum",
    "multi_krum",
    "bulyan",
    "geometric_median",
    "centered_clipping",
    "mda",
    "caf",
)


def rows(quick: bool = False) -> Iterator[Row]:
    for n, d in QUICK if quick else SIZES:
        if 4 * n * d * 1.5 > os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
            continue
        with one_blas_thread():
            yield from measure_size(n, d)


def measure_size(n: int, d: int) -> Iterator[Row]:
    matrix = np.random.default_rng(0).standard_normal((n, d), np.float32)
    matrix.flags.writeable = False
    updates = list(matrix)
    norms = row_norms(updates)
    f = int(BYZANTINE_SHARE * n)
    runs = 9 if n * d <= 10**6 else 4
    product = symmetric_product(n, d)
    memory = least_time(lambda: [np.dot(row, row) for row in updates], runs)
    for method in RULES:
        if method == "mda" and n > 100:
            continue
        f_rule = n // 10 - 1 if method == "centered_clipping" else f
        seconds = least_time(
            lambda method=method, f=f_rule: aggregate_blocks(
                inline_blocks(updates), n, method=method, num_byzantine=f, norms=norms
            ),
            runs,
        )
        case = {"name": method, "n": n, "d": d, "seconds": seconds}
        yield case | versus(seconds, "memory", memory)
        if method in DISTANCE_RULES:
            yield case | versus(seconds, "symmetric product", product)
        if method in TEXTBOOK and n * d * max(n, 20) <= MOST_TEXTBOOK_WORK:
            textbook = least_time(lambda method=method: TEXTBOOK[method](matrix, f), 1)
            yield case | versus(seconds, "textbook NumPy", textbook)
    mixed = least_time(
        lambda: aggregate_blocks(
            inline_blocks(updates), n, method="trimmed_mean", num_byzantine=f, norms=norms, pre=["nnm"]
        ),
        runs,
    )
    case = {"name": "nnm + trimmed_mean", "n": n, "d": d, "seconds": mixed}
    yield case | versus(mixed, "symmetric product", product)


def symmetric_product(n: int, d: int) -> float:
    block = np.random.default_rng(1).standard_normal((n, min(d, BLOCK_COLUMNS)), np.float32)
    repeats = max(1, int(2e7 / block.size))

    def run() -> None:
        for _ in range(repeats):
            block @ block.T

    return least_time(run, 3) / repeats * d / block.shape[1]


def textbook_distances(matrix: np.ndarray) -> np.ndarray:
    return np.array([np.square(matrix - row).sum(axis=1) for row in matrix])


def textbook_krum(matrix: np.ndarray, f: int) -> np.ndarray:
    return matrix[np.argmin(textbook_scores(textbook_distances(matrix), len(matrix) - f - 2))]


def textbook_multi_krum(matrix: np.ndarray, f: int) -> np.ndarray:
    scores = textbook_scores(textbook_distances(matrix), len(matrix) - f - 2)
    return matrix[np.argsort(scores)[: len(matrix) - f - 2]].mean(axis=0)


def textbook_scores(distances: np.ndarray, neighbours: int) -> np.ndarray:
    return np.sort(distances, axis=1)[:, 1 : 1 + neighbours].sum(axis=1)


def textbook_bulyan(matrix: np.ndarray, f: int) -> np.ndarray:
    distances, left, picked = textbook_distances(matrix), list(range(len(matrix))), []
    for _ in range(len(matrix) - 2 * f):
        scores = textbook_scores(distances[np.ix_(left, left)], max(1, len(left) - f - 2))
        picked.append(left.pop(int(np.argmin(scores))))
    chosen = matrix[picked]
    nearest = np.argsort(np.abs(chosen - np.median(chosen, axis=0)), axis=0)[: len(matrix) - 4 * f]
    return np.take_along_axis(chosen, nearest, axis=0).mean(axis=0)


def textbook_meamed(matrix: np.ndarray, f: int) -> np.ndarray:
    nearest = np.argsort(np.abs(matrix - np.median(matrix, axis=0)), axis=0)[: len(matrix) - f]
    return np.take_along_axis(matrix, nearest, axis=0).mean(axis=0)


def textbook_geometric_median(matrix: np.ndarray, f: int) -> np.ndarray:
    point = matrix.mean(axis=0)
    for _ in range(20):
        weights = 1.0 / np.maximum(np.linalg.norm(matrix - point, axis=1), 1e-6)
        point = weights @ matrix / weights.sum()
    return point


TEXTBOOK: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "mean": lambda matrix, f: matrix.mean(axis=0),
    "median": lambda matrix, f: np.median(matrix, axis=0),
    "trimmed_mean": lambda matrix, f: np.sort(matrix, axis=0)[f : len(matrix) - f].mean(axis=0),
    "meamed": textbook_meamed,
    "krum": textbook_krum,
    "multi_krum": textbook_multi_krum,
    "bulyan": textbook_bulyan,
    "geometric_median": textbook_geometric_median,
}


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
