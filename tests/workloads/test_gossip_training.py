"""Training without Layer 2: simulated, through a federation, and what is reported of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.config import stream
from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.accounting.gaussian_dp import epsilon_of_mu
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.comparison import Comparison, ComparisonInputs, compare
from scarcity_ray.workloads.config import load_job
from scarcity_ray.workloads.gossip_training import (
    TrainingInputs,
    mean_over_honest,
    simulate_gossip,
    standings_of,
    starting_models,
    train_some,
)
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.report.page import render_report
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray.workloads.scene import NO_ATTACK, Scene, Travelling
from scarcity_ray_client import load_model

pytest.importorskip("sklearn")
CONFIG = Path(__file__).parents[2] / "configs" / "decentralised.yaml"
SHORT = ("run.runtime=local", "training.rounds=8", "workload.args.learning_rate=2.0")
NOISY = (
    "federation.total_epsilon=20.0",
    "federation.gossip.local_dp_epsilon=8.0",
    "training.rounds=3",
)


class Silent:
    def phase(self, name):
        pass

    def progress(self, progress):
        pass

    def round(self, record):
        pass


def job(tmp_path, *overrides):
    made = load_job(CONFIG, (*SHORT, *overrides))
    folder = RunFolder.new(made.config, str(tmp_path), datetime.now(UTC))
    return made, run_job(made, folder, Silent())


def scene_of(*overrides):
    made = load_job(CONFIG, (*SHORT, *overrides))
    return Scene.of(made, "accuracy"), made.config.federation, made.config.lab.attack


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decentralised")
    return folder, *job(folder)


@pytest.mark.long
def test_gossip_alone_trains_every_basket_under_attack(finished):
    _, config, outcome = finished
    standings = outcome.summary.basket_standings
    assert len(standings) == 4
    assert sum(s["byzantine"] for s in standings.values()) == 52
    for standing in standings.values():
        assert standing["members_at_home"] > standing["alone"]["members_at_home"] + 0.15
        assert standing["model_at_home"] > 0.6
    assert outcome.summary.headline == pytest.approx(outcome.summary.beside("federation"), abs=0.03)
    assert outcome.rounds[-1].metrics["accuracy"] == pytest.approx(outcome.summary.headline, abs=0.05)
    assert outcome.summary.releases == 0
    assert outcome.summary.gossip_messages > 0
    assert config.config.federation.layer2.enabled is False


@pytest.mark.long
def test_what_is_written_is_what_was_measured(finished):
    folder, made, outcome = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 8
    assert summary["basket_standings"] == outcome.summary.basket_standings
    for basket, standing in outcome.summary.basket_standings.items():
        model = load_model(folder / f"model-{basket}.npz", like=made.workload.initial_model())
        assert made.workload.evaluate(model)["accuracy"] == pytest.approx(standing["model"])
    page = render_report(made.config, outcome)
    assert 'aria-label="Accuracy of each basket"' in page
    assert all(f"<td>{basket}</td>" in page for basket in summary["basket_standings"])
    assert "trained by gossip alone" in page


@pytest.mark.long
def test_a_noisy_run_spends_gossip_and_nothing_else(tmp_path):
    made, outcome = job(tmp_path, *NOISY)
    summary = outcome.summary
    assert 0 < summary.epsilon_spent <= 20.0
    record = outcome.rounds[0]
    assert record.epsilon_spent == pytest.approx(8.0, rel=0.05)
    assert outcome.rounds[-1].epsilon_spent > record.epsilon_spent
    assert "all that any one client gossips" in summary.privacy_claim[0]
    assert 'aria-label="Epsilon spent over rounds"' in render_report(made.config, outcome)
    assert epsilon_of_mu(1.0, 1e-5) < summary.epsilon_spent


@pytest.mark.long
def test_hidden_basket_models_are_neither_reported_nor_written(tmp_path):
    made, outcome = job(tmp_path, "federation.expose_basket_models=false", "training.rounds=1")
    assert not list(tmp_path.glob("model*"))
    assert all(s["model"] is None for s in outcome.summary.basket_standings.values())
    assert "trained by gossip alone" in render_report(made.config, outcome)


def test_the_same_arguments_give_the_same_metrics():
    scene, federation, _ = scene_of(*NOISY)
    runs = [simulate_gossip(scene, AttackConfig(name="alie"), federation) for _ in range(2)]
    assert runs[0] == runs[1]


def test_noise_that_hides_everything_leaves_every_client_to_itself():
    scene, federation, attack = scene_of(*NOISY)
    noisy, alone = (simulate_gossip(scene, attack, federation, g)[0] for g in (True, False))
    assert noisy.curve == alone.curve


@pytest.mark.long
def test_a_plain_average_of_models_is_ruined_by_the_attackers_that_the_default_withstands():
    scene, federation, attack = scene_of()
    plain = replace(federation, gossip=replace(federation.gossip, mixing="average"))
    ruined = simulate_gossip(scene, attack, plain)[0]
    default = simulate_gossip(scene, attack, federation)[0]
    assert default.metrics["accuracy"] > ruined.metrics["accuracy"] + 0.2


def test_rows_that_are_not_finite_are_left_out():
    scene, federation, _ = scene_of("training.rounds=2")
    run, _ = simulate_gossip(scene, AttackConfig(name="nan"), federation)
    assert all(math.isfinite(value) and value > 0.1 for value in run.curve)


def test_clients_train_from_their_own_models():
    scene, _, _ = scene_of()
    models = stream(1, "models").standard_normal((260, 250)).astype(np.float32)
    inputs = TrainingInputs(Travelling.of(scene), models, 0, NO_ATTACK)
    together, refusals = train_some([10, 11, 12, 13], inputs)
    assert refusals == []
    for row in range(10, 14):
        np.testing.assert_array_equal(together[row - 10], train_some([row], inputs)[0][0])
    starts, byzantine = starting_models(models, scene), scene.byzantine
    np.testing.assert_array_equal(starts[~byzantine], models[~byzantine])
    first = int(np.flatnonzero(byzantine)[0])
    honest = (scene.baskets == scene.baskets[first]) & ~byzantine
    np.testing.assert_allclose(starts[first], models[honest].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_standings_are_means_over_the_honest_members():
    scene, _, _ = scene_of()
    always_three = np.zeros((260, 250), np.float32)
    always_three[:, 240 + 3] = 1.0
    always_three[scene.byzantine] = np.nan
    standings = standings_of(scene, always_three, {0: always_three[~scene.byzantine][0]})
    tested = float((scene.workload.data.test_labels == 3).mean())
    for basket, standing in standings.items():
        member = int(np.flatnonzero((scene.baskets == basket) & ~scene.byzantine)[0])
        model = scene.codec.decode(always_three[member])
        at_home = scene.workload.evaluate_client(model, scene.clients[member])["accuracy"]
        assert standing.members == pytest.approx(tested)
        assert standing.members_at_home == pytest.approx(at_home)
        assert standing.byzantine == int(scene.byzantine[scene.baskets == basket].sum())
    assert standings[0].model == pytest.approx(tested)
    assert standings[0].model_at_home == pytest.approx(standings[0].members_at_home)
    assert standings[1].model is None
    assert mean_over_honest(standings) == pytest.approx(tested)


STUBBORN = '''
from scarcity_ray.workloads.digits import Digits

class Stubborn(Digits):
    """Some clients cannot read their data."""
    def __init__(self, failing=0, **args):
        super().__init__(**args)
        self.failing = failing
    def train_many(self, models, clients, round_id):
        if any(client.data[0] < self.failing for client in clients):
            raise OSError("no such file")
        return super().train_many(models, clients, round_id)

class Homeless(Digits):
    """Nor evaluate on them."""
    def evaluate_client(self, model, client):
        raise OSError("no such file")
'''


def test_a_training_that_fails_is_counted_and_all_failing_is_an_error(tmp_path):
    (tmp_path / "stubborn_workload.py").write_text(STUBBORN)
    workload = (f"workload.folder={tmp_path}", "workload.class=stubborn_workload:Stubborn")
    short = (*workload, "training.rounds=1", "lab.compare=[]", "federation.seed=1")
    _, outcome = job(tmp_path / "some", *short, "workload.args.failing=2")
    assert outcome.summary.rejected == {"raised": 2}
    assert outcome.rounds[0].accepted == 258
    assert "OSError: no such file" in outcome.summary.first_refusals[0]["detail"]
    with pytest.raises(UsageError, match=r"no client trained; the first: .*OSError: no such file"):
        job(tmp_path / "all", *short, "workload.args.failing=260")


def test_baskets_models_are_kept_where_clients_cannot_evaluate_them(tmp_path):
    (tmp_path / "stubborn_workload.py").write_text(STUBBORN)
    workload = (f"workload.folder={tmp_path}", "workload.class=stubborn_workload:Homeless")
    with pytest.raises(UsageError, match="workload 'Homeless': evaluate_client: OSError: no such file"):
        job(tmp_path / "out", *workload, "training.rounds=1", "lab.compare=[]")
    assert len(list((tmp_path / "out").glob("model-*.npz"))) == 4


def test_the_clean_run_of_gossip_has_no_noise_either():
    job = load_job(CONFIG, [*NOISY, "training.rounds=2", "lab.byzantine_share=0.0"])
    inputs = ComparisonInputs(Travelling.of(Scene.of(job, "accuracy")), job.config.federation)
    clean, noiseless = (compare(Comparison(name, NO_ATTACK), inputs).run for name in ("clean", "noiseless"))
    assert clean == noiseless
    assert clean != compare(Comparison("federation", NO_ATTACK), inputs).run
