"""The least of values that come and go."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

N = TypeVar("N", int, float)


class Least(Generic[N]):
    """A multiset of numbers that knows its least one; a change or a question costs O(log n) at most.

    A value that goes stays in the heap until it comes to the top of it.

    Guarantees:
        - The least is that of the values added and not removed.
    """

    def __init__(self) -> None:
        self._counts: dict[N, int] = {}
        self._heap: list[N] = []

    def add(self, value: N) -> None:
        """Add a value once more."""
        count = self._counts.get(value, 0)
        self._counts[value] = count + 1
        if not count:
            heapq.heappush(self._heap, value)

    def remove(self, value: N) -> None:
        """Remove a value that is there, once."""
        count = self._counts[value] - 1
        if count:
            self._counts[value] = count
        else:
            del self._counts[value]

    def least(self) -> N | None:
        """The least value; None if there is none."""
        while self._heap and self._heap[0] not in self._counts:
            heapq.heappop(self._heap)
        return self._heap[0] if self._heap else None


__all__ = ["Least"]
