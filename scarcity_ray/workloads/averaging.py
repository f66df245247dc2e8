"""The model that global deltas add up to, and the average of its iterates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RunningModel:
    """Where training stands, and the model that is handed out.

    Clients train from `current`. What is handed out is `average`, the iterates averaged with weights that
    grow like t^decay (Shamir, Zhang 2013, polynomial decay): averaging evens out the noise of the releases,
    and costs nothing, since it works on what was already released.

    Attributes:
        current: (d,) float32, the sum of all global deltas so far.
        average: (d,) float32.
        rounds: Deltas added so far.
    """

    current: NDArray[np.float32]
    average: NDArray[np.float32]
    rounds: int = 0

    @classmethod
    def zeros(cls, dimension: int) -> RunningModel:
        """The model before the first round."""
        return cls(np.zeros(dimension, dtype=np.float32), np.zeros(dimension, dtype=np.float32))

    def step(self, delta: NDArray[np.float32], learning_rate: float, decay: float) -> RunningModel:
        """Add `learning_rate` times a global delta and take the sum into the average.

        >>> one = np.ones(1, np.float32)
        >>> RunningModel.zeros(1).step(one, 1.0, 0.0).step(one, 1.0, 0.0).average
        array([1.5], dtype=float32)
        """
        rounds = self.rounds + 1
        current = (self.current + np.float32(learning_rate) * delta).astype(np.float32)
        share = np.float32((decay + 1.0) / (rounds + decay))
        average = ((1 - share) * self.average + share * current).astype(np.float32)
        return RunningModel(current, average, rounds)
