"""The example of a rule of one's own: its own tests pass, and its job's settings go together."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederationConfig, make_plan
from scarcity_ray.config import load, read_yaml
from scarcity_ray.workloads.attacks import AttackConfig, View, make_attack

FOLDER = Path(__file__).parents[2] / "examples" / "custom_rule"


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in ("custom_rules", "custom_attacks"):
        sys.modules.pop(name, None)


@pytest.mark.long
@pytest.mark.parametrize("name", ["test_median_of_means", "test_thresholded_mean"])
def test_the_examples_own_tests_pass(name):
    runpy.run_path(str(FOLDER / "test_custom_rules.py"))[name]()


def test_the_job_names_the_rule_and_the_attack():
    job = read_yaml(FOLDER / "job.yaml")
    plan = make_plan(load(HierarchicalFederationConfig, job["federation"]))
    assert plan.num_releases >= job["training"]["rounds"]
    assert "ThresholdedMean" in plan.rule_claim
    attack = make_attack(load(AttackConfig, job["lab"]["attack"]))
    ones = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(attack.rows(View(ones, ones, np.random.default_rng(0))), -2.0 * ones)
