"""The job through a real federation on the local runtime, and through a stand-in."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.errors import UsageError
from scarcity_ray.federation.evaluation import MeanMetrics
from scarcity_ray.federation.fit_terms import FitResult, RoundRecord, Stopped
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.runtime import LocalRuntime
from scarcity_ray.runtime.rpc import TasksBeside
from scarcity_ray.workloads.comparison import ComparisonRuns
from scarcity_ray.workloads.config import load_job, load_run
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.report.page import render_report
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray.workloads.scene import Scene
from scarcity_ray_client import Cause, Refusal, load_model

pytest.importorskip("sklearn")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SMALL = (
    *("run.runtime=local", "workload.args.clients=104", "training.rounds=3"),
    "lab.compare_attacks=[alie]",
)


class Silent:
    def phase(self, name):
        pass

    def progress(self, progress):
        pass

    def round(self, record):
        pass


class Listening(Silent):
    def __init__(self):
        self.heard = []
        self.progressed = []

    def phase(self, name):
        self.heard.append(name)

    def progress(self, progress):
        self.progressed.append((progress.num_done, progress.num_due))

    def round(self, record):
        self.heard.append(record.round)


def _job(tmp_path, *overrides, watcher=None, path=QUICKSTART, small=SMALL, **options):
    job = load_job(path, (*small, *overrides))
    folder = RunFolder.new(job.config, str(tmp_path), datetime.now(UTC))
    return job.config, run_job(job, folder, watcher or Silent(), **options)


@pytest.mark.long
def test_a_job_writes_what_it_measured(tmp_path):
    listening = Listening()
    config, outcome = _job(tmp_path, watcher=listening)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["rounds"], summary["clients"], summary["baskets"], summary["byzantine_clients"]) == (
        3,
        104,
        8,
        21,
    )
    assert 0 < summary["epsilon_spent"] < 10
    assert "weak_masking" not in [warning["code"] for warning in summary["warnings"]], "8 baskets are enough"
    assert {(run["run"], run["attack"]) for run in summary["runs"]} == {
        *((name, "sign_flip") for name in ("federation", "clipped_mean", "plain_mean")),
        *((name, "alie") for name in ("federation", "clipped_mean", "plain_mean")),
        ("clean", "none"),
    }
    assert all(len(run["curve"]) == 3 and run["metrics"]["accuracy"] > 0.0 for run in summary["runs"])
    assert summary["domains"] == {f"domain_{number}": 26 for number in range(4)}
    assert summary["versions"]["workload"] == "scarcity_ray.workloads.digits:Digits"
    assert {"python", "numpy", "ray", "scarcity-ray"} <= summary["versions"].keys()
    assert datetime.fromisoformat(summary["date"]).tzinfo is not None
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    assert lines[-1]["metrics"] == summary["metrics"]
    assert lines[-1]["epsilon_spent"] == summary["epsilon_spent"]
    assert all(line["accepted"] == 104 and line["gossip_messages"] > 0 for line in lines)
    assert lines[0]["epsilon_left"] > lines[1]["epsilon_left"] > lines[2]["epsilon_left"]
    assert {"training", "submission", "gossip", "aggregation"} <= lines[0]["seconds"].keys()
    assert load_run(tmp_path / "config.yaml") == config
    read = {}
    exec(summary["load_model"], read)
    assert read["workload"].evaluate(read["model"]) == summary["metrics"]
    best = load_model(tmp_path / "best_model.npz", like=read["model"])
    assert read["workload"].evaluate(best) == summary["best_metrics"]
    assert summary["best_metrics"]["accuracy"] == max(line["metrics"]["accuracy"] for line in lines)
    assert listening.heard == [
        "Evaluating the initial model",
        "Starting the federation",
        "Training",
        1,
        2,
        3,
        "Comparison runs",
    ]
    assert (104, 104) in listening.progressed
    assert len(outcome.rounds) == 3


def test_baskets_are_as_the_scene_foresaw():
    job = load_job(QUICKSTART, SMALL)
    scene = Scene.of(job, "accuracy")
    with HierarchicalFederation(job.config.federation, runtime="local") as federation:
        assigned = federation.register_clients([(c.client_id, c.domain_id) for c in job.clients])
    pairs = set(zip(assigned, scene.baskets.tolist(), strict=True))
    assert len(pairs) == len(set(assigned)) == len(set(scene.baskets.tolist()))


GOSSIP_SHARE = "federation.gossip_budget_share"
NO_GOSSIP = f"{GOSSIP_SHARE}=0.0"
QUICK = ("lab.compare=[]", "lab.compare_attacks=[]")
ADAPTIVE = (
    "federation.layer2.adaptive_clipping=true",
    "federation.layer2.clip_learning_rate=1.0",
    "federation.layer1.clip_norm=10.0",
    "federation.layer2.clip_norm=10.0",
)


@pytest.mark.parametrize("clipping", [(), ADAPTIVE])
def test_one_round_equals_its_simulation_but_for_noise(tmp_path, clipping):
    quiet = ("federation.total_epsilon=.inf", "federation.layer2.central_dp_epsilon=.inf")
    only = ("lab.compare=[federation]", "lab.compare_attacks=[]")
    _, outcome = _job(tmp_path, *quiet, *clipping, *only, NO_GOSSIP)
    simulated = next(run.curve for run in outcome.summary.runs if run.run == "federation")
    measured = [record.metrics["accuracy"] for record in outcome.rounds]
    assert measured == pytest.approx(simulated, abs=0.0045)
    assert outcome.summary.privacy_claim[0].startswith("No privacy claim")
    assert json.loads((tmp_path / "summary.json").read_text())["epsilon_spent"] is None


def test_a_job_follows_the_clip_norm_and_says_so_each_round(tmp_path):
    _, outcome = _job(tmp_path, *ADAPTIVE, *QUICK, NO_GOSSIP)
    clip_norms = [record.clip_norm for record in outcome.rounds]
    assert clip_norms[0] == 10.0
    steps = [math.log(after / before) for before, after in pairwise(clip_norms)]
    assert all(step != 0.0 and abs(step) <= 0.5 + 1e-9 for step in steps)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["clip_norm"] for line in lines] == clip_norms


@pytest.mark.long
def test_gossip_on_is_within_two_points_of_gossip_off(tmp_path):
    seeded = partial(HierarchicalFederation, noise=SeededNoise(5))
    eight = (*QUICK, "training.rounds=8")
    finals = [
        _job(tmp_path / share, f"{GOSSIP_SHARE}={share}", *eight, open_federation=seeded)[1]
        for share in ("0.1", "0.0")
    ]
    assert finals[0].summary.gossip_messages > 0
    assert finals[1].summary.gossip_messages == 0
    assert abs(finals[0].summary.headline - finals[1].summary.headline) <= 0.02


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_gossip_on_is_within_two_points_of_gossip_off_for_the_whole_quickstart(tmp_path):
    finals = []
    for share in ("0.1", "0.0"):
        whole = ("run.runtime=local", f"{GOSSIP_SHARE}={share}", "lab.compare=[]", "lab.compare_attacks=[]")
        seeded = partial(HierarchicalFederation, noise=SeededNoise(5))
        _, outcome = _job(tmp_path / share, small=whole, open_federation=seeded)
        finals.append(outcome.summary.headline)
    assert abs(finals[0] - finals[1]) <= 0.02


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_median_of_five_federated_runs_keeps_the_margins(tmp_path):
    rows = []
    for seed in range(5):
        seeds = f"federation.seed={seed}", f"workload.args.seed={seed}"
        whole = ("run.runtime=local", *seeds, "lab.compare_attacks=[]")
        summary = _job(tmp_path / str(seed), small=whole)[1].summary
        rows.append((summary.headline, summary.beside("plain_mean"), summary.beside("clean")))
    attacked, plain, clean = np.median(rows, axis=0)
    assert attacked >= plain + 0.15
    assert attacked >= clean - 0.10


@pytest.mark.long
def test_nan_attackers_are_refused_counted_and_shown(tmp_path):
    config, outcome = _job(
        tmp_path, "lab.attack={name: nan}", "lab.compare=[plain_mean]", "lab.compare_attacks=[]"
    )
    assert outcome.summary.rejected == {"not_finite": 3 * 21}
    assert outcome.summary.beside("plain_mean", "nan") is None
    assert len(outcome.summary.refused) == 21
    page = render_report(config, outcome)
    assert "not finite" in page
    assert 'aria-label="Refused updates over rounds"' in page


def test_a_spent_budget_ends_the_run_early_with_everything_written(tmp_path):
    config, outcome = _job(
        tmp_path, *QUICK, "training.rounds=9", "federation.layer2.central_dp_epsilon=6.0", NO_GOSSIP
    )
    assert outcome.summary.budget_spent_early
    assert 0 < outcome.summary.rounds < 9
    assert outcome.summary.headline is not None
    assert outcome.summary.epsilon_spent <= 10
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "model.npz",
        "best_model.npz",
        "state",
        "summary.json",
    }
    assert f"spent after round {outcome.summary.rounds} of 9" in render_report(config, outcome)


class StandIn:
    """A federation whose `fit` counts up one release a round, with a budget of so many."""

    def __init__(self, config, *, runtime, address, releases=99, fails_in=None, refusals=()):
        self.config, self.releases, self.fails_in, self.refusals = config, releases, fails_in, refusals
        self.made, self.closed = 0, False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def tasks_beside(self, function, items, shared=None):
        return TasksBeside(LocalRuntime().compute, function, items, shared)

    def fit(self, workload, *, rounds, on_round, on_release, **terms):
        history = []
        for number in range(rounds):
            if self.fails_in == number:
                raise RuntimeError("the network is gone")
            released = self.made < self.releases
            self.made += released
            refused = [refusal for refusal in self.refusals if refusal.round_id == number]
            record = RoundRecord(
                round_id=number,
                num_sampled=104,
                num_accepted=104 - len(refused),
                num_surplus=0,
                refusals={"raised": len(refused)} if refused else {},
                first_refusals=tuple(refused),
                metrics={"domain_0": MeanMetrics({"loss": 2.0 - number})},
                evaluation={"accuracy": 0.1 * self.made} if released else {},
                clients={},
                private_evaluation={},
                versions=(self.made,) if released else (),
                waiting_for="" if released else "A release waits for the stand-in.",
                clip_norm=1.0,
                gossip_messages=5,
                epsilon_spent=float(self.made),
                epsilon_left=10.0 - self.made,
                driver_bytes=0,
                phases={"training": 0.1},
                seconds=0.1,
            )
            history.append(record)
            if released:
                on_release(workload.initial_model(), number)
            on_round(record)
        model = workload.initial_model()
        return FitResult(
            model=model,
            vector=np.zeros(250, np.float32),
            last_model=None,
            history=tuple(history),
            refusals={refusal.client_id: {"raised": 1} for refusal in self.refusals},
            stopped=Stopped.ROUNDS,
            explanation="",
            epsilon_spent=float(self.made),
            best_model=model if self.made else None,
            best_round=min(self.made, rounds) - 1 if self.made else None,
        )

    def get_stats(self):
        return {
            "n_baskets": 8,
            "privacy_consumed_epsilon": float(self.made),
            "privacy_claim": {"unit": "client"},
            "privacy_lifetime_epsilon": float(self.made),
            "ledger": {"period": 0, "epsilon_total": 10.0},
            "warnings": [{"code": "stood_in", "message": "this is no federation"}],
        }


LOST = Refusal("domain_0_client_003", 1, Cause.RAISED, "ValueError: no such column: age (w.py:3 in train)")


def test_refusals_are_told_by_client_and_reason_with_the_first_causes(tmp_path):
    config, outcome = _job(tmp_path, *QUICK, open_federation=partial(StandIn, refusals=[LOST]))
    assert outcome.summary.rejected == {"raised": 1}
    assert outcome.summary.refused == {"domain_0_client_003": {"raised": 1}}
    assert [record.accepted for record in outcome.rounds] == [104, 103, 104]
    page = " ".join(render_report(config, outcome).split())
    assert "<td>domain_0_client_003</td><td>raised 1</td>" in page
    assert "domain_0_client_003, round 1: raised: ValueError: no such column: age" in page


def test_a_round_without_a_release_keeps_the_model(tmp_path):
    _, outcome = _job(tmp_path, *QUICK, open_federation=partial(StandIn, releases=1))
    assert [record.released for record in outcome.rounds] == [True, False, False]
    assert len({record.metrics["accuracy"] for record in outcome.rounds}) == 1
    assert outcome.summary.releases == 1
    assert outcome.summary.best_round == 1


def test_a_job_that_ended_early_is_compared_with_runs_as_short(tmp_path):
    job = load_job(QUICKSTART, (*SMALL, *QUICK, "lab.compare=[clean]", "lab.compare_attacks=[]"))
    federation = StandIn(job.config.federation, runtime="local", address=None)
    runs = ComparisonRuns(Scene.of(job, "accuracy"), job.config.lab, job.config.federation, federation)
    curves = [[len(made.run.curve) for _, made in runs.made(rounds)] for rounds in (3, 2, 0)]
    assert curves == [[3], [2], []]


def test_what_clients_told_is_shown_by_domain_and_said_to_lie_outside_the_claim(tmp_path):
    config, outcome = _job(tmp_path, *QUICK, open_federation=StandIn)
    assert outcome.rounds[-1].training == {"domain_0": {"loss": 0.0}}
    page = " ".join(render_report(config, outcome).split())
    assert "loss, in training" in page
    assert '<td>domain_0</td><td class="n">26</td><td class="n">0</td>' in page
    assert "outside the privacy claim" in page


def test_a_failing_run_closes_the_federation_and_keeps_its_metrics(tmp_path):
    made = []

    class Failing(StandIn):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, fails_in=2)
            made.append(self)

    with pytest.raises(RuntimeError, match="network"):
        _job(tmp_path, *QUICK, open_federation=Failing)
    assert made[0].closed
    assert load_model(tmp_path / "model.npz").keys() == {"weights", "bias"}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_releases_nothing_says_what_it_waited_for(tmp_path):
    _, outcome = _job(tmp_path, *QUICK, open_federation=partial(StandIn, releases=0))
    assert outcome.summary.waits_for == "A release waits for the stand-in."
    assert all(record.waits_for for record in outcome.rounds)
    assert outcome.summary.load_model == ""
    assert not list(tmp_path.glob("*.npz")), "nothing was trained"
    assert outcome.summary.metrics == outcome.summary.initial
    released = _job(tmp_path / "released", *QUICK, open_federation=StandIn)[1]
    assert released.summary.waits_for == "".join(record.waits_for for record in released.rounds) == ""


def test_what_the_federation_warned_of_is_in_the_summary_and_on_the_page(tmp_path):
    config, outcome = _job(tmp_path, *QUICK, open_federation=partial(StandIn, releases=0))
    assert [warning["code"] for warning in outcome.summary.warnings] == ["stood_in"]
    assert json.loads((tmp_path / "summary.json").read_text())["warnings"][0]["code"] == "stood_in"
    page = render_report(config, outcome)
    assert "this is no federation" in page
    assert "No round released a model.<br>A release waits for the stand-in." in page


MEANS = '''
import numpy as np
from scarcity_ray_client import Client, Trained, Workload

class Means(Workload):
    """Each site knows a number; the model is their mean."""
    def __init__(self, sites=12, broken=False):
        self.sites, self.broken = sites, broken
    def clients(self):
        return [Client(f"site_{i:02d}", f"region_{i % 2}", data=i) for i in range(self.sites)]
    def initial_model(self):
        return {"mean": np.zeros(2, np.float32)}
    def train(self, model, client, round_id):
        if client.data == 3:
            raise ValueError("the disk is full")
        step = 0.5 * (np.array([client.data, 1.0]) - model["mean"])
        return Trained(model={"mean": model["mean"] + step}, metrics={"length": float(abs(step).sum())})
    def evaluate(self, model):
        if self.broken:
            raise KeyError("age")
        return {"error": float(abs(model["mean"] - [5.7, 1.0]).sum()), "second": float(model["mean"][1])}
    def evaluate_client(self, model, client):
        return {"error": float(abs(model["mean"][0] - client.data))}
    def centralised(self):
        return {"mean": np.array([5.7, 1.0], np.float32)}
'''
MEANS_JOB = """
name: means
federation:
  total_epsilon: .inf
  gossip_budget_share: 0.0
  basket: {max_clients: 3, min_clients: 3}
  layer1: {aggregation_method: mean, clip_norm: 100.0, min_updates: 2}
  layer2: {central_dp_epsilon: .inf, clip_norm: 100.0}
workload: {class: "means_workload:Means"}
training: {rounds: 8, mode: min, patience: 6, evaluate_clients: true, clients_per_task: 2}
lab: {byzantine_share: 0.0, compare: [centralised, local_only, clean]}
run: {runtime: local}
"""


@pytest.fixture
def means(tmp_path):
    (tmp_path / "means_workload.py").write_text(MEANS)
    (tmp_path / "job.yaml").write_text(MEANS_JOB)
    return tmp_path / "job.yaml"


@pytest.mark.long
def test_anyones_model_is_trained_and_reported_by_its_own_metrics(tmp_path, means):
    config, outcome = _job(tmp_path / "out", path=means, small=())
    summary = outcome.summary
    assert (summary.metric, summary.attack) == ("error", "none")
    assert summary.headline < 0.5 < summary.initial["error"]
    assert summary.refused == {"site_03": {"raised": 8}}
    assert "ValueError: the disk is full" in summary.first_refusals[0]["detail"]
    assert summary.beside("centralised") == pytest.approx(0.0, abs=1e-6)
    assert summary.beside("local_only") > 2.0
    assert summary.beside("clean") == pytest.approx(summary.headline, abs=1e-3)
    assert outcome.rounds[-1].clients.keys() == outcome.rounds[-1].training.keys() == {"region_0", "region_1"}
    model = load_model(tmp_path / "out" / "model.npz")
    assert model["mean"].shape == (2,)
    page = " ".join(render_report(config, outcome).split())
    assert "means_workload:Means, trained by 12 clients in 4 baskets, reached error" in page
    assert 'aria-label="Error over rounds"' in page
    assert "digits" not in page
    assert load_run(tmp_path / "out" / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.metric=auc", "training.metric: 'auc' is not accepted; evaluate gives error, second"),
        ("workload.args.broken=true", "evaluate, of the initial model: KeyError: 'age'.*means_workload"),
    ],
)
def test_what_evaluate_cannot_give_is_told_before_the_federation_starts(tmp_path, means, override, message):
    with pytest.raises(UsageError, match=message):
        _job(tmp_path / "out", override, path=means, small=(), open_federation=pytest.fail)
    assert not list((tmp_path / "out").iterdir())


FAILING = """
from means_workload import Means

class Failing(Means):
    def centralised(self):
        raise OSError("the archive is shut")
    def evaluate(self, model):
        return {"error": float("nan") if model["mean"].any() else 1.0}

class Absent(Means):
    def centralised(self):
        return None
"""


@pytest.mark.parametrize(
    ("name", "cause"),
    [("Failing", "OSError: the archive is shut"), ("Absent", "centralised gave None")],
)
def test_a_run_beside_that_fails_is_told_and_costs_no_other(tmp_path, means, name, cause):
    (tmp_path / "failing_workload.py").write_text(FAILING)
    overrides = f"workload.class=failing_workload:{name}", "training.rounds=1"
    config, outcome = _job(tmp_path / "out", *overrides, path=means, small=())
    failed = {run.run: run.failed for run in outcome.summary.runs}
    assert failed.pop("centralised").startswith(f"it failed: {cause}")
    assert failed == {"local_only": "", "clean": ""}
    assert f"centralised: it failed: {cause}" in " ".join(render_report(config, outcome).split())


def test_a_round_whose_model_has_no_metric_does_not_show_the_one_before(tmp_path, means):
    (tmp_path / "failing_workload.py").write_text(FAILING)
    overrides = "workload.class=failing_workload:Failing", "training.rounds=1", "lab.compare=[]"
    config, outcome = _job(tmp_path / "out", *overrides, path=means, small=())
    assert outcome.summary.initial == {"error": 1.0}
    assert outcome.rounds[0].metrics == outcome.summary.metrics == {}
    assert "reached error - (before training: 1)" in " ".join(render_report(config, outcome).split())


def test_what_clients_measure_privately_is_in_the_runs_files(tmp_path):
    asked = "training.private_evaluation={metrics: {accuracy: [0, 1]}, max_examples: 2}"
    small = (*SMALL[:2], "training.rounds=1", "lab={compare: []}")
    _, outcome = _job(tmp_path, asked, small=small)
    found = outcome.summary.private_evaluation["accuracy"]
    assert abs(found.examples - 2) < 6 * found.examples_error, "every client has two examples or more"
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    told = json.loads(line)["private_evaluation"]["accuracy"]
    assert told == json.loads((tmp_path / "summary.json").read_text())["private_evaluation"]["accuracy"]
    assert told["examples"] == found.examples


def test_a_run_that_fails_later_keeps_the_model_that_its_budget_paid_for(tmp_path, means):
    class Stopping(Silent):
        def round(self, record):
            if record.round == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _job(tmp_path / "out", path=means, small=(), watcher=Stopping())
    job = load_job(means)
    reached = job.workload.evaluate(load_model(tmp_path / "out" / "model.npz"))
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["metrics"] == reached
