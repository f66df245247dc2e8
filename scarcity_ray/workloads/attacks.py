"""What Byzantine clients do: pure functions from honest updates to sent ones.

The attackers know everything: they see the honest updates of their basket in this round and act together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import PositiveFloat, settings

AttackName = Literal["none", "sign_flip", "alie", "ipm", "gaussian", "nan", "label_flip"]


@settings
class AttackConfig:
    """Which attack the Byzantine clients make."""

    name: AttackName = "sign_flip"
    scale: PositiveFloat | None = None
    """The attack's strength; None: its own default (see `craft`)."""


def craft(
    attack: AttackConfig,
    deltas: NDArray[np.float32],
    byzantine: NDArray[np.bool_],
    baskets: NDArray[np.int64],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """What is sent when every client computed `deltas` and the Byzantine ones attack.

    ========== ================================================================= ==================
    name       what a Byzantine client sends                                      `scale`, default
    ========== ================================================================= ==================
    none       its honest update
    sign_flip  minus `scale` times its honest update                              factor, 10
    alie       honest mean - z * honest deviation (Baruch et al. 2019, alg. 3)    z, from n and m
    ipm        minus `scale` times the honest mean (Xie et al. 2020, section 4)   factor, 1
    gaussian   noise of `scale` times the honest root mean square                 factor, 10
    nan        nothing but NaN
    label_flip the honest update to labels turned round (see `flip_labels`)
    ========== ================================================================= ==================

    Args:
        attack: The attack.
        deltas: (clients, d) float32, never changed.
        byzantine: (clients,) bool.
        baskets: (clients,) the basket of each client.
        rng: For the attacks that draw.

    Returns:
        (clients, d) float32.

    *Guarantees*
        honest rows stay as they are
    """
    recipe = _RECIPES.get(attack.name)
    if recipe is None or not byzantine.any():
        return deltas
    sent = deltas.copy()
    for liars, honest in _by_basket(byzantine, baskets):
        sent[liars] = recipe(deltas[liars], deltas[honest], attack.scale, rng)
    return sent


def flip_labels(
    attack: AttackConfig, labels: NDArray[np.int64], byzantine: NDArray[np.bool_], num_classes: int
) -> NDArray[np.int64]:
    """Labels to train on: under label_flip the Byzantine clients see class c as num_classes - 1 - c."""
    if attack.name != "label_flip":
        return labels
    flipped = labels.copy()
    flipped[byzantine] = num_classes - 1 - labels[byzantine]
    return flipped


def alie_strength(num_rows: int, num_byzantine: int) -> float:
    """The z that still hides in the crowd: Phi^-1((n - m - s) / (n - m)), s = floor(n/2 + 1) - m.

    >>> round(alie_strength(50, 12), 3)
    0.336
    """
    supporters = num_rows // 2 + 1 - num_byzantine
    honest = num_rows - num_byzantine
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))


Recipe = Callable[
    [NDArray[np.float32], NDArray[np.float32], float | None, np.random.Generator], NDArray[np.float32]
]


def _sign_flip(
    own: NDArray[np.float32], honest: NDArray[np.float32], scale: float | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    return -np.float32(scale or 10.0) * own


def _alie(
    own: NDArray[np.float32], honest: NDArray[np.float32], scale: float | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    z = scale or alie_strength(len(own) + len(honest), len(own))
    row = honest.mean(axis=0) - np.float32(z) * honest.std(axis=0)
    return np.broadcast_to(row, own.shape)


def _ipm(
    own: NDArray[np.float32], honest: NDArray[np.float32], scale: float | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    return np.broadcast_to(-np.float32(scale or 1.0) * honest.mean(axis=0), own.shape)


def _gaussian(
    own: NDArray[np.float32], honest: NDArray[np.float32], scale: float | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    size = (scale or 10.0) * float(np.sqrt(np.mean(np.square(honest, dtype=np.float64))))
    return (size * rng.standard_normal(own.shape)).astype(np.float32)


def _nan(
    own: NDArray[np.float32], honest: NDArray[np.float32], scale: float | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    return np.full_like(own, np.nan)


_RECIPES: dict[str, Recipe] = {
    "sign_flip": _sign_flip,
    "alie": _alie,
    "ipm": _ipm,
    "gaussian": _gaussian,
    "nan": _nan,
}


def _by_basket(
    byzantine: NDArray[np.bool_], baskets: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    everyone_honest = np.flatnonzero(~byzantine)
    for basket in np.unique(baskets[byzantine]):
        inside = baskets == basket
        honest = np.flatnonzero(inside & ~byzantine)
        yield np.flatnonzero(inside & byzantine), honest if honest.size else everyone_honest
