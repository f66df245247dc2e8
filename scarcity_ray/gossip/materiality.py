"""Whether a state has changed enough to be worth a release."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scarcity_ray.robust.arrays.blocks import column_blocks
from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.measures.rows import row_norm

ROUGHNESS = 2.0**-10
"""Largest distance of a remembered state from the true one, relative to its norm."""

_TOP = 15
"""A remembered vector is scaled until its greatest entry lies just below 2^15; float16 ends at 2^16."""
_LEAST = -125
"""Exponent of the least scale: it and its inverse are float32."""
_KEPT_BITS = np.uint32(0xFFFFE000)
"""The bits of a float32 that a float16 can hold: sign, exponent and ten of the mantissa."""


@dataclass(frozen=True, eq=False)
class HalfVector:
    """A float32 vector in half the memory: each entry is truncated to eleven significant bits.

    Guarantees:
        It lies within ROUGHNESS of the vector, over its norm, if that is above 1e-30; and is no longer.

    Attributes:
        halves: float16 (d,).
        scale: A power of two: entry i is scale halves[i].
    """

    halves: npt.NDArray[np.float16]
    scale: float

    @classmethod
    def of(cls, vector: npt.NDArray[np.float32], into: npt.NDArray[np.float16] | None = None) -> HalfVector:
        """From a finite vector (d,); `into` is memory to reuse."""
        top = max(float(vector.max(initial=0.0)), -float(vector.min(initial=0.0)))
        scale = 2.0 ** max(math.frexp(top)[1] - _TOP, _LEAST)
        halves = np.empty(len(vector), np.float16) if into is None or len(into) != len(vector) else into
        for columns in column_blocks(len(vector)):
            block = workspace("halved", (columns.stop - columns.start,), np.float32)
            np.multiply(vector[columns], np.float32(1.0 / scale), out=block)
            bits = block.view(np.uint32)
            np.bitwise_and(bits, _KEPT_BITS, out=bits)
            np.copyto(halves[columns], block, casting="same_kind")
        return cls(halves, scale)

    def block(self, columns: slice) -> npt.NDArray[np.float32]:
        """The vector's entries in some columns, in a scratch array."""
        block = workspace("halved", (columns.stop - columns.start,), np.float32)
        np.copyto(block, self.halves[columns])
        np.multiply(block, np.float32(self.scale), out=block)
        return block

    def whole(self) -> npt.NDArray[np.float32]:
        """The vector, float32 (d,)."""
        return self.halves.astype(np.float32) * np.float32(self.scale)


class MaterialityDetector:
    """Compares the (noised) drift of a state since its last push with a threshold.

    The drift is the L2 distance to the state last pushed, which is kept as a `HalfVector`; to the zero vector
    before the first push. For states clipped to C it lies in [0, 2C], so replacing all of a client's data
    changes it by at most 2C: the sensitivity that `sigma` is calibrated to. Others see that a client pushes,
    so the decision is a release of its own and is made from the noised drift alone.

    Guarantees:
        The drift of clipped states never leaves [0, 2C], to float32 rounding.
        Without noise a state is pushed if and only if its drift reaches the threshold, to within ROUGHNESS of
            the norm of the state last pushed.

    Args:
        drift_threshold: L2 distance from which a state is material.
    """

    def __init__(self, drift_threshold: float) -> None:
        self.drift_threshold = drift_threshold
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
        return np.array([self._drift(c, state) for c, state in zip(client_ids, states, strict=True)])

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
        for columns in column_blocks(len(state)):
            difference = workspace("drift", (columns.stop - columns.start,), np.float64)
            np.subtract(state[columns], pushed.block(columns), out=difference, dtype=np.float64)
            total += float(np.dot(difference, difference))
        return math.sqrt(total)

    def update_state(self, client_id: str, state: npt.NDArray[np.float32]) -> None:
        """Remember the clipped state that was just pushed."""
        kept = self._pushed.get(client_id)
        self._pushed[client_id] = HalfVector.of(state, None if kept is None else kept.halves)

    def last_pushed(self, client_id: str) -> npt.NDArray[np.float32] | None:
        """The clipped state last pushed, as it is remembered; None before the first push."""
        kept = self._pushed.get(client_id)
        return None if kept is None else kept.whole()

    def forget(self, client_id: str) -> None:
        """Drop what is remembered of a client."""
        self._pushed.pop(client_id, None)
