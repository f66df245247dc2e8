"""Attacks of colluders who see the honest updates and all send one row."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from scarcity_ray.workloads.attacks.attack import Attack, Rows, View


@dataclass(frozen=True)
class LittleIsEnough(Attack):
    """ALIE: honest mean - z times honest deviation, per coordinate (Baruch et al. 2019, algorithm 3).

    Attributes:
        z: None: the paper's, from the numbers of clients (`alie_strength`).
    """

    z: float | None = None
    colludes = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        z = alie_strength(len(view.own) + len(view.honest), len(view.own)) if self.z is None else self.z
        row = view.honest.mean(axis=0) - np.float32(z) * view.honest.std(axis=0)
        return np.broadcast_to(row, view.own.shape)


def alie_strength(num_rows: int, num_byzantine: int) -> float:
    """The z that still hides in the crowd: Phi^-1((n - m - s) / (n - m)), s = floor(n/2 + 1) - m.

    >>> round(alie_strength(50, 12), 3)
    0.336
    """
    supporters = num_rows // 2 + 1 - num_byzantine
    honest = num_rows - num_byzantine
    share = (honest - supporters) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))


@dataclass(frozen=True)
class InnerProductManipulation(Attack):
    """IPM: minus `scale` times the honest mean (Xie, Koyejo, Gupta 2020, section 4)."""

    scale: float = 1.0
    colludes = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        return np.broadcast_to(-np.float32(self.scale) * view.honest.mean(axis=0), view.own.shape)


@dataclass(frozen=True)
class Mimic(Attack):
    """All send what one honest client sends (Karimireddy, He, Jaggi 2022, section 3 and appendix).

    The victim is the honest client furthest along the direction in which the honest updates differ most. The
    paper estimates that direction over the first rounds (Oja); here a round's own is found exactly, and
    `learned` fixes the victim.

    Attributes:
        victim: Place of the victim among the honest clients; None: chosen anew each round.
    """

    victim: int | None = None
    colludes = True

    def rows(self, view: View) -> Rows:
        """See `Attack.rows`."""
        place = most_deviant(view.honest) if self.victim is None else self.victim
        return np.broadcast_to(view.honest[place], view.own.shape)

    def learned(self, view: View) -> Mimic:
        """See `Attack.learned`."""
        return Mimic(most_deviant(view.honest))


def most_deviant(rows: Rows) -> int:
    """The row with the largest part along the first principal direction of all (h, d) rows.

    >>> most_deviant(np.array([[0, 1], [1, 0], [9, 0], [0, 0]], np.float32))
    2
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred @ centred.T)
    return int(np.argmax(np.abs(vectors[:, -1])))
