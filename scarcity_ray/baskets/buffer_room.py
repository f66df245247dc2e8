"""How much one basket actor buffers: more is refused as `busy`, so that clients that outrun Layer 1 wait.

Guarantees:
    what_is_buffered_never_exceeds_the_room: But by what clients that move bring along.
    room_is_there_again_once_an_aggregate_has_taken_what_waited
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from scarcity_ray.baskets.basket import Basket
from scarcity_ray.config import HierarchicalFederationConfig

UPDATE_BYTES = 1_500
"""What an update takes beside its row: objects, keys, the replay memory's entry."""
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Linux's limits of this process's group, of version 2 and of version 1."""


def memory_bytes() -> int:
    """The memory that this process may have: the machine's, or its control group's where that is less."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return min(found)


def default_bytes() -> int:
    """A quarter of the memory, shared by as many basket actors as there are CPUs."""
    return memory_bytes() // (4 * (os.cpu_count() or 1))


class BufferRoom:
    """What one basket actor may still buffer.

    Nothing is counted with each update: how many wait is looked up once they might be too many.

    Attributes:
        num_updates: How many updates may wait; at least those that one basket needs for an aggregate.
    """

    def __init__(self, config: HierarchicalFederationConfig) -> None:
        limit = default_bytes() if config.buffer.max_bytes is None else config.buffer.max_bytes
        least = max(config.basket.min_clients, config.layer1.min_updates)
        self.num_updates = max(least, limit // (4 * config.vector_dim + UPDATE_BYTES))
        self._most_waiting = self.num_updates

    def take(self, baskets: Iterable[Basket], coming: int) -> int:
        """Room for the coming updates: how many of them may be accepted."""
        if self._most_waiting + coming > self.num_updates:
            self._most_waiting = sum(basket.num_buffered for basket in baskets)
        room = max(0, min(coming, self.num_updates - self._most_waiting))
        self._most_waiting += room
        return room

    def recount(self) -> None:
        """Look up how many updates wait when the next ones come."""
        self._most_waiting = self.num_updates
