"""How received vectors move a local state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scarcity_ray.plan import GossipPlan
from scarcity_ray.robust.rows import clip_rows, row_norms

Row = npt.NDArray[np.float32]


def mix_noise_aware(state: Row, received: Sequence[Row], plan: GossipPlan) -> Row:
    """Move a state towards the mean of the received vectors, as far as their noise allows.

    Each received vector is clipped to ``plan.receive_norm``, which honest ones exceed with probability below
    0.2 %; the weight of their mean is ``plan.mixing_weight(K)``, the one of least expected squared error.

    Args:
        state: float32 (d,).
        received: K noised vectors, float32 (d,) each.
        plan: Noise scale and clip norm.

    Returns:
        A new float32 (d,) array, summed in float64 and rounded once; a copy of the state if K is 0.
    """
    if not received:
        return state.copy()
    norms = row_norms(list(received))
    mean = _mean(clip_rows(list(received), norms, plan.receive_norm))
    weight = plan.mixing_weight(len(received))
    return ((1.0 - weight) * state.astype(np.float64) + weight * mean).astype(np.float32)


def mix_average(state: Row, received: Sequence[Row], plan: GossipPlan) -> Row:
    """The plain mean of a state and the K received vectors, whatever their noise (spec/hierarchical.md).

    Under a local epsilon of ordinary size this destroys the state: noise of norm sigma sqrt(d) / sqrt(K + 1)
    comes in. Arguments and result as for `mix_noise_aware`.
    """
    if not received:
        return state.copy()
    k = len(received)
    return ((state.astype(np.float64) + k * _mean(received)) / (k + 1)).astype(np.float32)


def _mean(rows: Sequence[Row] | npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    total = np.zeros(len(rows[0]), dtype=np.float64)
    for row in rows:
        total += row
    return total / len(rows)


MIXINGS = {None: mix_noise_aware, "noise_aware": mix_noise_aware, "average": mix_average}
"""By the names of ``GossipConfig.mixing``."""

__all__ = ["MIXINGS", "mix_average", "mix_noise_aware"]
