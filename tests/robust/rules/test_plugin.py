"""A rule from outside may do anything: what reaches the federation is bounded, or is nothing."""

from __future__ import annotations

import pickle
import shutil
import threading
import time
from typing import Any, ClassVar

import numpy as np
import pytest

from scarcity_ray import (
    AggregationRule,
    BasketConfig,
    ConfigError,
    HierarchicalFederationConfig,
    Layer1Aggregator,
    Layer1Config,
    RuleFailed,
    UsageError,
    make_plan,
)
from scarcity_ray.layers.layer1 import Layer1Input
from scarcity_ray.robust import PluginRule, aggregate, get_rule
from scarcity_ray.robust.rules.plugin import load_rule
from scarcity_ray.testing import check_rule

D = 6
C = 0.5
ROWS = np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
HERE = __name__
RNG = np.random.default_rng(0)


class Lying(np.ndarray):
    """An array that claims another shape, and answers `np.asarray` with something else."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return np.full(3, np.inf)

    @property
    def shape(self) -> Any:  # type: ignore[override]
        return (D,)


ANYTHING: dict[str, Any] = {
    "huge": np.full(D, 3e38),
    "huge_float32": np.full(D, np.float32(3e38)),
    "beyond_float32": np.full(D, 1e300),
    "infinite": np.full(D, np.inf),
    "nan": np.array([np.nan, *np.zeros(D - 1)]),
    "subnormal": np.full(D, 1e-44, np.float32),
    "half": np.full(D, 6e4, np.float16),
    "list": [0.0] * D,
    "nothing": None,
    "number": 3.0,
    "short": np.zeros(D - 1),
    "matrix": np.zeros((D, D)),
    "integers": np.ones(D, np.int64),
    "complex": np.ones(D, np.complex128),
    "objects": np.array([object()] * D),
    "text": np.array(["1.0"] * D),
    "masked": np.ma.masked_array(np.full(D, 9.0), mask=True),
    "lying": np.full(D + 2, 1e30).view(Lying),
    "strided": np.full(3 * D, 7.0)[::3],
}
TAKEN = {"huge", "huge_float32", "subnormal", "half", "masked", "strided"}


class Hostile(AggregationRule):
    """Gives what it was told to, and a smaller sensitivity than it has."""

    def __init__(self, gives: str = "list") -> None:
        self.gives = gives

    def least_rows(self, num_byzantine: int) -> int:
        return 1

    def aggregate(self, rows: Any, num_byzantine: int, rng: Any) -> Any:
        return ANYTHING[self.gives]


@pytest.mark.parametrize("gives", ANYTHING)
def test_a_hostile_rule_leaves_a_finite_vector_within_the_clip_norm_or_none(gives):
    config = Layer1Config(aggregation_method=f"{HERE}:Hostile", rule_args={"gives": gives}, clip_norm=C)
    if gives not in TAKEN:
        with pytest.raises(RuleFailed, match="Hostile: it"):
            Layer1Aggregator(config).aggregate(ROWS)
        return
    model = Layer1Aggregator(config).aggregate(ROWS)
    assert (model.aggregate.shape, model.aggregate.dtype) == ((D,), np.float32)
    assert type(model.aggregate) is np.ndarray
    assert np.linalg.norm(model.aggregate.astype(np.float64)) <= C * (1.0 + 2.0**-23)
    assert not np.shares_memory(model.aggregate, np.asarray(ANYTHING[gives]))


class Odd(Exception):
    """Notes which thread runs its own code."""

    asked_by: ClassVar[set[threading.Thread]] = set()

    def __str__(self) -> str:
        self.asked_by.add(threading.current_thread())
        return "odd"

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.asked_by.add(threading.current_thread())
        return np.zeros(D)


class Acts(AggregationRule):
    """Does one of several things."""

    calls = 0

    def __init__(self, act: str = "mean") -> None:
        self.act = act

    def least_rows(self, num_byzantine: int) -> int:
        return 2 * num_byzantine + 1

    def aggregate(self, rows: Any, num_byzantine: int, rng: Any) -> Any:
        self.calls += 1
        if self.act == "raise":
            raise ValueError(f"a private value: {rows[0, 0]}")
        if self.act == "hang":
            time.sleep(0.4)
        if self.act == "raise odd":
            raise Odd
        if self.act == "give odd":
            return Odd()
        if self.act == "spoil":
            rows[:] = np.nan
            return np.zeros(rows.shape[1])
        if self.act == "draw":
            return rng.normal(size=rows.shape[1])
        if self.act == "count":
            return np.full(rows.shape[1], self.calls, np.float32)
        return rows.mean(axis=0)


def test_a_rule_that_spoils_its_rows_spoils_a_copy():
    rows = [row.copy() for row in ROWS]
    for pre in ((), ("nnm",)):
        result = aggregate(rows, method=Acts("spoil"), num_byzantine=1, pre=pre, report=True)
        assert np.array_equal(rows, ROWS)
        assert result.report is not None
        np.testing.assert_allclose(result.report.distances, np.linalg.norm(ROWS, axis=1), rtol=1e-5)


def test_a_rules_object_keeps_nothing_between_calls():
    rule = load_rule(f"{HERE}:Acts", {"act": "count"})
    rng = np.random.default_rng(0)
    assert [rule.whole(ROWS.copy(), 1, rng)[0] for _ in range(3)] == [1.0, 1.0, 1.0]


def test_a_rule_that_raises_or_hangs_fails_and_says_why():
    with pytest.raises(RuleFailed, match="it raised ValueError: ValueError: a private value") as failed:
        aggregate(ROWS, method=Acts("raise"), num_byzantine=1)
    assert "private" not in failed.value.why, "the basket decides who is told"
    slow = load_rule(f"{HERE}:Acts", {"act": "hang"}, timeout_seconds=0.02)
    before = threading.active_count()
    for why in ("did not end within", "an earlier call runs on"):
        with pytest.raises(RuleFailed, match=why):
            slow.whole(ROWS.copy(), 1, RNG)
    assert threading.active_count() == before + 1, "one call is left running, not two"


@pytest.mark.parametrize(("act", "why"), [("raise odd", "it raised Odd: .*odd"), ("give odd", "gave a Odd")])
def test_no_code_of_a_rule_runs_where_no_limit_of_time_holds(act, why):
    with pytest.raises(RuleFailed, match=why):
        load_rule(f"{HERE}:Acts", {"act": act}).whole(ROWS.copy(), 1, RNG)
    assert threading.main_thread() not in Odd.asked_by


def test_what_a_rule_draws_follows_from_the_seed_and_nothing_else():
    draw = Layer1Aggregator(Layer1Config(aggregation_method=f"{HERE}:Acts", rule_args={"act": "draw"}))
    one, other, another = (draw.aggregate_basket(Layer1Input(ROWS), seed=s).aggregate for s in (1, 1, 2))
    assert np.array_equal(one, other)
    assert not np.array_equal(one, another)


@pytest.mark.parametrize("pre", [("nnm",), ("arc",), ("bucketing",), ("nnm", "arc")])
def test_pre_aggregation_comes_before_a_rule_from_outside_as_before_the_packages_own(pre):
    wide = np.random.default_rng(1).normal(size=(9, 9000)).astype(np.float32)  # two column blocks
    settings = {"byzantine_fraction": 0.2, "pre": pre, "clip_norm": 1e3}
    own = Layer1Aggregator(Layer1Config(aggregation_method="mean", **settings)).aggregate(wide)
    outside = Layer1Aggregator(Layer1Config(aggregation_method=f"{HERE}:Acts", **settings)).aggregate(wide)
    np.testing.assert_allclose(outside.aggregate, own.aggregate, atol=1e-6)


def test_a_rule_travels_by_its_path_and_is_loaded_again_there():
    rule = pickle.loads(pickle.dumps(load_rule(f"{HERE}:Acts", {"act": "count"}, 5.0)))
    assert isinstance(rule, PluginRule)
    assert (rule.name, rule.stated.act) == (f"{HERE}:Acts", "count")
    with pytest.raises(UsageError, match="give its import path"):
        pickle.dumps(get_rule(Acts()))


class States(Acts):
    """States a sensitivity, and a least n."""

    def __init__(self, bound: Any = 1.0, reference: str = "", least: Any = 1) -> None:
        super().__init__()
        self.bound, self.sensitivity_reference, self.least = bound, reference, least

    def least_rows(self, num_byzantine: int) -> Any:
        return self.least

    def sensitivity(self, num_rows: int, num_byzantine: int, clip_norm: float) -> Any:
        if self.bound == "less for many":
            return np.float32(2.0 if num_rows < 20 else 0.25)
        return 1 / self.bound if self.bound == 0 else self.bound


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ({"bound": 0.5}, "set sensitivity_reference"),
        ({"bound": -1.0, "reference": "x"}, "not a positive number"),
        ({"bound": float("nan"), "reference": "x"}, "not a positive number"),
        ({"bound": "0.5", "reference": "x"}, "not a positive number"),
        ({"bound": 0, "reference": "x"}, "raised ZeroDivisionError"),
        ({"bound": "less for many"}, r"0.25, less than .* set sensitivity_reference"),
        ({"bound": "less for many", "reference": None}, "set sensitivity_reference"),
        ({"least": 0}, "no int from 1 on"),
        ({"least": 2.5}, "no int from 1 on"),
    ],
)
def test_what_a_rule_states_is_checked_before_anything_starts(args, why):
    with pytest.raises(UsageError, match=why):
        make_plan(
            HierarchicalFederationConfig(
                layer1=Layer1Config(aggregation_method=f"{HERE}:States", rule_args=args)
            )
        )


def test_a_smaller_bound_is_told_whatever_size_of_basket_it_is_for():
    args = {"bound": "less for many", "reference": "lemma 7"}
    for pre, told in (
        ((), "n = 20, f = 4 one client moves its result by at most 0.25, not 2"),
        (("arc",), ""),
    ):
        layer1 = Layer1Config(aggregation_method=f"{HERE}:States", rule_args=args, pre=pre)
        claim = make_plan(HierarchicalFederationConfig(layer1=layer1)).rule_claim
        assert told in claim
        assert ("lemma 7" in claim) == bool(told), "behind pre-aggregation 2C is charged"


def test_baskets_without_a_limit_are_planned_as_well():
    basket = BasketConfig(min_clients=5, max_clients=10**9)
    layer1 = Layer1Config(aggregation_method=f"{HERE}:Acts", byzantine_fraction=0.0)
    settings = list(make_plan(HierarchicalFederationConfig(basket=basket, layer1=layer1)).rule_settings())
    assert [n for n, _ in settings[:4]] == [5, 6, 7, 8]
    assert settings[-1] == (10**9, 0)
    assert len(settings) < 2000


def test_arguments_are_what_a_file_can_hold():
    for wrong in ({"a": object()}, {"a": {1, 2}}, {"a": np.ones(2)}, {1: 2}):
        with pytest.raises(ConfigError, match="rule_args"):
            Layer1Config(aggregation_method=f"{HERE}:Acts", rule_args=wrong)


def test_an_entry_point_names_a_rule(monkeypatch, tmp_path):
    folder = tmp_path / "rules_of_a_lab-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rules-of-a-lab\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[scarcity_ray.rules]\nlab_mean = {HERE}:Acts\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = Layer1Config(aggregation_method="lab_mean")
    model = Layer1Aggregator(config).aggregate(ROWS)
    np.testing.assert_allclose(
        model.aggregate,
        Layer1Aggregator(Layer1Config(aggregation_method="mean")).aggregate(ROWS).aggregate,
        atol=1e-6,
    )
    assert check_rule("lab_mean", most_byzantine=0).rule == "lab_mean"
    (folder / "entry_points.txt").write_text("[scarcity_ray.rules]\nlab_mean = other:Mean\n")
    shutil.copytree(folder, tmp_path / "other" / "rules_of_b-1.0.dist-info")
    (folder / "entry_points.txt").write_text(f"[scarcity_ray.rules]\nlab_mean = {HERE}:Acts\n")
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    with pytest.raises(UsageError, match=f"packages offer other:Mean and {HERE}:Acts under this name"):
        load_rule("lab_mean")
    with pytest.raises(ConfigError, match="caf, lab_mean, or module:Class"):
        Layer1Config(aggregation_method="lab_median")
