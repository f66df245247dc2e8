"""Times and rows that the parts of the Layer 1 benchmark share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
BYZANTINE_SHARE = 0.2


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


def least_wall(calls: list[Callable[[], object]], runs: int) -> list[float]:
    """Least wall time of each call; the calls take turns, so that what else the machine does hits all."""
    turns = [[wall_time(call) for call in calls] for _ in range(runs + 1)]
    return [min(times) for times in zip(*turns[1:], strict=True)]
