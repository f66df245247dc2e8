"""The Gaussian mechanism, for one client's message and for the global model.

The noise scale is the smallest that the claim allows: sigma = sensitivity / mu with the largest mu whose
Gaussian mechanism is (epsilon, delta)-DP (Balle, Wang 2018, the analytic Gaussian mechanism). The classic
formula sqrt(2 log(1.25/delta)) / epsilon is looser, and proves nothing above epsilon 1.

The result is rounded to a grid of g = 2^floor(log2(sigma / 1024)), a power of two that depends on sigma
alone: g rint((x + sigma z) / g). Rounding is post-processing of the Gaussian mechanism, so the claim stands.
It removes the low-order bits of x + sigma z, which would reveal x (Mironov 2012), and adds a variance of at
most g^2 / 12, less than 1e-7 sigma^2.

Guarantees:
    the_noise_has_the_claimed_scale: Two-sided test, which rejects a scale off by 3/2.
    rows_are_clipped_before_noise_is_added: A test that rejects a skipped clip.
    outputs_lie_on_a_grid_that_the_input_does_not_choose: Multiples of g.
    colluding_peers_learn_what_the_composition_says: An attack that averages all messages comes near and not
        past it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.accounting.gaussian_dp import mu_of_gaussian
from scarcity_ray.privacy.sampling.noise import NoiseSource, SystemNoise
from scarcity_ray_client.errors import shown

_TINY = float(np.finfo(np.float64).tiny)


class GaussianMechanism:
    """Gaussian noise calibrated to (epsilon, delta) and an L2 sensitivity.

    Attributes:
        epsilon: Claimed epsilon of one release; ``inf`` adds no noise.
        delta: Claimed delta of one release, in (0, 1).
        sensitivity: L2 bound on what one client can change, in the unit of the vectors.
        mu: The Gaussian-DP parameter of one release.
        sigma: Standard deviation of the noise on each coordinate, in the unit of the vectors.

    >>> round(CentralDPMechanism(epsilon=1.0, delta=1e-5, sensitivity=1.0).sigma, 4)
    3.7306
    """

    def __init__(
        self, epsilon: float, delta: float, sensitivity: float, *, noise: NoiseSource | None = None
    ) -> None:
        if not number_of("epsilon", epsilon) > 0.0:
            raise UsageError(f"epsilon: {epsilon!r} is not accepted; above 0")
        if not 0.0 < number_of("sensitivity", sensitivity) < math.inf:
            raise UsageError(f"sensitivity: {sensitivity!r} is not accepted; a positive number")
        self.epsilon = epsilon
        self.delta = delta
        self.sensitivity = sensitivity
        self.mu = mu_of_gaussian(epsilon, delta)
        self.sigma = sensitivity / self.mu
        self._noise: NoiseSource = SystemNoise() if noise is None else noise

    def add_noise(self, vector: ArrayLike, stream: str = "") -> NDArray[np.floating]:
        """Release a vector, or a matrix of rows that different clients sent.

        Args:
            vector: Finite values within the sensitivity, which the caller answers for.
            stream: Name of the noise for sources that want one (`SeededNoise`).

        Returns:
            A new array of the same shape; float32 if the input is, otherwise float64.

        Raises:
            UsageError: If a value is not finite.
        """
        given = _numbers(vector)
        exact = _finite(given)
        if self.sigma > 0.0:
            exact += self.sigma * self._noise.standard_normal(exact.shape, stream)
            exact = on_grid(exact, self.sigma)
        return exact.astype(np.float32) if given.dtype == np.float32 else exact

    def clip_and_noise(self, vector: ArrayLike, clip_norm: float, stream: str = "") -> NDArray[np.floating]:
        """Clip a vector (or each row of a matrix) to `clip_norm`, then `add_noise`.

        Returns:
            A new array of the same shape and kind as `add_noise` gives.

        Raises:
            UsageError: If a value is not finite or `clip_norm` is not positive.
        """
        if not 0.0 < number_of("clip_norm", clip_norm) < math.inf:
            raise UsageError(f"clip_norm: {clip_norm!r} is not accepted; a positive number")
        given = _numbers(vector)
        exact = _finite(given)
        # Over the greatest value, so that no square overflows.
        peaks = np.maximum(np.max(np.abs(exact), axis=-1, keepdims=True, initial=0.0), _TINY)
        norms = np.linalg.norm(exact / peaks, axis=-1, keepdims=True) * peaks
        noised = self.add_noise(exact * np.minimum(1.0, clip_norm / np.maximum(norms, _TINY)), stream)
        return noised.astype(np.float32) if given.dtype == np.float32 else noised


class LocalDPMechanism(GaussianMechanism):
    """The noise that a client adds to what it sends to its peers.

    Neighbours replace one client's values, so a state clipped to C moves by up to 2C: `sensitivity` is twice
    the clip norm.

    If one noised vector a round goes to all peers, any number of peers who pool what they received over T
    rounds learn mu sqrt(T). That is what a client is charged. Noise drawn afresh for each of K peers would
    cost mu sqrt(T K): at epsilon 0.5, delta 1e-6 a message and K = 4, a hundred rounds come to epsilon 5.6 at
    delta 1e-5 with one vector a round, and to 13.1 with four.
    """

    def clip_and_noise(self, vector: ArrayLike, clip_norm: float, stream: str = "") -> NDArray[np.floating]:
        """As `GaussianMechanism.clip_and_noise`; refuses a clip norm that the sensitivity does not cover."""
        if 2.0 * number_of("clip_norm", clip_norm) > self.sensitivity * (1.0 + 1e-9):
            raise UsageError(
                f"clip_norm: {clip_norm!r} is not accepted; at most half the sensitivity "
                f"({self.sensitivity / 2!r}): replacing a client's values moves its clipped state by up to "
                "twice the clip norm"
            )
        return super().clip_and_noise(vector, clip_norm, stream)


class CentralDPMechanism(GaussianMechanism):
    """The noise on the global model; `sensitivity` is that of the weighted sum of basket models."""


def _numbers(vector: ArrayLike) -> NDArray[Any]:
    """The values as an array of integers or floats."""
    try:
        given = np.asarray(vector)
    except (TypeError, ValueError):
        given = np.zeros(0, np.object_)
    if given.dtype.kind not in "fiu":
        raise UsageError(f"vector: {shown(vector)} is not accepted; an array of real numbers")
    return given


def _finite(vector: NDArray[Any]) -> NDArray[np.float64]:
    """A float64 copy; refused if a value is not finite."""
    exact = vector.astype(np.float64)
    if not np.isfinite(exact).all():
        raise UsageError("vector: not all values are finite")
    return exact


def on_grid(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Round noised values to multiples of 2^floor(log2(sigma / 1024)).

    `sigma` > 0 is the standard deviation of the noise in them.
    """
    grid = 2.0 ** math.floor(math.log2(sigma / 1024.0))
    return np.rint(values / grid) * grid
