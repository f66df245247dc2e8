"""Whether a state has changed enough to be worth a release."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scarcity_ray.robust.rows import row_norms


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
        return bool(self.material([client_id], state[np.newaxis], sigma, np.array([noise]))[0])

    def drifts(self, client_ids: Sequence[str], states: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """L2 distance of each clipped state (n, d) from the one last pushed, float64 (n,)."""
        difference = np.array(states, dtype=np.float64)
        for row, client_id in zip(difference, client_ids, strict=True):
            if client_id in self._pushed:
                row -= self._pushed[client_id]
        return row_norms(difference)

    def material(
        self,
        client_ids: Sequence[str],
        states: npt.NDArray[np.float32],
        sigma: float,
        noise: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.bool_]:
        """`should_push` for n clients at once: states (n, d), noise (n,)."""
        noised: npt.NDArray[np.float64] = self.drifts(client_ids, states) + sigma * noise
        return noised >= self.drift_threshold

    def update_state(self, client_id: str, state: npt.NDArray[np.float32]) -> None:
        """Remember a copy of the clipped state that was just pushed."""
        self._pushed[client_id] = np.array(state, dtype=np.float32)

    def last_pushed(self, client_id: str) -> npt.NDArray[np.float32] | None:
        """The clipped state last pushed; None before the first push."""
        return self._pushed.get(client_id)

    def forget(self, client_id: str) -> None:
        """Drop what is remembered of a client."""
        self._pushed.pop(client_id, None)


__all__ = ["MaterialityDetector"]
