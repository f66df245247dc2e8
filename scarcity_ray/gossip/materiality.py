"""Whether a state has changed enough to be worth a release."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scarcity_ray.gossip.passes import SEGMENT, cut_to_halves
from scarcity_ray.robust.arrays.blocks import column_blocks
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.measures.rows import row_norm

ROUGHNESS = 2.0**-10
"""Largest distance of a remembered state from the true one, relative to its norm."""

_SQUARES = 2.0**-80, 2.0**100
"""Sums of squares between these have lost nothing that matters to the range of float32."""


@dataclass(frozen=True, eq=False)
class HalfVector:
    """A float32 vector in half the memory: block floating point, each entry cut towards zero to 16 bits.

    SEGMENT entries share a scale, so that each is cut by less than 2^-14 of the greatest of them, and all
    together by 2^-10 of it.

    Guarantees:
        It lies within ROUGHNESS of the vector, over its norm, if that is above 1e-30; and is no longer.

    Attributes:
        words: int16 (k, w), the last segment filled up with zeros.
        scales: float32 (k, 1), powers of two: entry j of segment i is ``scales[i] words[i, j]``.
        length: d.
    """

    words: npt.NDArray[np.int16]
    scales: npt.NDArray[np.float32]
    length: int

    @classmethod
    def of(cls, vector: npt.NDArray[np.float32], earlier: HalfVector | None = None) -> HalfVector:
        """From a finite vector (d,); the memory of an `earlier` one is used again if it fits."""
        length, width = len(vector), min(len(vector), SEGMENT)
        if earlier is not None and earlier.length == length:
            words, scales = earlier.words, earlier.scales
        else:
            words = np.empty((-(-length // width), width), np.int16)
            scales = np.empty((len(words), 1), np.float32)
        cut_to_halves(vector, words, scales)
        return cls(words, scales, length)

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The vector's entries by ranges of columns, each in a scratch array that the next one overwrites."""
        width = self.words.shape[1]
        for columns in column_blocks(self.length):
            segments = slice(columns.start // width, -(-columns.stop // width))
            block = workspace("halved", (segments.stop - segments.start, width), np.float32)
            np.copyto(block, self.words[segments])
            np.multiply(block, self.scales[segments], out=block)
            yield columns, block.reshape(-1)[: columns.stop - columns.start]

    def whole(self) -> npt.NDArray[np.float32]:
        """The vector, float32 (d,)."""
        return (self.words * self.scales).reshape(-1)[: self.length]


class MaterialityDetector:
    """Compares the (noised) drift of a state since its last push with a threshold.

    The drift is the L2 distance to the state last pushed, which is kept as a `HalfVector`; to the zero vector
    before the first push. For states clipped to C it lies in [0, 2C], so replacing all of a client's data
    changes it by at most 2C: the sensitivity that `sigma` is calibrated to. Others see that a client pushes,
    so the decision is a release of its own and is made from the noised drift alone.

    Guarantees:
        The drift that noise is added to never leaves [0, 2C], however it was rounded.
        Without noise a state is pushed if and only if its drift reaches the threshold, to within ROUGHNESS of
            the norm of the state last pushed.

    Args:
        drift_threshold: L2 distance from which a state is material.
        greatest: 2C, to which a drift is cut: it may be above by the rounding of states and of itself.
    """

    def __init__(self, drift_threshold: float, greatest: float = math.inf) -> None:
        self.drift_threshold = drift_threshold
        self.greatest = greatest
        self._pushed: dict[str, HalfVector] = {}

    def should_push(
        self, client_id: str, state: npt.NDArray[np.float32], *, sigma: float = 0.0, noise: float = 0.0
    ) -> bool:
        """Whether drift + sigma noise reaches the threshold.

        Args:
            state: Clipped, float32 (d,).
            sigma: Standard deviation of the drift's noise.
            noise: One standard normal sample.
        """
        return bool(self.material([client_id], [state], sigma, np.array([noise]))[0])

    def drifts(
        self, client_ids: Sequence[str], states: Iterable[npt.NDArray[np.float32]]
    ) -> npt.NDArray[np.float64]:
        """L2 distance of each client's clipped state (d,) from the one last pushed, float64 (n,)."""
        exact = [self._drift(c, state) for c, state in zip(client_ids, states, strict=True)]
        return np.minimum(exact, self.greatest)

    def material(
        self,
        client_ids: Sequence[str],
        states: Iterable[npt.NDArray[np.float32]],
        sigma: float,
        noise: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.bool_]:
        """`should_push` for n clients at once: states (d,) each, noise (n,)."""
        noised: npt.NDArray[np.float64] = self.drifts(client_ids, states) + sigma * noise
        return noised >= self.drift_threshold

    def _drift(self, client_id: str, state: npt.NDArray[np.float32]) -> float:
        pushed = self._pushed.get(client_id)
        if pushed is None:
            return row_norm(state)
        total = 0.0
        for columns, block in pushed.blocks():
            np.subtract(state[columns], block, out=block)
            total += float(np.dot(block, block))
        if _SQUARES[0] < total < _SQUARES[1]:
            return math.sqrt(total)
        return row_norm(state - pushed.whole())

    def update_state(self, client_id: str, state: npt.NDArray[np.float32]) -> None:
        """Remember the clipped state that was just pushed."""
        self._pushed[client_id] = HalfVector.of(state, self._pushed.get(client_id))

    def last_pushed(self, client_id: str) -> npt.NDArray[np.float32] | None:
        """The clipped state last pushed, as it is remembered; None before the first push."""
        kept = self._pushed.get(client_id)
        return None if kept is None else kept.whole()

    def forget(self, client_id: str) -> None:
        """Drop what is remembered of a client."""
        self._pushed.pop(client_id, None)
