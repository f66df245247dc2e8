"""How far a rule's result lies from the mean of honest rows: what gossip could save.

`GossipPlan.mixing_weight` needs kappa, the squared distance between Layer 1's result and the mean of the rows
over the rows' variance. Proven worst cases (`robust.tolerance`) are far above what a rule loses on a quiet
day; weights made for them would pay with noise for errors that are not there. Too small a kappa only forgoes
gain, so this is the least that the rule is known to lose: nobody attacks, rows are Gaussian.

Guarantees:
    - No rule loses less on Gaussian rows than its excess says.
    - A rule that is not listed has excess 0.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from scarcity_ray.config import AggregationMethod, Layer1Config

_NORMAL = NormalDist()


def excess_error(layer1: Layer1Config, num_rows: int, num_byzantine: int, dimension: int) -> float:
    """kappa: E |rule - mean|^2 / E |x_i - m|^2 for n independent Gaussian rows around m.

    - Mean: 0.
    - Krum, Multi-Krum: a mean of k of n rows, (1/k - 1/n) for any k of them; it takes central ones, whose
      squared distances are the lowest of n chi-squared values (Wilson and Hilferty 1931).
    - Trimmed mean and median: the mean is complete and sufficient, so (Basu 1955) the difference has the
      rule's variance less the mean's; the trimmed mean's is Tukey's (1960), and a median keeps one or two.
    - Bulyan: at least as much as a trimmed mean that drops the same 2f of the selected values.

    Args:
        layer1: The rule and its settings.
        num_rows: n.
        num_byzantine: f.
        dimension: d.

    Returns:
        A number from 0 to 1.

    >>> mean = Layer1Config(aggregation_method=AggregationMethod.MEAN)
    >>> excess_error(mean, 10, 2, 64)
    0.0
    """
    method, n = layer1.aggregation_method, max(1, num_rows)
    if method is AggregationMethod.KRUM:
        return _chosen(1, n, dimension)
    if method is AggregationMethod.MULTI_KRUM:
        chosen = n - num_byzantine - 2 if layer1.num_selected is None else layer1.num_selected
        return _chosen(min(n, max(1, chosen)), n, dimension)
    if method in (AggregationMethod.TRIMMED_MEAN, AggregationMethod.BULYAN):
        return (trimmed_variance(min(num_byzantine / n, 0.5)) - 1.0) / n
    if method is AggregationMethod.MEDIAN:
        return (trimmed_variance((n - 1) // 2 / n) - 1.0) / n
    return 0.0


def _chosen(k: int, n: int, dimension: int) -> float:
    if k >= n:
        return 0.0
    below = n * _NORMAL.pdf(_NORMAL.inv_cdf(k / n)) / k
    scale = 2.0 / (9.0 * dimension)
    return (1.0 / k - 1.0 / n) * max(0.0, 1.0 - scale - below * math.sqrt(scale)) ** 3


def trimmed_variance(share: float) -> float:
    """Variance, times n, of the trimmed mean of n standard normal values, for large n (Tukey 1960).

    Args:
        share: Dropped at each end, from 0 (the mean) to 0.5 (the median).

    >>> trimmed_variance(0.0)
    1.0
    """
    if share <= 0.0:
        return 1.0
    kept = 1.0 - 2.0 * share
    if kept < 1e-3:
        return math.pi / 2.0
    q = -_NORMAL.inv_cdf(share)
    return (kept - 2.0 * q * _NORMAL.pdf(q) + 2.0 * share * q * q) / kept**2


__all__ = ["excess_error", "trimmed_variance"]
