"""Attacks that each Byzantine client can make alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.workloads.attacks.attack import Attack, Rows, View


@dataclass(frozen=True)
class Honest(Attack):
    """No attack: its honest update."""

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return view.own


@dataclass(frozen=True)
class SignFlip(Attack):
    """Minus `scale` times its honest update (Li et al. 2019, RSA, section 5: sign-flipping)."""

    scale: float = 10.0

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return -np.float32(self.scale) * view.own


@dataclass(frozen=True)
class ScaledGradient(Attack):
    """`scale` times its honest update (Bhagoji et al. 2019, explicit boosting)."""

    scale: float = 10.0

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return np.float32(self.scale) * view.own


@dataclass(frozen=True)
class Gaussian(Attack):
    """Noise of `scale` times the honest root mean square (Blanchard et al. 2017, section 6, in size)."""

    scale: float = 10.0

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        size = self.scale * float(np.sqrt(np.mean(np.square(view.honest, dtype=np.float64))))
        return (size * view.rng.standard_normal(view.own.shape)).astype(np.float32)


@dataclass(frozen=True)
class NotFinite(Attack):
    """Nothing but NaN or infinity: no paper's attack, but the cheapest, and fatal to an unguarded mean."""

    value: float

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return np.full_like(view.own, self.value)


@dataclass(frozen=True)
class LabelFlip(Attack):
    """The honest update to turned labels: c becomes num_classes - 1 - c (Karimireddy, He, Jaggi 2022)."""

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`; the labels were turned before."""
        return view.own

    def labels(self, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
        """See `Attack.labels`."""
        return num_classes - 1 - labels
