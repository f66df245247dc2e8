"""A `fit` on a runtime that serves metrics publishes them after rounds, and never fails by it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from scarcity_ray import (
    BasketConfig,
    HierarchicalFederation,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.federation import publishing
from scarcity_ray.runtime import LocalRuntime
from scarcity_ray.runtime.samples import Sample
from tests.federation.test_fitting import Towards


def config_of(tmp_path: Any) -> HierarchicalFederationConfig:
    return HierarchicalFederationConfig(
        vector_dim=2,
        basket=BasketConfig(min_clients=3),
        layer1=Layer1Config(aggregation_method="trimmed_mean"),
        layer2=Layer2Config(min_baskets=2, use_secure_aggregation=False),
        gossip_budget_share=0.0,
        ledger_path=str(tmp_path / "ledger.sqlite"),
    )


@pytest.mark.parametrize(("least_seconds", "rounds"), [(0.0, [1, 2, 3]), (3600.0, [1, 3])])
def test_rounds_are_published_seldom_and_the_last_in_any_case(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, least_seconds: float, rounds: list[int]
) -> None:
    monkeypatch.setattr(publishing, "LEAST_SECONDS", least_seconds)
    published: list[Sequence[Sample]] = []

    def publish(self: LocalRuntime, samples: Iterable[Sample]) -> None:
        published.append(list(samples))

    monkeypatch.setattr(LocalRuntime, "serves_metrics", True)
    monkeypatch.setattr(LocalRuntime, "publish", publish)
    told: list[int] = []
    with HierarchicalFederation(config_of(tmp_path), runtime="local") as fed:
        fed.fit(
            Towards({"c0": "raises"}, num_clients=12),
            rounds=3,
            on_round=lambda record: told.append(record.round_id),
        )
    assert told == [0, 1, 2]
    values = [{sample.metric.name: sample.value for sample in samples} for samples in published]
    accepted = [found["scarcity_ray_updates_accepted_total"] for found in values]
    assert accepted == [11 * number for number in rounds]
    assert [found["scarcity_ray_releases_total"] for found in values] == rounds
    assert all(found["scarcity_ray_round_seconds"] > 0 for found in values)
    assert {s.labels["phase"] for s in published[-1] if "phase" in s.labels} >= {"training", "aggregation"}


def test_metrics_that_cannot_be_published_end_no_round(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LocalRuntime, "serves_metrics", True)
    monkeypatch.setattr(LocalRuntime, "publish", lambda self, samples: 1 / 0)
    quiet = caplog.at_level(logging.WARNING, "scarcity_ray")
    with HierarchicalFederation(config_of(tmp_path), runtime="local") as fed, quiet:
        result = fed.fit(Towards(), rounds=2)
    assert len(result.history) == 2
    assert "the metrics of round 1 are not published: ZeroDivisionError" in caplog.text
