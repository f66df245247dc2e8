"""Adaptive clipping: the clip norm follows a quantile of the updates' norms, privately.

Each client adds one bit to its update, b = 1[norm <= C] - 1/2, and the noised mean of these bits steers C so
that a share `quantile` of the norms lies below it (Andrew, Thakkar, McMahan, Ramaswamy 2021, algorithm 1).
Update and bit are one vector under one noise. In the paper's units, add-or-remove with the multiplier z of
the whole event, the update gets z_D = (z^-2 - (2 sigma_b)^-2)^-1/2 where the sum of the bits gets sigma_b:
replace-one doubles both sensitivities, so mu = 2/z = hypot(2/z_D, 1/sigma_b). The bit takes the share
1 / (mu sigma_b)^2 of mu squared. sigma_b = 2.5 z, which suits few contributors, makes that 1/25
(`BIT_SHARE`), and the update's noise grows by (1 - 1/25)^-1/2, 2.1 %. Andrew et al. take a twentieth of the
clients for sigma_b: from 50 z clients on, that leaves the bit less.

Here the bits travel as one coordinate of the baskets' weighted mean, all coordinates under the same sigma, so
that sigma_b is set by the radius s that the bits are scaled to (`bit_radius`).

A client that lies moves its basket's mean bit by at most 1 over the basket's rows, whatever its norm. With a
share phi of the weight lying, C settles between the (quantile - phi) / (1 - phi) and the
quantile / (1 - phi) quantile of the honest norms.

Guarantees:
    the_joint_noise_is_larger_by_the_papers_factor: For baskets alike to the last digit, else at most.
    a_step_of_the_clip_norm_is_bounded: By exp(-rate (1 - quantile)) and exp(rate quantile).
    the_clip_norm_finds_the_quantile: On a fixed distribution, from far above and far below.
    liars_shift_the_quantile_by_their_share: And no further.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from scarcity_ray.errors import UsageError

BIT_SHARE = 0.04
"""The most of a release's mu squared that the bits take: 1 / 25, that is sigma_b = 2.5 z."""


def bit_radius(baskets: Iterable[tuple[float, float, int]]) -> float:
    """The scale s of the bits: the largest at which the noise grows by at most (1 - BIT_SHARE)^-1/2.

    Without bits the weighted mean's sensitivity is D = max w Delta over the baskets; with the means of n bits
    times s it is max w sqrt(Delta^2 + s^2/n^2). The largest s that keeps this within D / sqrt(1 - BIT_SHARE)
    is the least, over the baskets, of n sqrt(D^2 / (w^2 (1 - BIT_SHARE)) - Delta^2).

    Args:
        baskets: Weight, sensitivity Delta > 0 of the rest of the vector, and rows n of each basket.

    Returns:
        s in the unit of Delta; 0 if no basket has weight.

    >>> round(bit_radius([(0.5, 1.0, 10), (0.5, 1.0, 10)]), 6)
    2.041241
    """
    weighing = [basket for basket in baskets if basket[0] > 0.0]
    widest = max((weight * delta for weight, delta, _ in weighing), default=0.0)
    radii = [
        rows * math.sqrt((widest / weight) ** 2 / (1.0 - BIT_SHARE) - delta**2)
        for weight, delta, rows in weighing
    ]
    return min(radii, default=0.0)


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
