"""How far one client's row can move each rule's result.

Neighbours differ in the finite values of one client's row (replace-one): membership, the number of rows n and
the weights are public and the same on both sides. Every row is first clipped to `clip_norm` = C, and every
rule's result is clipped to C again; the clip is the projection onto a ball, which moves no two points further
apart, so it changes no bound below and caps each of them by the ball's diameter 2C.

Proofs, for rows x and x' that differ in row i only, so that ``|x_i - x'_i| <= 2C``:

mean, fedavg
    The difference of the results is (x_i - x'_i) / n: at most 2C/n. Tight: opposite rows of norm C.
weighted
    The difference is (w_i / sum w) (x_i - x'_i), the weights being public: at most 2C times the greatest
    share. Without a known share, 2C. Tight. `fedavg` with weights is this rule.

    The weights are the clients' examples as each of them says, capped: w_i = min(n_i, N) with N =
    ``layer1.max_examples``, and 1 for who does not say. What a client says of its examples is public, as that
    it takes part is, and the same for both neighbours; the weights are frozen when the basket aggregates,
    before any of it is sent, and the greatest share goes with the aggregate (`BasketFacts.max_row_share`)
    into the noise of the release that it enters. So claims may change from round to round, and a client may
    lie: it moves its own share, to at most N / (N + n - 1) whatever it claims, with others that claim at
    least 1 each (N / (N + sum of theirs) exactly), since w / (w + rest) rises in w; and the noise with it.
trimmed_mean
    Per coordinate the result is the mean of the n - 2f middle values. Moving one value from s to t moves each
    order statistic by some amount, all in the direction of t - s, and these amounts sum to ``|t - s|``; so
    the kept ones move their sum by at most ``|t - s|``. Over the coordinates the result moves by at most
    ``|x_i - x'_i| / (n - 2f)``: at most 2C/(n - 2f). Tight: the moved row stays in the middle.
median
    For odd n no better than 2C: n = 2k + 1 rows, k at v and k at -v, and the last one decides. For even n
    the median is a trimmed mean of two rows and moves by at most C; 2C is claimed for both, so that the bound
    does not rise when one more row arrives.
krum, bulyan
    They select: two groups of rows may tie, and one row tips the scale. At most 2C, and a search comes close
    (for Bulyan at its least n = 4f + 3; with more rows it averages more of both groups).
multi_krum
    It averages what it selected, and one row may exchange many of the selected: 2C is claimed; searches found
    0.67 C.
centered_clipping
    One step around the public zero vector is the mean of rows clipped to the radius: 2C/n with C the lesser
    of clip norm and radius, which the caller passes. Tight.
geometric_median, meamed, mda, caf
    Each result is a convex combination of clipped rows or lies, per coordinate, among their values, and is
    clipped to C: 2C, the ball's diameter. No smaller bound is claimed.

f is the configured one, whatever was refused. Taking refused rows off it would be covered by the relation
above (acceptance is public), but then a row's acceptance could move the trimmed mean by sqrt(n)/2 times its
bound, and the rule would be too weak whenever an honest client's update is refused. With f kept, a row that
joins moves it by at most 2C/(n + 1 - 2f). docs/refused_rows.md has the proofs.

All bounds are those of exact arithmetic. `robust` sums in float64 and rounds once to float32, which moves a
result of norm at most C by at most 2^-24 C; Layer 2's integer encoding has its own allowance in the plan.

Guarantees:
    no_pair_of_neighbours_exceeds_the_bound: For every rule, under hypothesis and adversarial search.
    the_tight_bounds_are_reached_within_a_tenth: Those called tight, and Krum's and Bulyan's.
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
) -> float:
    """The L2 sensitivity, replace-one, of a Layer 1 rule on rows of norm at most `clip_norm`.

    Args:
        method: A member or value of `config.AggregationMethod`.
        num_rows: n, the public number of rows, one a client.
        num_byzantine: The configured f >= 0.
        clip_norm: C > 0, in the unit of the updates.
        max_row_share: The greatest public weight over the sum of weights, in (0, 1], where rows are weighted.

    Returns:
        The bound, in the unit of the updates.

    Raises:
        UsageError: For an unknown rule or a value out of range.
        TooFewUpdates: If the rule keeps no row.

    >>> rule_sensitivity("trimmed_mean", num_rows=11, num_byzantine=2, clip_norm=1.0) == 2 / 7
    True
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise UsageError(f"clip_norm: {clip_norm!r} is not accepted; a positive number")
    if num_byzantine < 0:
        raise UsageError(f"num_byzantine: {num_byzantine!r} is not accepted; at least 0")
    if max_row_share is not None and not 0.0 < max_row_share <= 1.0:
        raise UsageError(f"max_row_share: {max_row_share!r} is not accepted; above 0 and at most 1")
    name = str(getattr(method, "value", method))
    contraction = _CONTRACTIONS.get(name)
    if contraction is None:
        raise UsageError(f"method: {name!r} is not accepted; one of {', '.join(sorted(_CONTRACTIONS))}")
    if num_rows < 1:
        raise TooFewUpdates(name, num_rows, 1)
    return 2.0 * clip_norm * min(1.0, contraction(num_rows, num_byzantine, max_row_share))


def _mean(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return 1.0 / num_rows if max_row_share is None else max(max_row_share, 1.0 / num_rows)


def _weighted(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return 1.0 if max_row_share is None else max_row_share


def _trimmed_mean(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    kept = num_rows - 2 * num_byzantine
    if kept < 1:
        raise TooFewUpdates("trimmed_mean", num_rows, 2 * num_byzantine + 1)
    return 1.0 / kept


def _selection(num_rows: int, num_byzantine: int, max_row_share: float | None) -> float:
    return 1.0


_CONTRACTIONS: dict[str, Callable[[int, int, float | None], float]] = {
    "mean": _mean,
    "fedavg": _mean,
    "weighted": _weighted,
    "median": _selection,
    "trimmed_mean": _trimmed_mean,
    "krum": _selection,
    "multi_krum": _selection,
    "bulyan": _selection,
    "geometric_median": _selection,
    "centered_clipping": _mean,
    "meamed": _selection,
    "mda": _selection,
    "caf": _selection,
}


__all__ = ["rule_sensitivity"]
