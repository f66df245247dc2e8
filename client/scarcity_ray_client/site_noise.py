"""A client noises its own row before it leaves (``privacy: {noise: site}``, docs/site_noise.md).

Whatever is made of the row afterwards (gossip, any rule, sums, models) is post-processing and costs nothing
more. The mechanism, for a row that is the mean over n persons (records), as `persons` makes it::

    q = rint(clip(row, C) / s)    integers on a grid of step s
    k = q + noise                 independent in each coordinate, of scale sigma
    sent: s k                     rounded to float32

*Sensitivity.* Replace one of the n persons. The mean moves by 2 C / n at most, and rounding it to float32, on
its way to here, by `ROW_SLACK` C at most. Clipping projects on a ball, which moves no two rows further apart.
Rounding to the grid moves the difference of two coordinates by less than one step, so by less than sqrt(d)
steps in L2. Together, in steps::

    Delta = (2 C / n + ROW_SLACK C) / s + sqrt(d)

*Privacy.* q is a vector of integers of L2 sensitivity Delta. Discrete Gaussian noise of scale sigma makes it
rho-zCDP with rho = Delta^2 / (2 sigma^2) (Canonne, Kamath, Steinke 2020, theorem 14). Continuous Gaussian
noise, rounded afterwards, makes it mu-GDP with mu = Delta / sigma (Dong, Roth, Su 2022, theorem 2.7). The
scale is Delta / mu rounded up, with mu = sqrt(2 rho) in the first case. Neighbours have the same n, which is
public, and so the same s and sigma.

*Several rows.* The next row starts from a model that is made of noised rows, so it is chosen by what was
sent before, and mu squared adds up under the client's cap (`Accounting`). Other clients' rows are functions
of their own persons and of what was sent: whoever reads everything learns of one person what her client's
own rows say.

*One draw a charge.* Two rows of one charge would have half the variance of their noise averaged away. Noise
comes from the operating system for each call, and nothing here is remembered; what has been drawn is sent
again as the same bytes, or lost.

Guarantees:
    no_person_moves_a_row_further_than_the_noise_is_for: Searched, with clipped and rounded rows.
    noised_rows_have_the_law_and_scale_of_the_claim: Both laws, two-sided.
    the_grid_adds_one_per_cent_at_most: To the sensitivity.
    two_rows_never_have_the_same_noise
    no_number_turns_the_noise_off: NaN, below 0 or no whole number of persons; only an infinite mu does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.arguments import number_of
from scarcity_ray_client.errors import TooFewPersons, UsageError, shown
from scarcity_ray_client.noise.discrete_gaussian import discrete_gaussian
from scarcity_ray_client.noise.source import NoiseSource, SystemNoise, rounded_gaussian

ROW_SLACK = 2.0**-20
"""What float32 rounding adds to the distance of a row and its neighbour, relative to the clip norm.

Between the exact mean over the persons and the row that is clipped and noised (or, under central noise, that
the rule reads), a vector of norm at most C is rounded to float32 as the client sends it, as its buffered
updates become one row, and at two clips, of which the second leaves rows of norm up to (1 + 2 u) C as they
are: at most 6 u for either neighbour, with u = 2^-24. 16 u for both leaves room for the client's own sums in
float64 (up to 2^27 persons) and for its clip of each contribution.
"""
GREATEST_COUNT = 2**31 - 1
"""Persons, or coordinates, that may be stated."""
GRID_SHARE = 0.01
"""Of the sensitivity, what rounding to the grid may add."""
MOST_STEPS = 2.0**50
"""Scale of the noise in grid steps that both laws can be drawn at."""


@dataclass(frozen=True)
class SiteNoise:
    """How the clients of a federation noise their rows; the same for all, but for their numbers of persons.

    Attributes:
        mu: What a row is charged: Delta over sigma, sqrt(2 rho) in zCDP; ``inf`` adds no noise.
        clip_norm: C, norm of one person's contribution and so of a row.
        min_persons: A client with fewer is refused.
        dimension: d.
        is_discrete: Whether noise is the discrete Gaussian; else the continuous one, rounded.

    Raises:
        UsageError: For a number that there can be no noise of.

    >>> noise = SiteNoise(mu=0.1, clip_norm=1.0, min_persons=400, dimension=31)
    >>> round(noise.sigma(500), 4), round(noise.least_clip_norm, 3)
    (0.0402, 1.432)
    """

    mu: float
    clip_norm: float
    min_persons: int
    dimension: int
    is_discrete: bool = True

    def __post_init__(self) -> None:
        # A cluster may have told these: one that is no number must not turn the noise off.
        mu, clip_norm = number_of("mu", self.mu), number_of("clip_norm", self.clip_norm)
        if not mu > 0.0:
            raise UsageError(f"mu: {mu!r} is not accepted; above 0")
        if not 1e-20 <= clip_norm <= 1e20:
            raise UsageError(f"clip_norm: {clip_norm!r} is not accepted; from 1e-20 to 1e20")
        for name in ("min_persons", "dimension"):
            if _count(name, getattr(self, name)) < 1:
                raise UsageError(f"{name}: {getattr(self, name)} is not accepted; at least 1")

    def step(self, num_persons: int) -> float:
        """The grid's step s, a power of two, for a client of so many persons."""
        most = GRID_SHARE * self._move(num_persons) / math.sqrt(self.dimension)
        return 2.0 ** (math.frexp(most)[1] - 1)

    def sensitivity(self, num_persons: int) -> float:
        """Delta, in steps."""
        moved = self._move(num_persons) / self.step(num_persons)
        return (moved + math.sqrt(self.dimension)) * (1.0 + 2.0**-50)

    def grid_sigma(self, num_persons: int) -> float:
        """The noise's scale in steps, rounded up; 0 if there is none."""
        sigma = self.sensitivity(num_persons) / self.mu
        return math.nextafter(sigma, math.inf) if sigma > 0.0 else 0.0

    def sigma(self, num_persons: int) -> float:
        """The noise's standard deviation in a coordinate, in the unit of the rows."""
        return self.grid_sigma(num_persons) * self.step(num_persons)

    @property
    def least_clip_norm(self) -> float:
        """What may clip noised rows: C + sigma (sqrt(d) + 3) of the smallest client.

        An honest row exceeds it with probability below 0.2 %: a standard Gaussian vector's norm is
        1-Lipschitz with mean at most sqrt(d), so its tail past sqrt(d) + 3 is below that of a Gaussian.
        """
        return self.clip_norm + self.sigma(self.min_persons) * (math.sqrt(self.dimension) + 3.0)

    def whole_client(self, num_persons: int) -> float:
        """How many times as far as one of its persons a whole client moves its row: 2 C, not 2 C / n."""
        moved = self.clip_norm * (2.0 + ROW_SLACK) / self.step(num_persons) + math.sqrt(self.dimension)
        return moved / self.sensitivity(num_persons)

    def noised(
        self, row: npt.ArrayLike, num_persons: int, noise: NoiseSource | None = None, stream: str = ""
    ) -> npt.NDArray[np.float32]:
        """The row to send, float32, under one charge of `mu`: see `noised_row`.

        Args:
            row: (d,), the mean over the client's persons; or (m, d), m of them under m charges.
            num_persons: n, as it is stated with the row.
            noise: The operating system's entropy if None; anything else voids the claim, and is for tests.
            stream: Name of the noise for such a source, unique to the row.

        Raises:
            TooFewPersons: For fewer than `min_persons`.
            UsageError: For a row of another shape, or that is not finite, and a number that counts nobody.
        """
        if _count("num_persons", num_persons) < self.min_persons:
            raise TooFewPersons(
                f"num_persons: {num_persons} is below privacy.min_persons = {self.min_persons}"
            )
        if np.shape(row)[-1:] != (self.dimension,):
            raise UsageError(f"row: the shape {np.shape(row)} is not accepted; ({self.dimension},)")
        return noised_row(
            row,
            sigma=self.grid_sigma(num_persons),
            step=self.step(num_persons),
            clip_norm=self.clip_norm,
            is_discrete=self.is_discrete,
            noise=noise,
            stream=stream,
        )

    def _move(self, num_persons: int) -> float:
        return self.clip_norm * (2.0 / num_persons + ROW_SLACK)


def _count(name: str, number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number > GREATEST_COUNT:
        raise UsageError(f"{name}: {shown(number)} is not accepted; a whole number up to {GREATEST_COUNT}")
    return int(number)


def noised_row(
    row: npt.ArrayLike,
    *,
    sigma: float,
    step: float,
    clip_norm: float,
    is_discrete: bool = True,
    noise: NoiseSource | None = None,
    stream: str = "",
) -> npt.NDArray[np.float32]:
    """Clip a row, round it to a grid, and noise the integers, as the module's proof has it.

    Args:
        row: (d,), finite; or (m, d), m of them, each noised by itself.
        sigma: Scale of the noise in steps; 0 adds none.
        step: Of the grid, a power of two.
        clip_norm: C.
        is_discrete: The noise's law, as in `SiteNoise`.
        noise: As in `SiteNoise.noised`, as `stream` is.

    Returns:
        float32, of the same shape.

    Raises:
        UsageError: If a number of the row is not finite.
    """
    exact = np.array(row, np.float64)
    if not np.isfinite(exact).all():
        raise UsageError("row: not all numbers are finite")
    norms = np.sqrt(np.einsum("...i,...i->...", exact, exact))[..., None]
    exact *= clip_norm / np.maximum(norms, clip_norm)
    whole = np.rint(exact / step).astype(np.int64)
    add = discrete_gaussian if is_discrete else rounded_gaussian
    return (add(whole, sigma, noise or SystemNoise(), stream) * step).astype(np.float32)
