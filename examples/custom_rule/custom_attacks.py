"""An attack of one's own, for the lab: `lab.attack.name: custom_attacks:Drift`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.workloads.attacks import Attack, View


class Drift(Attack):
    """All attackers send the honest mean, moved one fixed way by `share` of its length.

    Args:
        share: How far, in lengths of the honest mean.
    """

    colludes = True

    def __init__(self, share: float = 1.0) -> None:
        self.share = share

    def rows(self, view: View) -> NDArray[np.float32]:
        """See `Attack.rows`."""
        mean = view.honest.mean(axis=0)
        way = np.full(mean.shape, np.linalg.norm(mean) / np.sqrt(mean.size), np.float32)
        return np.broadcast_to(mean + np.float32(self.share) * way, view.own.shape)
