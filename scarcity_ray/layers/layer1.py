"""Layer 1: a basket's rows become one vector by a robust rule, clipped before and after.

Each row is clipped to ``clip_norm``, the configured rule runs with the configured f, and its result is
clipped to ``clip_norm`` again, since median, trimmed mean and Bulyan can leave the ball.

Guarantees:
    The aggregate has at most the clip norm, to float32 rounding.
    With fewer rows than the rule needs it refuses; it never falls back to a weaker rule.
    The aggregate is bitwise the same for any driver of blocks, and with and without a report.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, Layer1Config
from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.layers.models import BasketModel, Placing
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.robust import (
    AggregationResult,
    Bucketing,
    CenteredClipping,
    MapBlocks,
    PreAggregation,
    Rule,
    ScaledRows,
    aggregate_blocks,
    agreement,
    clip_vector,
    estimated_seconds,
    get_pre_aggregation,
    get_rule,
    inline_blocks,
    num_columns,
    row_norms,
)
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.robust.measures.rows import as_rows

BlocksOf = Callable[[Rows, float], MapBlocks]
"""Makes a driver over the column blocks of rows, given the seconds that one core is estimated to take."""


def _inline(rows: Rows, seconds: float) -> MapBlocks:
    return inline_blocks(rows)


CLIP_ROUNDING = 2.0**-23
"""What a row that was clipped in float32 may exceed the clip norm by; `plan.FLOAT32_SLACK` covers it."""


class Layer1Aggregator:
    """Aggregates one basket at a time.

    Args:
        config: Layer 1's settings.
        blocks_of: Where column blocks are computed: in this thread by default, or as tasks.
    """

    def __init__(self, config: Layer1Config | None = None, *, blocks_of: BlocksOf = _inline) -> None:
        self._config = config or Layer1Config()
        self._plan = FederationPlan(HierarchicalFederationConfig(layer1=self._config))
        self._blocks_of = blocks_of
        self._rule: str | Rule = self._config.aggregation_method.value
        if self._config.aggregation_method is AggregationMethod.CENTERED_CLIPPING:
            self._rule = CenteredClipping(radius=self._config.clipping_radius or self._config.clip_norm)

    def _pre(self, seed: int) -> list[str | PreAggregation]:
        size = self._config.bucket_size
        return [Bucketing(size, seed) if step == "bucketing" else step for step in self._config.pre]

    def _seconds(self, rows: Rows, pre: Sequence[str | PreAggregation]) -> float:
        steps = [get_pre_aggregation(step) for step in pre]
        return estimated_seconds(get_rule(self._rule), len(rows), num_columns(rows), steps)

    def seed(self, noise: NoiseSource, name: str) -> int:
        """A seed for bucketing that no client can foresee: who knows it can fill buckets at will.

        Args:
            noise: Where it comes from.
            name: Of the aggregate, unique.
        """
        if "bucketing" not in self._config.pre:
            return 0
        draw = noise.standard_normal(4, f"bucketing/{name}")
        return int.from_bytes(hashlib.sha256(draw.tobytes()).digest()[:7], "little")

    def aggregate(
        self,
        updates: ArrayLike | Sequence[ArrayLike],
        weights: ArrayLike | None = None,
        *,
        basket_id: str = "",
        client_ids: Sequence[str] | None = None,
        num_members: int | None = None,
        round_id: int = 0,
        timestamp: float = 0.0,
        meta: NDArray[np.float64] | None = None,
        bucketing_seed: int = 0,
        raw_norms: ArrayLike | None = None,
        report: bool = False,
    ) -> BasketModel:
        """Aggregate one row a client.

        Args:
            updates: n finite rows of length d.
            weights: (n,) public weights, for the ``weighted`` method only.
            basket_id: Goes into the result.
            client_ids: Who sent the rows; their indices as text by default.
            num_members: Registered members, which f is a fraction of; n by default.
            round_id: Goes into the result.
            timestamp: Goes into the result.
            meta: Mean of the reported meta-parameters.
            bucketing_seed: Of bucketing's permutation; one that nobody could foresee.
            raw_norms: (n,) norms of the rows before anything clipped them, for adaptive clipping.
            report: Whether the result says how each row stood to it.

        Raises:
            UsageError: For rows of another kind, or rows that are not finite.
            TooFewUpdates: With fewer rows than the rule needs for f, or fewer than ``min_updates``.
        """
        rows = as_rows(updates)
        count = len(rows)
        members = count if num_members is None else num_members
        method, least = self._config.aggregation_method, self._plan.least_rows(members)
        if count < least:
            raise TooFewUpdates(method.value, count, least)
        norms = row_norms(rows)
        if not np.isfinite(norms).all():
            raise UsageError(f"rows {np.flatnonzero(~np.isfinite(norms)).tolist()} are not finite")
        clip_norm = self._config.clip_norm
        clipped, norms = _clipped(rows, norms, clip_norm)
        shares = _shares(weights, count) if method is AggregationMethod.WEIGHTED else None
        f = self._plan.num_byzantine(members)
        pre = self._pre(bucketing_seed)
        result = aggregate_blocks(
            self._blocks_of(clipped, self._seconds(clipped, pre)),
            count,
            method=self._rule,
            num_byzantine=f,
            pre=pre,
            weights=shares,
            num_selected=self._config.num_selected if method is AggregationMethod.MULTI_KRUM else None,
            norms=norms,
            report=report,
        )
        ids = tuple(client_ids) if client_ids is not None else tuple(map(str, range(count)))
        return BasketModel(
            basket_id=basket_id,
            aggregate=clip_vector(result.vector, clip_norm),
            n_contributors=count,
            round_id=round_id,
            timestamp=timestamp,
            confidence=min(1.0, count / max(1, members)),
            num_byzantine=f,
            n_members=members,
            selected=tuple(ids[index] for index in result.selected),
            max_row_share=None if shares is None else float(shares.max()),
            meta=np.zeros(0) if meta is None else meta,
            clip_norm=clip_norm,
            bit=0.0 if raw_norms is None else float(np.mean(np.asarray(raw_norms) <= clip_norm)) - 0.5,
            placings=_placings(ids, result),
        )


def _clipped(rows: Rows, norms: NDArray[np.float64], clip_norm: float) -> tuple[Rows, NDArray[np.float64]]:
    """The rows and their norms, with those above `clip_norm` (by more than rounding) scaled to it.

    No row is copied: what is above is scaled within each block, to the bits that `clip_vector` gives.
    """
    above = norms > clip_norm * (1.0 + CLIP_ROUNDING)
    if not above.any():
        return rows, norms
    factors = np.divide(clip_norm, norms, out=np.ones_like(norms), where=above)
    return ScaledRows(rows, factors), np.minimum(norms, clip_norm)


def _placings(ids: Sequence[str], result: AggregationResult) -> dict[str, Placing]:
    report = result.report
    if report is None:
        return {}
    entered, shares = set(result.selected), result.weights
    if shares is None:
        shares = np.zeros(len(ids))
        shares[list(result.selected)] = 1.0 / len(result.selected)
    agreed = agreement(report.distances, shares)
    return {
        client_id: Placing(
            selected=row in entered,
            distance=float(report.distances[row]),
            z=float(report.z[row]),
            trimmed=None if report.outside is None else float(report.outside[row]),
            agreement=float(agreed[row]),
        )
        for row, client_id in enumerate(ids)
    }


def _shares(weights: ArrayLike | None, count: int) -> NDArray[np.float64]:
    shares = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    total = math.fsum(shares.tolist()) if shares.shape == (count,) else math.nan
    if not (math.isfinite(total) and total > 0.0 and bool((shares >= 0.0).all())):
        raise UsageError(f"weights must be {count} finite numbers of at least 0, not all 0")
    return shares / total
