"""The claim's sentences hold the figures, and say how they were added up."""

from __future__ import annotations

import math

import pytest

from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config, load
from scarcity_ray.workloads.report.privacy_claim import privacy_claim


@pytest.mark.parametrize(
    ("noise", "words"),
    [("gaussian", "added up in Gaussian DP, exactly"), ("discrete_gaussian", "zero-concentrated DP")],
)
def test_the_first_sentence_has_the_figures_and_the_accounting(noise, words):
    config = HierarchicalFederationConfig(layer2=Layer2Config(noise=noise))
    first = privacy_claim(config, 3.25)[0]
    assert first.startswith("(3.25, 0.0001)-differential privacy of all global models")
    assert "the budget is (10, 0.0001)" in first
    assert words in first


def test_a_renewed_budget_is_said_beside_the_first():
    first = privacy_claim(HierarchicalFederationConfig(), 11.7, renewals=2)[0]
    assert first.startswith("(11.7, 0.0001)-differential privacy of all global models")
    assert "the budget is (10, 0.0001) and was renewed 2 times" in first


def test_without_a_budget_nothing_is_claimed():
    config = HierarchicalFederationConfig(total_epsilon=math.inf)
    assert privacy_claim(config, 1.0) == privacy_claim(HierarchicalFederationConfig(), math.inf)
    assert privacy_claim(config, 1.0)[0].startswith("No privacy claim")


@pytest.mark.parametrize("unit", ["person", "record"])
def test_a_claim_about_a_person_says_so_and_nothing_of_gossip(unit):
    config = load(
        HierarchicalFederationConfig,
        {"privacy": {"unit": unit, "min_persons": 100}, "gossip_budget_share": 0.0, "total_epsilon": 3.0},
    )
    sentences = privacy_claim(config, 2.5)
    assert sentences[0].startswith("(2.5, 0.0001)-differential privacy of all global models")
    assert sentences[1].startswith(f"Protected: any one {unit} of one client")
    assert not any(
        "any one client's" in sentence or "own noised gossip" in sentence for sentence in sentences
    )
    assert any("whoever sees every released global model" in sentence for sentence in sentences)
    assert any("Not against: whoever operates the Ray cluster" in sentence for sentence in sentences)


def test_sites_outside_the_cluster_are_not_said_to_train_as_its_tasks():
    privacy = {
        "unit": "person",
        "noise": "site",
        "min_persons": 100,
        "row_epsilon": 0.5,
        "person_clip_norm": 1.0,
    }
    layer1 = {"aggregation_method": "mean", "clip_norm": 20.0}
    config = load(
        HierarchicalFederationConfig,
        {"privacy": privacy, "layer1": layer1, "gossip_budget_share": 0.0, "total_epsilon": 3.0},
    )
    tasks, sites = (" ".join(privacy_claim(config, 2.5, is_served=served)) for served in (False, True))
    assert "clients trained as its tasks" in tasks
    assert "tasks" not in sites
    assert "Against whoever operates the server, too, but on their word for the noise" in sites
