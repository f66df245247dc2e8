"""Sizes, rules, times and rows that the parts of the Layer 1 benchmark share."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
BYZANTINE_SHARE = 0.2

SIZES = [(n, d) for d in (10_000, 100_000, 1_000_000) for n in (20, 50, 100, 300)]
QUICK = [(20, 10_000), (50, 10_000)]

CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "mean": ("mean", ()),
    "median": ("median", ()),
    "trimmed_mean": ("trimmed_mean", ()),
    "meamed": ("meamed", ()),
    "krum": ("krum", ()),
    "multi_krum": ("multi_krum", ()),
    "bulyan": ("bulyan", ()),
    "geometric_median": ("geometric_median", ()),
    "centered_clipping": ("centered_clipping", ()),
    "mda": ("mda", ()),
    "caf": ("caf", ()),
    "monna": ("monna", ()),
    "nnm + mean": ("mean", ("nnm",)),
    "nnm + krum": ("krum", ("nnm",)),
    "nnm + trimmed_mean": ("trimmed_mean", ("nnm",)),
}
"""Name of a case to its rule and its pre-aggregation."""

MOST_ROWS = {"mda": 100}
"""Beyond it the rule, which is exponential at worst, may take minutes."""

_started = time.monotonic()


def byzantine(method: str, n: int) -> int:
    """The f of a case: a fifth of the rows, or what the rule bears."""
    return n // 10 - 1 if method == "centered_clipping" else int(BYZANTINE_SHARE * n)


def fits(num_bytes: float) -> bool:
    """Whether that much memory is free."""
    return num_bytes < os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def matrix_of(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d), np.float32)


def progress(what: str) -> None:
    """A line on the error stream, with the seconds since the start."""
    print(f"{time.monotonic() - _started:7.0f} s  {what}", file=sys.stderr, flush=True)


def versus(seconds: float, name: str, other: float) -> Row:
    return {"versus": f"{name} ({other:.4g} s)", "ratio": seconds / other}


def least_time(run: Callable[[], object], runs: int) -> float:
    """Least CPU time of this thread, after one run that does not count."""
    run()
    return min(cpu_time(run) for _ in range(runs))


def cpu_time(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def wall_time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def least_wall(calls: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """Least wall time of each call; the calls take turns, so that what else the machine does hits all."""
    turns = [[wall_time(call) for call in calls] for _ in range(runs + 1)]
    return [min(times) for times in zip(*turns[1:], strict=True)]
