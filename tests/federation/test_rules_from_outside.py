"""A federation whose rule comes from outside the package: it works, fails, is mended, and nothing is lost."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    ActorLost,
    FaultWarning,
    HierarchicalFederationConfig,
    Missing,
    PrivacyWarning,
    UsageError,
)
from scarcity_ray.config import load, to_plain
from scarcity_ray.plan import BasketFacts, make_plan
from scarcity_ray.workloads.report.privacy_claim import privacy_claim

SOURCE = '''
from pathlib import Path

import numpy as np

from scarcity_ray import AggregationRule


class Middle(AggregationRule):
    """The mean between the quartiles of each coordinate; it does what the file at `switch` says."""

    def __init__(self, switch: str = "", reference: str = "") -> None:
        self.switch, self.sensitivity_reference = switch, reference

    def least_rows(self, num_byzantine):
        return 2 * num_byzantine + 3

    def sensitivity(self, num_rows, num_byzantine, clip_norm):
        return 2.0 * clip_norm / (2.0 if self.sensitivity_reference else 1.0)

    def aggregate(self, rows, num_byzantine, rng):
        act = Path(self.switch).read_text() if self.switch else ""
        if act == "raise":
            raise ValueError(f"it met {rows[0, 0]}")
        if act == "nan":
            return np.full(rows.shape[1], np.nan)
        return np.sort(rows, axis=0)[1:-1].mean(axis=0)
'''
MODULE = "sr_middle_rule"
IDS = [f"{domain}{i}" for domain in "ab" for i in range(5)]
ROWS = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "job"))
    (tmp_path / "switch").write_text("")
    yield tmp_path / "switch"
    sys.modules.pop(MODULE, None)


def settings_of(switch: Path, **layer1: Any) -> dict[str, Any]:
    return {
        "vector_dim": 4,
        "auto_aggregate": False,
        "total_epsilon": 50.0,
        "gossip_budget_share": 0.0,
        "runtime": {"baskets_per_actor": 9},
        "layer1": {
            "aggregation_method": f"{MODULE}:Middle",
            "rule_args": {"switch": str(switch)},
            "byzantine_fraction": 0.2,
            **layer1,
        },
    }


def joined(fed: Any) -> Any:
    fed.register_clients([(name, name[0]) for name in IDS])
    assert all(receipt.accepted for receipt in fed.submit_updates(IDS, ROWS))
    return fed


@pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")
def test_a_rule_that_fails_costs_nothing_and_loses_nothing_and_is_mended(open_federation, runtime, switch):
    fed = joined(open_federation(settings_of(switch), runtime=runtime))
    budget = fed.get_privacy_budget()
    for act, why in (("raise", "it raised ValueError"), ("nan", "not finite")):
        switch.write_text(act)
        assert fed.force_aggregate() is None
        assert why in fed.waiting_for().baskets[0].sentence
    stats = fed.get_stats()
    assert (stats["n_rule_failures"], stats["n_updates_buffered"]) == (4, 10)
    assert fed.get_privacy_budget() == budget
    assert {wait.missing for wait in fed.waiting_for().baskets} == {Missing.RULE}
    switch.write_text("")
    fed._runtime.kill("basket:0")  # it comes back, and finds the rule again
    fed.advance_round()
    fed.submit_updates(IDS, ROWS, round_id=1)
    assert fed.force_aggregate() is not None
    model = fed.get_basket_model("a_basket_0")
    rows = ROWS[:5] / np.maximum(1.0, np.linalg.norm(ROWS[:5], axis=1, keepdims=True))
    np.testing.assert_allclose(model, np.sort(rows, axis=0)[1:-1].mean(axis=0), atol=1e-6)
    assert fed.get_privacy_budget() != budget


def test_the_driver_is_warned_of_a_failure_and_of_what_is_taken_on_trust(open_federation, switch):
    with pytest.warns(PrivacyWarning, match="its author's word is taken that it keeps nothing between calls"):
        fed = open_federation(settings_of(switch))
    joined(fed)
    switch.write_text("raise")
    with pytest.warns(
        FaultWarning, match=r"a_basket_0: rule .* it met .* \(and in 1 more baskets\); .* keep"
    ):
        fed.force_aggregate()
    hidden = open_federation({**settings_of(switch), "expose_basket_models": False})
    joined(hidden)
    with pytest.warns(FaultWarning) as told:
        hidden.force_aggregate()
    assert "it met" not in str(told[0].message), "what an exception says may be private"


def test_a_stated_sensitivity_is_used_and_named_as_its_authors_claim(switch):
    config = load(HierarchicalFederationConfig, settings_of(switch))
    facts = BasketFacts("a", "a", 5, num_rows=5, num_byzantine=1)
    assert make_plan(config).sensitivity(facts) == pytest.approx(2.0, rel=1e-5)
    stated = load(
        HierarchicalFederationConfig,
        settings_of(switch, rule_args={"switch": str(switch), "reference": "lemma 3"}),
    )
    assert make_plan(stated).sensitivity(facts) == pytest.approx(1.0, rel=1e-5)
    assert "at most 1, not 2 (proof: lemma 3)" in make_plan(stated).rule_claim
    assert any("proof: lemma 3" in sentence for sentence in privacy_claim(stated, 1.0))
    mixed = load(HierarchicalFederationConfig, settings_of(switch, pre=["nnm"], byzantine_fraction=0.0))
    assert make_plan(mixed).sensitivity(facts) == pytest.approx(2.0, rel=1e-5), "mixing spreads a row"
    assert load(HierarchicalFederationConfig, to_plain(stated)) == stated


def test_a_rule_that_does_not_load_is_an_error_before_anything_starts(open_federation, switch, tmp_path):
    for method, why in (
        ("sr_no_such_module:Rule", "no module 'sr_no_such_module'"),
        (f"{MODULE}:Midle", "its rules: Middle"),
        (f"{MODULE}:Path", "class Path.AggregationRule., with from scarcity_ray import AggregationRule"),
    ):
        with pytest.raises(UsageError, match=why):
            open_federation(settings_of(switch, aggregation_method=method, rule_args={}))
    with pytest.raises(UsageError, match="wrong args: got an unexpected keyword argument 'radius'"):
        open_federation(settings_of(switch, rule_args={"radius": 1.0}))
    assert not list(tmp_path.glob("ledger_*"))


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::scarcity_ray.ScarcityWarning")
def test_a_rule_that_the_cluster_cannot_import_is_an_error_before_anything_is_spent(
    open_federation, ray_cluster, switch, monkeypatch
):
    here_alone = types.ModuleType("sr_here_alone")
    exec(SOURCE, here_alone.__dict__)
    monkeypatch.setitem(sys.modules, "sr_here_alone", here_alone)
    with pytest.raises((UsageError, ActorLost), match=r"no module 'sr_here_alone'.*py_modules"):
        open_federation(settings_of(switch, aggregation_method="sr_here_alone:Middle"), runtime="ray")
