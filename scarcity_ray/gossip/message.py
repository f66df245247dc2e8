"""A gossip message: a client's local state, clipped and noised, once a federation round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scarcity_ray.gossip.passes import add_noise


@dataclass(frozen=True, eq=False)
class GossipMessage:
    """A client's released vector; the same one goes to all its peers of a federation round.

    Attributes:
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


def noised(
    clipped: npt.NDArray[np.float32], noise: npt.NDArray[np.float64], sigma: float
) -> npt.NDArray[np.float32]:
    """A clipped state with noise of standard deviation sigma, rounded to a grid that depends on sigma alone.

    The low-order bits of a float sum leak its terms (Mironov 2012). Rounding to multiples of a power of two
    that follows from sigma alone is post-processing of the Gaussian mechanism, as is the rounding to float32
    after it, so mu is unchanged.

    Guarantees:
        A released vector lies on the grid.
        Without noise the state is released as it is.

    Args:
        clipped: float32 (d,).
        noise: Standard normal, float64 (d,).
        sigma: At least 0.

    Returns:
        Read-only float32 (d,).
    """
    vector = clipped.copy() if sigma == 0.0 else add_noise(clipped, noise, sigma)
    vector.setflags(write=False)
    return vector
