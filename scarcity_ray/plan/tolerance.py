"""How many of a basket's rows may lie, and how many rows its rule then needs."""

from __future__ import annotations

import math

from scarcity_ray.config import Layer1Config
from scarcity_ray.robust import least_rows


def tolerated(layer1: Layer1Config, num_members: int) -> int:
    """The f of a basket of `num_members` registered clients."""
    if layer1.num_byzantine is not None:
        return layer1.num_byzantine
    return math.floor(layer1.byzantine_fraction * num_members + 1e-9)


def rows_behind_pre(layer1: Layer1Config, num_byzantine: int) -> int:
    """Rows that the rule needs behind its pre-aggregation, which itself needs a majority of honest rows."""
    rows = least_rows(layer1.aggregation_method, num_byzantine)
    for _ in range(layer1.pre.count("bucketing")):
        rows = layer1.bucket_size * (rows - 1) + 1
    return max(rows, 2 * num_byzantine + 1) if layer1.pre else rows
