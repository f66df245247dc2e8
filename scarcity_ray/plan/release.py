"""One Layer 2 release: the baskets' weights, what one client can change, the ring and the noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction

from scarcity_ray.config import CentralNoise
from scarcity_ray.privacy.schedule import Step

_ROUNDED_UP = 1.0 + 2.0**-51
"""More than what rounding can take from a sum of a product and a root, so that nothing depends on it."""


@dataclass(frozen=True)
class BasketFacts:
    """The public facts about one basket's part in a release.

    Attributes:
        domain_id: What the operator's trust is given for.
        num_members: Registered members when the session froze.
        num_rows: Clients behind its fresh aggregate; 0 for a basket that joins with the zero vector.
        num_byzantine: The f that its rule ran with.
        max_row_share: Largest share of one row in a weighted mean; None for every other rule.
        clip_norm: Clip norm of its rows; None: Layer 1's in this release.
        num_persons: Persons (records) behind its smallest row, where they are the unit of privacy; under the
            rule ``weighted`` the greatest number for which no row's share over its own persons exceeds
            max_row_share / num_persons (`persons_of`). None where the client is the unit.
    """

    basket_id: str
    domain_id: str
    num_members: int
    num_rows: int = 0
    num_byzantine: int = 0
    max_row_share: float | None = None
    clip_norm: float | None = None
    num_persons: int | None = None

    @property
    def fresh(self) -> bool:
        """Whether the basket has an aggregate that no release has used."""
        return self.num_rows > 0


@dataclass(frozen=True)
class ReleasePlan:
    """Numbers of one Layer 2 release, all from public facts; every party of a session is given the same.

    Attributes:
        weights: By basket id; 0 without a fresh aggregate, the others sum to 1.
        sensitivities: By basket id, the L2 bound on its vector's change when one client's values change.
        scale: Grid steps to a unit.
        length: Coordinates that travel: the update's, one for each meta-parameter, and with adaptive clipping
            one for the share of norms below the clip norm.
        mu: What the release is charged, all coordinates together: grid_sensitivity over grid_sigma; in zCDP
            sqrt(2 rho).
        step: Where the ledger stands, which mu follows from; None under constant noise.
        clip_norm: Layer 1's clip norm in this release.
        bit_radius: What the share's coordinate moves by when all norms pass the clip norm; 0 without it.
        meta_radius: Half the range of one meta-parameter's coordinate; 0 without any.
        share_sigma: Scale, in grid steps, of the noise that each party adds to its own part; 0 where the
            noise is added to the sum.
        noise: Its law; None where the rows behind it are noised, so that it costs nothing and gets none.
        num_honest: Shares of noise that `mu` counts on; 0 likewise.
    """

    weights: dict[str, float]
    sensitivities: dict[str, float]
    ring_bits: int
    scale: float
    length: int
    mu: float
    clip_norm: float
    bit_radius: float = 0.0
    meta_radius: float = 0.0
    noise: CentralNoise | None = CentralNoise.GAUSSIAN
    share_sigma: float = 0.0
    num_honest: int = 0
    step: Step | None = None

    @property
    def num_idle(self) -> int:
        """Parties of weight 0."""
        return sum(weight == 0.0 for weight in self.weights.values())

    def num_weighted(self, parties: Iterable[str]) -> int:
        """Those of the parties that have weight."""
        return sum(self.weights[party] > 0.0 for party in parties)

    def grid_sensitivity(self, survivors: Sequence[str]) -> float:
        """L2 bound, in grid steps, on the change of the survivors' integer sum.

        A basket's vector changes by at most w Delta; rounding to the grid moves the difference of two values
        by less than one step a coordinate, so by less than sqrt(length) in L2.
        """
        bound = max(self.weights[b] * self.sensitivities[b] for b in survivors)
        return (self.scale * bound + math.sqrt(self.length)) * _ROUNDED_UP

    def grid_sigma(self, survivors: Sequence[str]) -> float:
        """Scale of the noise on the integer sum, in grid steps; in shares, that of all survivors' together.

        Rounded up, so never below what mu claims; 0 where the rows are noised.
        """
        if self.noise is None:
            return 0.0
        if self.share_sigma:
            return math.sqrt(len(survivors)) * self.share_sigma
        sigma = self.grid_sensitivity(survivors) / self.mu
        return math.nextafter(sigma, math.inf) if sigma > 0.0 else 0.0

    def agrees_with(self, other: ReleasePlan) -> bool:
        """Whether another computer made the same of the same facts: equal up to the last bits of its libm."""
        mine, theirs = asdict(self), asdict(other)
        return all(_close(mine[name], theirs[name]) for name in mine)

    def surviving_weight(self, survivors: Sequence[str]) -> float:
        """The survivors' total weight, by which the sum is divided."""
        return math.fsum(self.weights[b] for b in survivors)


def persons_of(counts: Sequence[int], weights: Sequence[float] | None = None) -> int:
    """The number of persons that stands for all rows of an aggregate in its sensitivity.

    One person of row i moves that row by at most 2C / n_i, and a weighted mean by w_i 2C / n_i, w_i being the
    row's share. The result N is the greatest whole number for which max(w) 2C / N is no less than that for
    any row: the least of n_i max(w) / w_i, rounded down. Without weights it is the least n_i.

    Args:
        counts: n_i >= 1, persons behind each row.
        weights: Of each row in a weighted mean, at least 0, of any positive sum.

    >>> persons_of([400, 900]), persons_of([400, 900], [400.0, 900.0]), persons_of([400, 900], [400.0, 500.0])
    (400, 900, 500)
    """
    if weights is None:
        return min(counts)
    widest = Fraction(max(weights))
    return min(
        math.floor(count * widest / Fraction(weight))
        for count, weight in zip(counts, weights, strict=True)
        if weight > 0.0
    )


def _close(mine: object, theirs: object) -> bool:
    if type(mine) is not type(theirs):
        return False
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(_close(mine[key], theirs[key]) for key in mine)
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-13)
    return mine == theirs
