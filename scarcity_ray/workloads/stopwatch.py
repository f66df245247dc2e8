"""Where a job's wall time goes, phase by phase."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

    def since(self, before: Mapping[str, float]) -> dict[str, float]:
        """Seconds by phase since `seconds` was `before`, phases without any left out."""
        spans = {phase: total - before.get(phase, 0.0) for phase, total in self.seconds.items()}
        return {phase: span for phase, span in spans.items() if span > 0.0}

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began
