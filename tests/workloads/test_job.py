"""The job through a real federation on the local runtime, and through a stand-in."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scarcity_ray.workloads.population import make_scene

from scarcity_ray.errors import PrivacyBudgetExhausted
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.report.page import render_report
from scarcity_ray.workloads.run_folder import RunFolder, read_model
from scarcity_ray.workloads.softmax import accuracy

pytest.importorskip("sklearn")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SMALL = ("run.runtime=local", "workload.clients=104", "workload.rounds=3", "workload.compare_attacks=[]")


class Silent:
    def phase(self, name):
        pass

    def round(self, record):
        pass


class Listening(Silent):
    def __init__(self):
        self.heard = []

    def phase(self, name):
        self.heard.append(name)

    def round(self, record):
        self.heard.append(record.round)


def _job(tmp_path, *overrides, watcher=None, **options):
    config = load_run(QUICKSTART, (*SMALL, *overrides))
    folder = RunFolder.new(config, str(tmp_path), datetime.now(UTC))
    return config, run_job(config, folder, watcher or Silent(), **options)


def test_a_job_writes_what_it_measured(tmp_path):
    listening = Listening()
    config, outcome = _job(tmp_path, watcher=listening)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert {
        "accuracy",
        "accuracy_mean_under_attack",
        "accuracy_clipped_mean",
        "accuracy_clean",
        "epsilon_spent",
        "delta",
        "rounds",
        "clients",
        "baskets",
        "byzantine_clients",
        "wall_seconds",
    } <= summary.keys()
    assert (summary["rounds"], summary["clients"], summary["baskets"], summary["byzantine_clients"]) == (
        3,
        104,
        8,
        21,
    )
    assert 0 < summary["epsilon_spent"] < 10
    assert all(summary[key] is not None for key in summary)
    assert "weak_masking" not in [warning["code"] for warning in summary["warnings"]], "8 baskets are enough"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[-1]["accuracy"] == summary["accuracy"]
    assert lines[-1]["epsilon_spent"] == summary["epsilon_spent"]
    assert all(line["accepted"] == 104 and line["gossip_messages"] > 0 for line in lines)
    assert lines[0]["epsilon_left"] > lines[1]["epsilon_left"] > lines[2]["epsilon_left"]
    assert load_run(tmp_path / "config.yaml") == config
    dataset = make_scene(config).dataset
    model = read_model(tmp_path / "model.arrow")
    assert accuracy(model, dataset.test_features, dataset.test_labels) == summary["accuracy"]
    assert listening.heard == [
        "Dealing out the data",
        "Starting the federation",
        "Training",
        1,
        2,
        3,
        "Comparison runs",
    ]
    assert len(outcome.rounds) == 3


def test_baskets_are_as_the_scene_foresaw():
    config = load_run(QUICKSTART, SMALL)
    scene = make_scene(config)
    with HierarchicalFederation(config.federation, runtime="local") as federation:
        clients = list(zip(scene.population.client_ids, scene.population.domains, strict=True))
        assigned = federation.register_clients(clients)
    pairs = set(zip(assigned, scene.baskets.tolist(), strict=True))
    assert len(pairs) == len(set(assigned)) == len(set(scene.baskets.tolist()))


ADAPTIVE = (
    "federation.layer2.adaptive_clipping=true",
    "federation.layer2.clip_learning_rate=1.0",
    "federation.layer1.clip_norm=10.0",
    "federation.layer2.clip_norm=10.0",
)


@pytest.mark.parametrize("clipping", [(), ADAPTIVE])
def test_one_round_equals_its_simulation_but_for_noise(tmp_path, clipping):
    quiet = ("federation.total_epsilon=.inf", "federation.layer2.central_dp_epsilon=.inf")
    _, outcome = _job(tmp_path, *quiet, *clipping, "workload.gossip=false")
    simulated = outcome.curves["federation", "sign_flip"]
    assert [record.accuracy for record in outcome.rounds] == pytest.approx(simulated, abs=0.0045)
    assert outcome.summary.privacy_claim[0].startswith("No privacy claim")
    assert json.loads((tmp_path / "summary.json").read_text())["epsilon_spent"] is None


def test_a_job_follows_the_clip_norm_and_says_so_each_round(tmp_path):
    _, outcome = _job(tmp_path, *ADAPTIVE, "workload.gossip=false")
    clip_norms = [record.clip_norm for record in outcome.rounds]
    assert clip_norms[0] == 10.0
    steps = [math.log(after / before) for before, after in pairwise(clip_norms)]
    assert all(step != 0.0 and abs(step) <= 0.5 + 1e-9 for step in steps)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["clip_norm"] for line in lines] == clip_norms


def test_gossip_on_is_within_two_points_of_gossip_off(tmp_path):
    seeded = partial(HierarchicalFederation, noise=SeededNoise(5))
    finals = [
        _job(tmp_path / kind, f"workload.gossip={kind}", "workload.rounds=8", open_federation=seeded)[1]
        for kind in ("true", "false")
    ]
    assert finals[0].summary.gossip_messages > 0
    assert finals[1].summary.gossip_messages == 0
    assert abs(finals[0].summary.accuracy - finals[1].summary.accuracy) <= 0.02


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gossip_on_is_within_two_points_of_gossip_off_for_the_whole_quickstart(tmp_path):
    finals = []
    for kind in ("true", "false"):
        config = load_run(QUICKSTART, ["run.runtime=local", f"workload.gossip={kind}"])
        folder = RunFolder.new(config, str(tmp_path / kind), datetime.now(UTC))
        seeded = partial(HierarchicalFederation, noise=SeededNoise(5))
        finals.append(run_job(config, folder, Silent(), seeded).summary.accuracy)
    assert abs(finals[0] - finals[1]) <= 0.02


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_median_of_five_federated_runs_keeps_the_margins(tmp_path):
    rows = []
    for seed in range(5):
        config = load_run(
            QUICKSTART, ["run.runtime=local", f"federation.seed={seed}", "workload.compare_attacks=[]"]
        )
        folder = RunFolder.new(config, str(tmp_path / str(seed)), datetime.now(UTC))
        summary = run_job(config, folder, Silent()).summary
        rows.append((summary.accuracy, summary.accuracy_mean_under_attack, summary.accuracy_clean))
    attacked, plain, clean = np.median(rows, axis=0)
    assert attacked >= plain + 0.15
    assert attacked >= clean - 0.10


def test_nan_attackers_are_refused_counted_and_shown(tmp_path):
    config, outcome = _job(tmp_path, "workload.attack.name=nan", "workload.attack.scale=null")
    assert outcome.summary.rejected == {"not_finite": 3 * 21}
    assert outcome.summary.accuracy_mean_under_attack == 0.0
    page = render_report(config, outcome)
    assert "not finite" in page
    assert 'aria-label="Refused updates over rounds"' in page


def test_a_spent_budget_ends_the_run_early_with_everything_written(tmp_path):
    config, outcome = _job(
        tmp_path, "workload.rounds=9", "federation.layer2.central_dp_epsilon=6.0", "workload.gossip=false"
    )
    assert outcome.summary.budget_spent_early
    assert 0 < outcome.summary.rounds < 9
    assert outcome.summary.accuracy is not None
    assert outcome.summary.epsilon_spent <= 10
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "model.arrow",
        "summary.json",
    }
    assert f"spent after round {outcome.summary.rounds} of 9" in render_report(config, outcome)


@dataclass
class StandInReceipt:
    accepted: bool
    reason: str | None


class StandIn:
    """A federation of the plain mean, with a budget of so many releases."""

    def __init__(self, config, *, runtime, address, releases=99, raises=False):
        self.config, self.releases, self.raises = config, releases, raises
        self.made, self.rows, self.closed = 0, None, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def register_clients(self, clients):
        return [f"{domain}_basket_0" for _, domain in clients]

    def map_tasks(self, function, items, shared=None):
        return [function(item, shared) for item in items]

    def submit_updates(self, client_ids, matrix, round_id=None):
        self.rows = np.asarray(matrix)
        return [StandInReceipt(i % 10 > 0, None if i % 10 else "too_stale") for i in range(len(client_ids))]

    def run_gossip_round(self):
        return {"domain_0": 5}

    def force_aggregate(self):
        if self.made == self.releases:
            if self.raises:
                raise PrivacyBudgetExhausted("spent")
            return None
        self.made += 1
        return self.rows.mean(axis=0)

    def advance_round(self):
        return self.made

    def get_privacy_budget(self):
        return (10.0 - self.made, 1e-5)

    def get_stats(self):
        return {
            "privacy_consumed_epsilon": float(self.made),
            "read_only": False,
            "waiting_for": {"text": "A release waits for the stand-in."},
            "warnings": [{"code": "stood_in", "message": "this is no federation"}],
        }


def test_refusals_are_counted_by_reason(tmp_path):
    _, outcome = _job(tmp_path, open_federation=StandIn)
    assert outcome.summary.rejected == {"too_stale": 3 * 11}
    assert outcome.rounds[0].accepted == 93


def test_a_round_without_a_release_keeps_the_model(tmp_path):
    _, outcome = _job(tmp_path, open_federation=partial(StandIn, releases=1))
    assert [record.released for record in outcome.rounds] == [True, False, False]
    assert len({record.accuracy for record in outcome.rounds}) == 1
    assert outcome.summary.releases == 1


def test_a_strict_federation_that_runs_out_ends_the_run(tmp_path):
    _, outcome = _job(tmp_path, open_federation=partial(StandIn, releases=2, raises=True))
    assert outcome.summary.budget_spent_early
    assert outcome.summary.rounds == 2


def test_a_failing_run_closes_the_federation_and_keeps_its_metrics(tmp_path):
    made = []

    class Failing(StandIn):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

        def run_gossip_round(self):
            if self.made == 2:
                raise RuntimeError("the network is gone")
            return {}

    with pytest.raises(RuntimeError, match="network"):
        _job(tmp_path, open_federation=Failing)
    assert made[0].closed
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_releases_nothing_says_what_it_waited_for(tmp_path):
    _, outcome = _job(tmp_path, open_federation=partial(StandIn, releases=0))
    assert outcome.summary.waits_for == "A release waits for the stand-in."
    assert all(record.waits_for for record in outcome.rounds)
    released = _job(tmp_path / "released", open_federation=StandIn)[1]
    assert released.summary.waits_for == "".join(record.waits_for for record in released.rounds) == ""


def test_what_the_federation_warned_of_is_in_the_summary_and_on_the_page(tmp_path):
    config, outcome = _job(tmp_path, open_federation=partial(StandIn, releases=0))
    assert [warning["code"] for warning in outcome.summary.warnings] == ["stood_in"]
    assert json.loads((tmp_path / "summary.json").read_text())["warnings"][0]["code"] == "stood_in"
    page = render_report(config, outcome)
    assert "this is no federation" in page
    assert "No round released a model.<br>A release waits for the stand-in." in page
