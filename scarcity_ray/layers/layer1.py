"""Layer 1: a basket's rows become one vector by a robust rule, clipped before and after.

Each row is clipped to ``clip_norm``, the configured rule runs with the configured f, and its result is
clipped to ``clip_norm`` again, since median, trimmed mean and Bulyan can leave the ball.

Rows that are tensors are clipped, measured and combined on their device (docs/gpu.md), and with `device`
NumPy's are copied there first. Only small results come back, such as n x n matrices and distances from the
aggregate, of which placings are made here.

Guarantees:
    the_aggregate_has_at_most_the_clip_norm: To float32 rounding.
    With fewer rows than the rule needs it refuses; it never falls back to a weaker rule.
    the_aggregate_is_bitwise_the_same_for_any_driver_of_blocks: With and without a report.
    on_a_device_rows_are_clipped_as_here_and_the_same_are_selected: Values differ in the last place, where
        float64 sums in another order do.
    an_aggregate_of_tensors_lies_on_their_device_and_is_float32: Whatever their type, which might not hold a
        vector within the clip norm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, Layer1Config, stream
from scarcity_ray.errors import RuleFailed, TooFewUpdates, UsageError
from scarcity_ray.layers.models import BasketModel, Placing
from scarcity_ray.plan import FederationPlan, persons_of
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.robust import (
    AggregationResult,
    Bucketing,
    MapBlocks,
    PluginRule,
    PreAggregation,
    Rule,
    ScaledRows,
    aggregate_blocks,
    agreement,
    clip_vector,
    estimated_seconds,
    get_pre_aggregation,
    inline_blocks,
    num_columns,
    row_norms,
)
from scarcity_ray.robust.arrays.blocks import Rows
from scarcity_ray.robust.measures.rows import as_rows
from scarcity_ray.robust.tensors.detection import REMEDY, copied_to, tensor_rows

BlocksOf = Callable[[Rows, float], MapBlocks]
"""Chooses how the column blocks of rows are mapped, given the seconds that one core is estimated to take."""

CLIP_ROUNDING = 2.0**-23
"""Relative excess over the clip norm of a row clipped in float32; `plan.FLOAT32_SLACK` covers it."""


class PlacedRows(Protocol):
    """n rows where they are: NumPy's here, or `robust.tensors`' on a device."""

    num_columns: int

    def __len__(self) -> int:
        """Number of rows, n."""

    def norms(self) -> NDArray[np.float64]:
        """See `robust.row_norms`."""

    def scaled_blocks(self, factors: NDArray[np.float64] | None, seconds: float) -> MapBlocks:
        """A driver of the rows times (n,) factors, formed on demand, each in float64 and rounded to float32.

        `seconds` is what one core of this machine would take for the rule.
        """

    def clipped(self, vector: NDArray[np.float32], clip_norm: float) -> NDArray[np.float32]:
        """See `robust.clip_vector`, of a vector that lies with the rows."""


class _NumpyRows:
    def __init__(self, rows: Rows, blocks_of: BlocksOf) -> None:
        self._rows, self._blocks_of = rows, blocks_of
        self.num_columns = num_columns(rows) if len(rows) else 0

    def __len__(self) -> int:
        return len(self._rows)

    def norms(self) -> NDArray[np.float64]:
        return row_norms(self._rows)

    def scaled_blocks(self, factors: NDArray[np.float64] | None, seconds: float) -> MapBlocks:
        rows = self._rows if factors is None else ScaledRows(self._rows, factors)
        return self._blocks_of(rows, seconds)

    def clipped(self, vector: NDArray[np.float32], clip_norm: float) -> NDArray[np.float32]:
        return clip_vector(vector, clip_norm)


@dataclass(frozen=True, eq=False)
class Layer1Input:
    """What a basket gives to Layer 1.

    Attributes:
        rows: n finite rows of length d, one a client; tensors too, as `robust.aggregate` takes them.
        weights: (n,) public weights, for the ``weighted`` method only.
        client_ids: Who sent the rows; their indices as text by default.
        num_members: Registered members, which f is a fraction of; n by default.
        raw_norms: (n,) norms of the rows before clipping, for adaptive clipping.
        meta: Mean of the reported meta-parameters.
        num_persons: Persons behind each row, where they are the unit of privacy.
    """

    rows: ArrayLike | Sequence[ArrayLike]
    weights: ArrayLike | None = None
    client_ids: Sequence[str] | None = None
    num_members: int | None = None
    raw_norms: ArrayLike | None = None
    meta: NDArray[np.float64] | None = None
    num_persons: Sequence[int] | None = None
    basket_id: str = ""
    round_id: int = 0
    timestamp: float = 0.0


class Layer1Aggregator:
    """Aggregates one basket at a time.

    Args:
        blocks_of: Where column blocks are computed: in this thread by default, or as tasks.
        device: Where NumPy's rows are copied to and aggregated, as torch names it, such as "cuda"; the
            aggregate is NumPy's again. None: they stay here. A rule from outside gets NumPy's rows always.
    """

    def __init__(
        self,
        config: Layer1Config | None = None,
        *,
        blocks_of: BlocksOf | None = None,
        device: str | None = None,
    ) -> None:
        self._device = device
        self._config = config or Layer1Config()
        self._plan = FederationPlan(HierarchicalFederationConfig(layer1=self._config))
        self._blocks_of: BlocksOf = blocks_of or (lambda rows, seconds: inline_blocks(rows))
        self._rule: Rule = self._plan.rule

    @property
    def config(self) -> Layer1Config:
        """What it aggregates by."""
        return self._config

    def aggregate(
        self,
        updates: ArrayLike | Sequence[ArrayLike],
        weights: ArrayLike | None = None,
        *,
        basket_id: str = "",
    ) -> BasketModel:
        """`aggregate_basket` of n finite rows alone, and of (n,) public weights where the rule weighs.

        Rows that are tensors give a model whose aggregate is one, float32, on their device.
        """
        return self.aggregate_basket(Layer1Input(updates, weights, basket_id=basket_id))

    def aggregate_basket(self, given: Layer1Input, *, seed: int = 0, report: bool = False) -> BasketModel:
        """Aggregate one row a client.

        Args:
            seed: Of bucketing's permutation, and of what a rule from outside draws; see `seed`.
            report: Whether to place each row relative to the result (`Placing`).

        Raises:
            UsageError: For rows that are no finite vectors.
            TooFewUpdates: With fewer rows than the rule needs for f, or fewer than ``min_updates``.
            RuleFailed: If a rule from outside, or the `device`, gives no result.
        """
        tensors = tensor_rows(given.rows)
        if tensors is not None and not tensors.are_numpys:
            if isinstance(self._rule, PluginRule):
                raise UsageError(f"{self._rule.name} is not computed on tensors: {REMEDY}")
            return self._aggregated(given, tensors, seed, report)
        rows = as_rows(given.rows if tensors is None else tensors.as_numpys())
        if tensors is None and self._device is not None and not isinstance(self._rule, PluginRule):
            return self._aggregated_there(given, rows, self._device, seed, report)
        model = self._aggregated(given, _NumpyRows(rows, self._blocks_of), seed, report)
        return model if tensors is None else replace(model, aggregate=tensors.from_numpys(model.aggregate))

    def _aggregated_there(
        self, given: Layer1Input, rows: Rows, device: str, seed: int, report: bool
    ) -> BasketModel:
        """A device fails by what it has room for and by its state, not by the rows' values."""
        try:
            there = copied_to(rows, device)
            model = self._aggregated(given, there, seed, report)
            return replace(model, aggregate=there.to_numpys(model.aggregate))
        except (AssertionError, RuntimeError) as error:  # torch's, for want of memory, or of CUDA
            why = (
                f"{device} failed on {len(rows)} rows of {len(rows[0])} numbers ({type(error).__name__}); "
                "give each actor more of a GPU (runtime.gpus_per_actor), or set that to 0"
            )
            raise RuleFailed(self._rule.name, why, str(error).partition("\n")[0]) from error

    def _aggregated(self, given: Layer1Input, rows: PlacedRows, seed: int, report: bool) -> BasketModel:
        count, clip_norm, raw = len(rows), self._config.clip_norm, given.raw_norms
        members = count if given.num_members is None else given.num_members
        if count < (least := self._plan.least_rows(members)):
            raise TooFewUpdates(self._config.aggregation_method.value, count, least)
        norms = rows.norms()
        if not np.isfinite(norms).all():
            raise UsageError(f"rows {np.flatnonzero(~np.isfinite(norms)).tolist()} are not finite")
        # Those above the clip norm by more than rounding are scaled to it.
        above = norms > clip_norm * (1.0 + CLIP_ROUNDING)
        factors = None
        if above.any():
            factors = np.divide(clip_norm, norms, out=np.ones_like(norms), where=above)
            norms = np.minimum(norms, clip_norm)
        weighs = self._config.aggregation_method is AggregationMethod.WEIGHTED
        shares = _shares(given.weights, count) if weighs else None
        f = self._plan.num_byzantine(members)
        result = self._run_rule(rows, factors, norms, f, shares, seed, report)
        ids = tuple(map(str, range(count)) if given.client_ids is None else given.client_ids)
        return BasketModel(
            basket_id=given.basket_id,
            aggregate=rows.clipped(result.vector, clip_norm),
            n_contributors=count,
            round_id=given.round_id,
            timestamp=given.timestamp,
            confidence=min(1.0, count / max(1, members)),
            num_byzantine=f,
            n_members=members,
            selected=tuple(ids[index] for index in result.selected),
            max_row_share=None if shares is None else float(shares.max()),
            meta=np.zeros(0) if given.meta is None else given.meta,
            clip_norm=clip_norm,
            bit=0.0 if raw is None else float(np.mean(np.asarray(raw) <= clip_norm)) - 0.5,
            placings=_placings(ids, result),
            num_persons=None
            if given.num_persons is None
            else persons_of(
                given.num_persons, None if shares is None else np.asarray(given.weights).tolist()
            ),
        )

    def seed(self, noise: NoiseSource, name: str) -> int:
        """A seed that no client can foresee, as one that knows it can choose its bucket; 0 if none is used.

        `name` is unique to the aggregate.
        """
        if "bucketing" not in self._config.pre and not isinstance(self._rule, PluginRule):
            return 0
        draw = noise.standard_normal(4, f"bucketing/{name}")
        return int.from_bytes(hashlib.sha256(draw.tobytes()).digest()[:7], "little")

    def _run_rule(
        self,
        rows: PlacedRows,
        factors: NDArray[np.float64] | None,
        norms: NDArray[np.float64],
        num_byzantine: int,
        shares: NDArray[np.float64] | None,
        seed: int,
        report: bool,
    ) -> AggregationResult:
        config = self._config
        pre: list[PreAggregation] = [
            Bucketing(config.bucket_size, seed) if step == "bucketing" else get_pre_aggregation(step)
            for step in config.pre
        ]
        seconds = estimated_seconds(self._rule, len(rows), rows.num_columns, pre)
        selects = config.aggregation_method is AggregationMethod.MULTI_KRUM
        return aggregate_blocks(
            rows.scaled_blocks(factors, seconds),
            len(rows),
            method=self._rule,
            num_byzantine=num_byzantine,
            pre=pre,
            weights=shares,
            num_selected=config.num_selected if selects else None,
            norms=norms,
            report=report,
            rng=stream(seed, "rule") if isinstance(self._rule, PluginRule) else None,
        )


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
