"""What one client tells another: a noised summary of its local state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class GossipMessage:
    """A client's released vector; the same one goes to all its peers of a federation round.

    Attributes:
        sender_id: Who released it.
        basket_id: The basket in which it travels.
        summary_vector: The clipped and noised state, float32 (d,), read-only.
        sequence_number: Counts the sender's releases from 0.
        timestamp: When it was released, in seconds.
        round_id: The federation round of the release.
    """

    sender_id: str
    basket_id: str
    summary_vector: npt.NDArray[np.float32]
    sequence_number: int
    timestamp: float
    round_id: int

    def age(self, now: float) -> float:
        """Seconds since the release."""
        return now - self.timestamp

    def is_expired(self, ttl: float, now: float) -> bool:
        """Whether it is older than `ttl` seconds."""
        return self.age(now) > ttl


__all__ = ["GossipMessage"]
