"""Layer 1 on Ray: two cores by tasks against one core, and the memory of the whole cluster.

Times are wall time, the least of a few runs, one core and two cores by turns. Both read the rows where they
lie in the object store, through Layer 1's own driver, ``shared_blocks`` over the runtime's compute: this
process takes one share of the columns, a task the other. *put* is the time that storing all rows takes,
which these times leave out: *first* in a store that may have touched no page yet, *again* after that.
*storing its rows* is the time with it, from rows in this process's memory, as they lie in a basket; where
that is below one core's, ``blocks_where_faster`` should choose tasks. *two halves apart* is what the machine
gives two processes at that moment: each runs the rule over half of the columns, as one task, with nothing
between them.

``memory`` rows say how much more memory the whole cluster held at the worst moment of one
``Layer1Aggregator.aggregate`` call over tasks than right before it: ``ratio`` is to one copy of the updates.
The caller already holds the updates in memory of its own, and that copy does not count; the copy that the
call puts into the object store does. Every few milliseconds (tens of them, when much is mapped) a separate
process sums the proportional set sizes (Pss in ``/proc/PID/smaps_rollup``: a page that k processes share
counts 1/k in each, so that the sum counts it once) of the caller and of all the processes that it started:
Ray's workers and daemons, and with them the pages of the object store, all of which count as extra. Each rule
gets a cluster of its own, whose workers have run it on a few columns before, so that starting Python and
loading NumPy do not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import ray

from benchmarks._memory import PeakMemory
from benchmarks._timing import (
    CASES,
    MOST_ROWS,
    QUICK,
    SIZES,
    Row,
    byzantine,
    fits,
    least_wall,
    matrix_of,
    progress,
    versus,
    wall_time,
)
from scarcity_ray.actors.layer1_tasks import shared_blocks
from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.robust import aggregate_blocks, inline_blocks, one_blas_thread, row_norms
from scarcity_ray.runtime.ray_runtime import RayRuntime

CORES = 2
TASK_RULES = ("bulyan", "trimmed_mean", "median", "krum")
SIZE = (100, 1_000_000)
RUNS = 15


def rows(quick: bool = False) -> Iterator[Row]:
    """Speed first, then memory, on clusters of two CPUs on this machine that end with the measurement."""
    n, d = QUICK[0] if quick else SIZE
    with one_blas_thread():
        yield from speed(QUICK if quick else SIZES)
        for method in TASK_RULES[-1:] if quick else TASK_RULES:
            yield memory(method, n, d, clipped=False)
        for method in ("trimmed_mean", "krum"):
            yield memory(method, n, d, clipped=True)


def cluster(name: str) -> RayRuntime:
    """A runtime on a cluster of `CORES` CPUs of its own; `ray.shutdown` ends it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local", num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    return RayRuntime(f"{name}-{os.getpid()}")


def speed(sizes: Sequence[tuple[int, int]]) -> Iterator[Row]:
    runtime = cluster("benchmark-layer1")
    try:
        for n, d in sizes:
            if fits(4 * n * d * 4):
                yield from storing(runtime.compute, n, d)
                yield from sharing(runtime.compute, n, d)
            else:
                progress(f"skipped: n={n} d={d} (memory)")
    finally:
        ray.shutdown()


def storing(compute: Any, n: int, d: int) -> Iterator[Row]:
    progress(f"tasks: put n={n} d={d}")
    updates = list(matrix_of(n, d))
    copied = least_wall([lambda: [row.copy() for row in updates]], 3)[0]
    first = wall_time(lambda: compute.put(updates))
    again = least_wall([lambda: compute.put(updates)], RUNS)[0]
    case = {"n": n, "d": d}
    yield {"name": "put, first", **case, "seconds": first} | versus(first, "copy in memory", copied)
    yield {"name": "put, again", **case, "seconds": again} | versus(again, "copy in memory", copied)


def sharing(compute: Any, n: int, d: int) -> Iterator[Row]:
    reference = compute.put(list(matrix_of(n, d)))
    rows = ray.get(reference)
    updates = [row.copy() for row in rows] if (n, d) == SIZE else rows
    driver, norms, parts = shared_blocks(compute, rows), row_norms(rows), [slice(0, d // 2), slice(d // 2, d)]
    for name, (method, pre) in CASES.items():
        if n > MOST_ROWS.get(method, n):
            continue
        progress(f"tasks: {name} n={n} d={d}")
        call = partial(aggregate_rows, method=method, f=byzantine(method, n), norms=norms, pre=pre)

        def apart(call: Any = call) -> None:
            for task in [compute.submit(aggregate_part, reference, part, call) for part in parts]:
                task.result()

        def inline(call: Any = call) -> None:
            call(inline_blocks(rows), n)

        def storing(call: Any = call) -> None:
            call(shared_blocks(compute, updates), n)

        calls: list[Callable[[], object]] = [inline, partial(call, driver, n)]
        row: Row = {"name": f"{name}, two cores", "n": n, "d": d}
        if (n, d) != SIZE or name not in TASK_RULES:
            one, two = least_wall(calls, RUNS if n * d <= 10**7 else 3 if n * d <= 10**8 else 1)
            yield row | {"seconds": two} | versus(two, "one core", one)
            continue
        calls += [apart, storing]
        one, two, free, unstored = least_wall(calls, RUNS)
        yield row | {"seconds": two} | versus(two, "one core", one)
        yield row | {"seconds": two} | versus(two, "two halves apart", free)
        row["name"] += ", storing its rows"
        yield row | {"seconds": unstored} | versus(unstored, "one core", one)


def aggregate_rows(
    driver: Any, n: int, *, method: str, f: int, norms: np.ndarray, pre: Sequence[str]
) -> None:
    aggregate_blocks(driver, n, method=method, num_byzantine=f, norms=norms, pre=pre)


def aggregate_part(rows: list[np.ndarray], columns: slice, call: Any) -> None:
    with one_blas_thread():
        call(inline_blocks([row[columns] for row in rows]), len(rows))


def memory(method: str, n: int, d: int, *, clipped: bool) -> Row:
    """Peak extra memory of one Layer 1 call; ``clipped`` makes every row longer than the clip norm."""
    progress(f"tasks: memory, {method} n={n} d={d}")
    runtime = cluster(f"benchmark-memory-{method}")
    try:
        updates = list(matrix_of(n, d))
        longest = 2.0 * float(np.sqrt(d))
        config = Layer1Config(
            aggregation_method=AggregationMethod(method), clip_norm=longest / 4 if clipped else longest
        )
        layer = Layer1Aggregator(config, blocks_of=lambda rows, _: shared_blocks(runtime.compute, rows))
        for _ in range(3):
            layer.aggregate([row[:20_000] for row in updates])
        with PeakMemory() as peak:
            seconds = wall_time(lambda: layer.aggregate(updates))
        copy = 4 * n * d
        name = f"memory, {method}{', all rows clipped' if clipped else ''}"
        return {"name": name, "n": n, "d": d, "seconds": seconds} | {
            "versus": f"one copy ({copy / 1e6:.4g} MB; {peak.samples} samples)",
            "ratio": peak.extra / copy,
        }
    finally:
        ray.shutdown()
