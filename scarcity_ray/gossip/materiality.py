"""Whether a state has changed enough to be worth a release."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from scarcity_ray.robust.blocks import column_blocks
from scarcity_ray.robust.rows import row_norm


class MaterialityDetector:
    """Compares the drift of a state since its last push with a threshold, under noise if it is given.

    The drift is the L2 distance to the state last pushed, the zero vector before the first push. For states
    clipped to C it lies in [0, 2C], so replacing all of a client's data changes it by at most 2C: the
    sensitivity to which `sigma` must be calibrated. That a client pushes is seen by others, so the decision
    is a release of its own, and only the noised drift may decide.

    Guarantees:
        - The drift of clipped states never leaves [0, 2C], to float32 rounding.
        - Without noise a state is pushed if and only if its drift reaches the threshold.

    Args:
        drift_threshold: L2 distance from which a state is material.
    """

    def __init__(self, drift_threshold: float) -> None:
        self.drift_threshold = drift_threshold
        self._pushed: dict[str, npt.NDArray[np.float32]] = {}

    def should_push(
        self, client_id: str, state: npt.NDArray[np.float32], *, sigma: float = 0.0, noise: float = 0.0
    ) -> bool:
        """Whether drift + sigma noise reaches the threshold.

        Args:
            client_id: Whose state.
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
            difference = np.subtract(state[columns], pushed[columns], dtype=np.float64)
            total += float(np.dot(difference, difference))
        return math.sqrt(total)

    def update_state(self, client_id: str, state: npt.NDArray[np.float32]) -> None:
        """Remember a copy of the clipped state that was just pushed."""
        kept = self._pushed.get(client_id)
        if kept is None or kept.shape != state.shape or not kept.flags.writeable:
            self._pushed[client_id] = np.array(state, dtype=np.float32)
        else:
            kept[...] = state

    def last_pushed(self, client_id: str) -> npt.NDArray[np.float32] | None:
        """A copy of the clipped state last pushed; None before the first push."""
        kept = self._pushed.get(client_id)
        return None if kept is None else kept.copy()

    def forget(self, client_id: str) -> None:
        """Drop what is remembered of a client."""
        self._pushed.pop(client_id, None)


__all__ = ["MaterialityDetector"]
