"""Which basket actor is the emptiest, found without looking at all baskets or all actors."""

from __future__ import annotations

import heapq


class SlotLoads:
    """How many live baskets each basket actor holds.

    Args:
        num_slots: Basket actors that there are, numbered from 0.
        most: Baskets that an actor may hold; None: any number.
    """

    def __init__(self, num_slots: int, most: int | None) -> None:
        self._most = most
        self._loads: list[int] = []
        self._queue: list[tuple[int, int]] = []
        self.extend(num_slots)

    def __len__(self) -> int:
        return len(self._loads)

    def extend(self, num_slots: int) -> None:
        """Have at least so many actors."""
        while len(self._loads) < num_slots:
            self._loads.append(0)
            heapq.heappush(self._queue, (0, len(self._loads) - 1))

    def take(self) -> int:
        """Put a basket into the emptiest actor (a new one if all are full); the first of several such."""
        while self._queue and self._queue[0][0] != self._loads[self._queue[0][1]]:
            heapq.heappop(self._queue)
        is_full = not self._queue or (self._most is not None and self._queue[0][0] >= self._most)
        slot = len(self._loads) if is_full else self._queue[0][1]
        self.add(slot)
        return slot

    def add(self, slot: int) -> None:
        """Note that an actor holds one more."""
        self.extend(slot + 1)
        self._change(slot, 1)

    def remove(self, slot: int) -> None:
        """Note that an actor holds one less."""
        self._change(slot, -1)

    def _change(self, slot: int, by: int) -> None:
        self._loads[slot] += by
        heapq.heappush(self._queue, (self._loads[slot], slot))
        if len(self._queue) > 2 * len(self._loads) + 64:
            self._queue = [(load, number) for number, load in enumerate(self._loads)]
            heapq.heapify(self._queue)


__all__ = ["SlotLoads"]
