"""The global model as the sum of global deltas, and the average of its iterates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.layers.server_optimizers import polynomial_average


@dataclass(frozen=True)
class RunningModel:
    """The model that clients train from, and the one that is handed out.

    Clients train from `current`. `average` is handed out: the iterates' `polynomial_average`.

    With adaptive clipping a delta is scaled by the least clip norm since its release over its own clip norm.
    Noise is proportional to the clip norm and signal is not, so what was released while the clip norm was ten
    times too large is mostly noise, which would stay in the sum. Scaled, it has the noise of the present clip
    norm. This is post-processing of releases.

    Attributes:
        current: (d,) float32, the sum of all global deltas so far.
        average: (d,) float32.
        rounds: Deltas added so far.
        parts: With adaptive clipping the sum in parts, each with the clip norm that it counts at, rising.
    """

    current: NDArray[np.float32]
    average: NDArray[np.float32]
    rounds: int = 0
    parts: tuple[tuple[float, NDArray[np.float64]], ...] = ()

    @classmethod
    def zeros(cls, dimension: int) -> RunningModel:
        """The model before the first round."""
        return cls(np.zeros(dimension, dtype=np.float32), np.zeros(dimension, dtype=np.float32))

    def step(
        self,
        delta: NDArray[np.float32],
        learning_rate: float,
        decay: float,
        clip_norms: tuple[float, float] | None = None,
    ) -> RunningModel:
        """Add `learning_rate` times a global delta and take the sum into the average.

        Args:
            decay: How fast early iterates lose weight.
            clip_norms: With adaptive clipping, that of the release and the one that follows from it.

        >>> one = np.ones(1, np.float32)
        >>> RunningModel.zeros(1).step(one, 1.0, 0.0).step(one, 1.0, 0.0).average
        array([1.5], dtype=float32)
        """
        rounds = self.rounds + 1
        if clip_norms is None:
            parts = self.parts
            current = (self.current + np.float32(learning_rate) * delta).astype(np.float32)
        else:
            used, following = clip_norms
            parts = _counted_at(following, (*self.parts, (used, learning_rate * delta.astype(np.float64))))
            current = np.sum([vector for _, vector in parts], axis=0).astype(np.float32)
        average = polynomial_average(self.average, current, rounds, decay)
        return RunningModel(current, average, rounds, parts)


def _counted_at(
    clip_norm: float, parts: tuple[tuple[float, NDArray[np.float64]], ...]
) -> tuple[tuple[float, NDArray[np.float64]], ...]:
    """The parts, those above `clip_norm` scaled to it and put together."""
    kept = tuple(part for part in parts if part[0] <= clip_norm)
    scaled = [(clip_norm / norm) * vector for norm, vector in parts if norm > clip_norm]
    return (*kept, (clip_norm, np.sum(scaled, axis=0))) if scaled else kept
