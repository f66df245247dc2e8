"""The claim's sentences hold the figures, and say how they were added up."""

from __future__ import annotations

import math

import pytest

from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config
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


def test_without_a_budget_nothing_is_claimed():
    config = HierarchicalFederationConfig(total_epsilon=math.inf)
    assert privacy_claim(config, 1.0) == privacy_claim(HierarchicalFederationConfig(), math.inf)
    assert privacy_claim(config, 1.0)[0].startswith("No privacy claim")
