"""Layer 1's column blocks as tasks over the object store, when there is work enough for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from scarcity_ray.layers.layer1 import BlocksOf
from scarcity_ray.robust import MapBlocks, column_blocks, inline_blocks, num_columns, take_block
from scarcity_ray.robust.blocks import Rows
from scarcity_ray.roles.handles import Compute, gather

T = TypeVar("T")

INLINE_ELEMENTS = 4_000_000
"""Below this many entries a rule takes about the 10 ms that handing it to tasks would cost."""


def blocks_as_tasks(compute: Compute, inline_elements: int = INLINE_ELEMENTS) -> BlocksOf:
    """A driver that chooses by the size of the work: few entries inline, many as tasks.

    The rows are stored once, without a stacked copy beside them; every pass of a rule reads the stored ones,
    in one task a worker: a task pays for finding its rows, so few large ones are faster than many small.
    """

    def blocks_of(rows: Rows) -> MapBlocks:
        if compute.parallelism < 2 or len(rows) * num_columns(rows) < inline_elements:
            return inline_blocks(rows)
        spans = column_blocks(num_columns(rows))
        share = -(-len(spans) // compute.parallelism)
        groups = [spans[start : start + share] for start in range(0, len(spans), share)]
        reference = compute.put(rows)

        def map_blocks(kernel: Callable[..., T], /, *args: Any) -> Iterable[T]:
            tasks = [compute.submit(_blocks_in_task, reference, group, kernel, args) for group in groups]
            return [part for parts in gather(tasks) for part in parts]

        return map_blocks

    return blocks_of


def _blocks_in_task(
    rows: Rows, spans: list[slice], kernel: Callable[..., T], args: tuple[Any, ...]
) -> list[T]:
    return [kernel(take_block(rows, span), *args) for span in spans]
