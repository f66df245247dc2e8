"""Layer 1's column blocks as tasks on the cluster's cores, if there is enough work.

The rows (local states) are in the basket actor's memory, and must be put into the object store for tasks.
That costs more than reading them for a mean. So the caller computes the first share of the columns itself and
stores only the others, each for one task, which starts while the next share is being stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numpy as np

from scarcity_ray.layers.layer1 import BlocksOf
from scarcity_ray.robust import (
    MapBlocks,
    column_blocks,
    inline_blocks,
    num_columns,
    sliced_rows,
    take_block,
)
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.runtime.rpc import Compute, gather

T = TypeVar("T")

STORE_SECONDS = 1.5e-9
"""To store one entry of many rows: 0.6 to 1.3 ns of CPU time were measured in memory that the store has used
before, 2.6 to 8 the first time."""

TASKS_SECONDS = 0.01
"""To hand a rule's passes to tasks: 3 ms each on an idle machine, 5 on a busy one, two passes as a rule."""


def blocks_where_faster(compute: Compute) -> BlocksOf:
    """Shares the columns out to tasks if that is estimated to save time, and else computes them inline.

    With p workers, tasks do (p - 1) / p of the rule's work, and as much of the rows must be stored for them.
    Sharing out therefore pays if

        (1 - 1/p) (seconds on one core - `STORE_SECONDS` times entries) > `TASKS_SECONDS`.

    With the compiled kernels that is never so for the mean, the median, the trimmed mean and, at n = 100,
    Krum. For two workers and n = 100 it pays from 1.5e7 entries for Bulyan and 7e6 for nearest-neighbour
    mixing with a trimmed mean; without the kernels from 2e7 for Krum, 5e6 for Bulyan and 1.2e7 for the
    median. ``python -m benchmarks layer1 --part tasks`` measures both sides.

    The other workers are assumed to be idle, as they are when one basket is due. If all are busy, sharing out
    only adds the storing.
    """

    def blocks_of(rows: Rows, seconds: float) -> MapBlocks:
        workers = compute.parallelism
        entries = len(rows) * num_columns(rows)
        saved = (1.0 - 1.0 / workers) * (seconds - STORE_SECONDS * entries)
        return shared_blocks(compute, rows) if saved > TASKS_SECONDS else inline_blocks(rows)

    return blocks_of


def shared_blocks(compute: Compute, rows: Rows) -> MapBlocks:
    """Shares the columns out among this thread and tasks, one large share for each worker.

    The rows of a share are stored at the rule's first pass and read by all of them.
    """
    if isinstance(rows, np.ndarray):
        rows = list(rows)
    spans = column_blocks(num_columns(rows))
    size = -(-len(spans) // compute.parallelism)
    own, *others = [spans[start : start + size] for start in range(0, len(spans), size)]
    stored: list[tuple[Any, list[slice]]] = []

    def map_blocks(kernel: Callable[..., T], /, *args: Any) -> Iterable[T]:
        tasks = []
        for index, share in enumerate(others):
            if index == len(stored):
                start, stop = share[0].start, share[-1].stop
                reference = compute.put(take_block(rows, slice(start, stop)))
                stored.append((reference, [slice(s.start - start, s.stop - start) for s in share]))
            reference, within = stored[index]
            tasks.append(compute.submit(_blocks_in_task, reference, within, kernel, args))
        here = _Here(lambda: _blocks_in_task(rows, own, kernel, args))
        return [part for parts in gather([here, *tasks]) for part in parts]

    return map_blocks


class _Here:
    """A future that is computed when its result is asked for."""

    def __init__(self, compute: Callable[[], Any]) -> None:
        self._compute = compute

    def result(self) -> Any:
        return self._compute()


def _blocks_in_task(
    rows: Rows, spans: list[slice], kernel: Callable[..., T], args: tuple[Any, ...]
) -> list[T]:
    sliced = sliced_rows(rows)
    return [kernel(take_block(sliced, span), *args) for span in spans]
