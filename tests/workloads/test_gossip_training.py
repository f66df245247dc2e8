"""Training without Layer 2: simulated, through a federation, and what is reported of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from scarcity_ray.workloads.population import make_scene

from scarcity_ray.config import stream
from scarcity_ray.privacy.accounting.gaussian_dp import epsilon_of_mu
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.gossip_training import (
    mean_accuracy,
    simulate_gossip,
    standings_of,
    starting_models,
)
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.report.page import render_report
from scarcity_ray.workloads.run_folder import RunFolder, read_model
from scarcity_ray.workloads.softmax import accuracy, train_clients

pytest.importorskip("sklearn")
CONFIG = Path(__file__).parents[2] / "configs" / "decentralised.yaml"
SHORT = ("run.runtime=local", "workload.rounds=12", "workload.learning_rate=2.0")
NOISY = (
    "federation.total_epsilon=20.0",
    "federation.gossip.local_dp_epsilon=8.0",
    "workload.rounds=3",
)


class Silent:
    def phase(self, name):
        pass

    def round(self, record):
        pass


def job(tmp_path, *overrides):
    config = load_run(CONFIG, (*SHORT, *overrides))
    folder = RunFolder.new(config, str(tmp_path), datetime.now(UTC))
    return config, run_job(config, folder, Silent())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decentralised")
    return folder, *job(folder)


def test_gossip_alone_trains_every_basket_under_attack(finished):
    _, config, outcome = finished
    standings = outcome.summary.basket_standings
    assert len(standings) == 4
    assert sum(s["byzantine"] for s in standings.values()) == 52
    for standing in standings.values():
        assert standing["members_at_home"] > standing["alone"]["members_at_home"] + 0.15
        assert standing["model_at_home"] > 0.6
    assert outcome.summary.accuracy == pytest.approx(outcome.summary.accuracy_simulated, abs=0.03)
    assert outcome.summary.releases == 0
    assert outcome.summary.gossip_messages > 0
    assert config.federation.layer2.enabled is False


def test_what_is_written_is_what_was_measured(finished):
    folder, config, outcome = finished
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    for basket, standing in summary["basket_standings"].items():
        assert {key: standing[key] for key in lines[-1]["baskets"][basket]} == lines[-1]["baskets"][basket]
    test = make_scene(config).dataset
    for basket, standing in outcome.summary.basket_standings.items():
        model = read_model(folder / "model.arrow", basket)
        assert accuracy(model, test.test_features, test.test_labels) == pytest.approx(standing["model"])
    page = render_report(config, outcome)
    assert 'aria-label="Accuracy of each basket"' in page
    assert all(f"<td>{basket}</td>" in page for basket in summary["basket_standings"])
    assert "trained by gossip alone" in page


def test_a_noisy_run_spends_gossip_and_nothing_else(tmp_path):
    config, outcome = job(tmp_path, *NOISY)
    summary = outcome.summary
    assert 0 < summary.epsilon_spent <= 20.0
    record = outcome.rounds[0]
    assert record.epsilon_spent == pytest.approx(8.0, rel=0.05)
    assert outcome.rounds[-1].epsilon_spent > record.epsilon_spent
    assert "all that any one client gossips" in summary.privacy_claim[0]
    assert 'aria-label="Epsilon spent over rounds"' in render_report(config, outcome)
    assert epsilon_of_mu(1.0, 1e-5) < summary.epsilon_spent


def test_hidden_basket_models_are_neither_reported_nor_written(tmp_path):
    config, outcome = job(tmp_path, "federation.expose_basket_models=false", "workload.rounds=1")
    assert not (tmp_path / "model.arrow").exists()
    assert all(s["model"] is None for s in outcome.summary.basket_standings.values())
    assert "trained by gossip alone" in render_report(config, outcome)


def test_the_same_arguments_give_the_same_accuracies():
    config = load_run(CONFIG, (*SHORT, *NOISY))
    scene = make_scene(config)
    runs = [simulate_gossip(scene, AttackConfig(name="alie"), config.federation) for _ in range(2)]
    assert runs[0] == runs[1]


def test_noise_that_hides_everything_leaves_every_client_to_itself():
    config = load_run(CONFIG, (*SHORT, *NOISY))
    scene = make_scene(config)
    noisy, alone = (
        simulate_gossip(scene, config.workload.attack, config.federation, g) for g in (True, False)
    )
    assert noisy.curve == alone.curve


def test_a_plain_average_of_models_is_ruined_by_the_attackers_that_the_default_withstands():
    config = load_run(CONFIG, SHORT)
    scene = make_scene(config)
    plain = replace(config.federation, gossip=replace(config.federation.gossip, mixing="average"))
    ruined = simulate_gossip(scene, config.workload.attack, plain)
    default = simulate_gossip(scene, config.workload.attack, config.federation)
    assert default.curve[-1] > ruined.curve[-1] + 0.2


def test_rows_that_are_not_finite_are_left_out():
    config = load_run(CONFIG, (*SHORT, "workload.rounds=2"))
    run = simulate_gossip(make_scene(config), AttackConfig(name="nan"), config.federation)
    assert all(math.isfinite(value) and value > 0.1 for value in run.curve)


def test_clients_train_from_their_own_models():
    config = load_run(CONFIG, SHORT)
    scene = make_scene(config)
    models = stream(1, "models").standard_normal((260, 250)).astype(np.float32)
    together = train_clients((10, 14), scene.training(models, AttackConfig(name="none")))
    for row in range(10, 14):
        alone = train_clients((row, row + 1), scene.training(models[row], AttackConfig(name="none")))
        np.testing.assert_array_equal(together[row - 10], alone[0])
    starts = starting_models(models, scene)
    byzantine = scene.population.byzantine
    np.testing.assert_array_equal(starts[~byzantine], models[~byzantine])
    first = int(np.flatnonzero(byzantine)[0])
    honest = (scene.baskets == scene.baskets[first]) & ~byzantine
    np.testing.assert_allclose(starts[first], models[honest].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_at_home_weighs_digits_as_the_baskets_own_examples_are():
    config = load_run(CONFIG, SHORT)
    scene = make_scene(config)
    always_three = np.zeros((260, 25, 10), np.float32)
    always_three[:, -1, 3] = 1.0
    standings = standings_of(scene, always_three.reshape(260, 250))
    tested = float((scene.dataset.test_labels == 3).mean())
    for basket, standing in standings.items():
        inside = scene.baskets == basket
        held = scene.population.labels[inside][scene.population.present[inside] > 0]
        assert standing.members == pytest.approx(tested)
        assert standing.members_at_home == pytest.approx(float((held == 3).mean()))
    assert mean_accuracy(standings) == pytest.approx(tested)
