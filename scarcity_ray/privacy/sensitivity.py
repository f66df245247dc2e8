"""How far one client's row, or one person in it, can move each rule's result.

Neighbours differ in the finite values of one client's row (replace-one): membership, the number of rows n and
the weights are public and the same on both sides. Every row is first clipped to `clip_norm` = C, and every
rule's result is clipped to C again; the clip is the projection onto a ball, which moves no two points further
apart, so it changes no bound below and caps each of them by the ball's diameter 2C.

::

    rule                                 bound               is it tight?
    mean, fedavg                         2C / n              yes
    weighted, fedavg with weights        2C greatest share   yes (2C where no share is known)
    trimmed_mean                         2C / (n - 2f)       yes
    median                               2C                  for odd n
    krum, bulyan                         2C                  a search comes close
    multi_krum                           2C                  searches found 0.67 C
    centered_clipping                    2C / n              yes (C: the lesser of clip norm and radius)
    geometric_median, meamed, mda, caf   2C                  no smaller one is claimed

A rule from outside the package states its own (`robust.rules.plugin`): 2C, or its author's claim.

f is the configured one, whatever was refused (``docs/refused_rows.md``). The proofs, and what a client can do
that lies about its weight, are in ``docs/sensitivity.md``.

Where the unit of privacy is a person, neighbours differ in one person of one client, and the client's row
moves by at most `row_move` = delta, far less than 2C. A rule that is Lipschitz in one row moves by its
constant times delta::

    mean, fedavg, centered_clipping (one step, public centre)   1 / n
    weighted, fedavg with weights                               greatest share
    trimmed_mean                                                1 / (n - 2f)
    median                                                      1
    all others                                                  none: they stay at 2C, however small delta is

*Trimmed mean and median.* Let one of a column's n values move by t. Each order statistic moves by at most
`|t|`, in the direction of t, and all n of them together by `|t|`. So the median of an odd column moves by at
most `|t|`, that of an even one by half of it (1 is claimed for both), and the mean of n - 2f order statistics
by `|t| / (n - 2f)`. The columns' t are the coordinates of the row's move, so the same holds of the 2-norms.

*Centred clipping.* One step around the zero delta, which is the last *released* model, is the mean of the
rows' projections onto a ball, and a projection onto a convex set moves no two points further apart.

*The others.* Krum, Multi-Krum, Bulyan, MDA, MeaMed and CAF select or filter: at a tie an arbitrarily small
move exchanges rows that lie 2C apart. The geometric median of two equal groups is any point between them, and
a small move of one row decides which.

All bounds are those of exact arithmetic. `robust` sums in float64 and rounds once to float32, which moves a
result of norm at most C by at most 2^-24 C; Layer 2's integer encoding has its own allowance in the plan.

Guarantees:
    no_pair_of_neighbours_exceeds_the_bound: For every rule, under hypothesis and adversarial search.
    the_tight_bounds_are_reached_within_a_tenth: Those called tight, and Krum's and Bulyan's.
    no_person_moves_a_rule_further_than_its_constant: Under hypothesis, however little the row moves.
    a_rule_without_a_constant_is_moved_far_by_a_small_move: Found for Krum: 2C is no carelessness.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scarcity_ray.errors import TooFewUpdates, UsageError


def rule_sensitivity(
    method: str,
    *,
    num_rows: int,
    num_byzantine: int,
    clip_norm: float,
    max_row_share: float | None = None,
    row_move: float | None = None,
) -> float:
    """The L2 sensitivity, replace-one, of a Layer 1 rule on rows of norm at most `clip_norm`.

    Args:
        method: A member or value of `config.AggregationMethod`.
        num_rows: n, the public number of rows, one a client.
        num_byzantine: The configured f >= 0.
        clip_norm: C > 0, in the unit of the updates.
        max_row_share: The greatest public weight over the sum of weights, in (0, 1], where rows are weighted.
        row_move: How far one row moves between neighbours, above 0; None: 2C, as a client's values do.

    Returns:
        The bound, in the unit of the updates.

    Raises:
        UsageError: For an unknown rule or a value out of range.
        TooFewUpdates: If the rule keeps no row.

    >>> rule_sensitivity("trimmed_mean", num_rows=11, num_byzantine=2, clip_norm=1.0) == 2 / 7
    True
    >>> rule_sensitivity("median", num_rows=11, num_byzantine=2, clip_norm=1.0, row_move=2 / 500)
    0.004
    >>> rule_sensitivity("krum", num_rows=11, num_byzantine=2, clip_norm=1.0, row_move=2 / 500)
    2.0
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise UsageError(f"clip_norm: {clip_norm!r} is not accepted; a positive number")
    if num_byzantine < 0:
        raise UsageError(f"num_byzantine: {num_byzantine!r} is not accepted; at least 0")
    if max_row_share is not None and not 0.0 < max_row_share <= 1.0:
        raise UsageError(f"max_row_share: {max_row_share!r} is not accepted; above 0 and at most 1")
    if row_move is not None and not (math.isfinite(row_move) and row_move > 0):
        raise UsageError(f"row_move: {row_move!r} is not accepted; a positive number")
    name = str(getattr(method, "value", method))
    lipschitz = _LIPSCHITZ.get(name)
    if lipschitz is None:
        raise UsageError(f"method: {name!r} is not accepted; one of {', '.join(sorted(_LIPSCHITZ))}")
    if num_rows < 1:
        raise TooFewUpdates(name, num_rows, 1)
    widest = 2.0 * clip_norm
    move = widest if row_move is None else min(row_move, widest)
    return min(widest, move * lipschitz(num_rows, num_byzantine, max_row_share))


def _mean(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return 1.0 / num_rows if max_row_share is None else max(max_row_share, 1.0 / num_rows)


def _weighted(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return 1.0 if max_row_share is None else max_row_share


def _trimmed_mean(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    kept = num_rows - 2 * num_byzantine
    if kept < 1:
        raise TooFewUpdates("trimmed_mean", num_rows, 2 * num_byzantine + 1)
    return 1.0 / kept


def _median(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return 1.0


def _none(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return math.inf


_LIPSCHITZ: dict[str, Callable[[int, int, float | None], float]] = {
    "mean": _mean,
    "fedavg": _mean,
    "weighted": _weighted,
    "median": _median,
    "trimmed_mean": _trimmed_mean,
    "krum": _none,
    "multi_krum": _none,
    "bulyan": _none,
    "geometric_median": _none,
    "centered_clipping": _mean,
    "meamed": _none,
    "mda": _none,
    "caf": _none,
}
"""How far a rule's result moves, at most, for each unit that one row moves; inf: no such number is proved."""
