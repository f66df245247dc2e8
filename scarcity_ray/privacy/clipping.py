"""Adaptive clipping: the clip norm follows a quantile of the updates' norms, privately.

Each client adds one bit to its update, whether its norm was at most the clip norm C; the noised share of
these bits steers C so that a share `quantile` of the norms lies below it (Andrew, Thakkar, McMahan, Ramaswamy
2021, algorithm 1). Update and bit are released together as one Gaussian event. Replacing a client moves the
sum of the bits by at most 1, so noise of standard deviation sigma_b on that sum costs mu_b = 1 / sigma_b, and
the update keeps the rest of the event's mu (their theorem 1, in replace-one):

    mu^2 = mu_update^2 + 1 / sigma_b^2

Guarantees:
    update_and_bit_compose_to_the_whole: Exactly the mu of one Gaussian event.
    the_clip_norm_finds_the_quantile: On a fixed distribution, from far above and far below.
"""

from __future__ import annotations

import math

from scarcity_ray.errors import UsageError


def update_mu(mu: float, bit_sigma: float) -> float:
    """What an event's mu leaves for the update when the bit takes its part.

    Args:
        mu: Of update and bit together, > 0; ``inf`` claims nothing.
        bit_sigma: Standard deviation of the noise on the sum of the bits, > 1 / mu. With 5 / mu the bit takes
            4 % of the charge, which suits few contributors; Andrew et al. take a twentieth of their number.

    Returns:
        mu_update < mu: the update's noise is its sensitivity over this.

    Raises:
        UsageError: If the bit alone costs as much as the whole event may.

    >>> round(update_mu(1.0, 5.0), 6)
    0.979796
    """
    if not mu > 0.0:
        raise UsageError(f"mu: {mu!r} is not accepted; above 0")
    if math.isinf(mu):
        return mu
    if not bit_sigma * mu > 1.0:
        raise UsageError(f"bit_sigma: {bit_sigma!r} is not accepted; above 1 / mu = {1.0 / mu:.6g}")
    part = 1.0 / (bit_sigma * mu)
    return mu * math.sqrt((1.0 - part) * (1.0 + part))


def adapted_clip_norm(
    clip_norm: float, share_below: float, *, quantile: float = 0.5, learning_rate: float = 0.2
) -> float:
    """The next clip norm: C exp(-learning_rate (b - quantile)).

    Args:
        clip_norm: C > 0.
        share_below: b, the noised share of norms that were at most C. Noise may take it out of [0, 1]; it is
            cut to that, which is post-processing.
        quantile: The share of norms that should lie below C, in [0, 1].
        learning_rate: Of the geometric step, > 0.

    Returns:
        The next C > 0.

    >>> adapted_clip_norm(1.0, 0.5)
    1.0
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0.0):
        raise UsageError(f"clip_norm: {clip_norm!r} is not accepted; a positive number")
    if not 0.0 <= quantile <= 1.0:
        raise UsageError(f"quantile: {quantile!r} is not accepted; between 0 and 1")
    if not learning_rate > 0.0:
        raise UsageError(f"learning_rate: {learning_rate!r} is not accepted; above 0")
    if math.isnan(share_below):
        raise UsageError("share_below: nan is not accepted; a number")
    return clip_norm * math.exp(-learning_rate * (min(1.0, max(0.0, share_below)) - quantile))


__all__ = ["adapted_clip_norm", "update_mu"]
