"""``scarcity-ray run``: outputs, exit codes and words, through a real federation on the local runtime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scarcity_ray import HierarchicalFederation
from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.main import main
from scarcity_ray.workloads import digit_images

pytest.importorskip("sklearn")
CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
QUICKSTART = str(CONFIGS[0].with_name("quickstart.yaml"))
PRODUCTION = str(CONFIGS[0].with_name("production.yaml"))
SMALL = (
    *("--runtime", "local", "--set", "workload.args.clients=104", "--set", "federation.layer2.min_baskets=8"),
    *("--set", "federation.layer2.central_dp_epsilon=2.0"),
)
LOUD = ("--set", "federation.layer2.central_dp_epsilon=0.9")
NARROW = ("--set", "workload.args.random_features=100", "--set", "lab.compare=[clean,local_only]")
NO_EXTRA_ATTACKS = ("--set", "lab.compare_attacks=[]")


def _call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def _run(config, out, *arguments):
    return _call("run", config, "--out", out, *SMALL, *arguments)


@pytest.mark.long
@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_runs_shortened(path, tmp_path):
    if path.stem == "hospitals":
        pytest.importorskip("statsmodels", reason="the hospitals' data are in statsmodels")
    ledger = f"federation.ledger_path={tmp_path / 'ledger.sqlite'}"
    out = tmp_path / "out"
    result = _call(
        *("run", path, "--out", out, "--runtime", "local", "--rounds", 1, "--set", ledger),
        *(() if path.stem == "production" else NO_EXTRA_ATTACKS),
        *(NARROW if path.stem == "research" else ()),
    )
    assert result.exit_code == ExitCode.DONE, result.output
    models = {"model.npz", "best_model.npz", "state"}
    if path.stem == "decentralised":
        models = {f"model-domain_{number}_basket_0.npz" for number in range(4)}
    assert {entry.name for entry in out.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "report.html", "summary.json"),
        *models,
    }
    assert (tmp_path / "ledger.sqlite").exists()


@pytest.mark.long
def test_text_shows_progress_table_and_claim(tmp_path):
    result = _run(QUICKSTART, tmp_path / "out", "--rounds", 2, *NO_EXTRA_ATTACKS)
    assert result.exit_code == ExitCode.DONE
    line = r"round 2/2  accuracy \d+\.\d %  epsilon left \d\.\d\d  rejected 0  \d+\.\d s"
    assert re.search(line, result.stdout)
    for words in ("plain mean", "clipped mean", "sign flip", "accuracy on test data", "load_model("):
        assert words in result.stdout
    flat = " ".join(result.stdout.split())
    assert "Privacy claim" in flat
    assert re.search(r"This run reached \d+\.\d % and the simulation .* \d+\.\d %: one draw each", flat)
    assert "basket models, outliers and the share of clipped updates are shown" in flat
    assert "Not against: whoever operates the Ray cluster" in flat
    assert str(tmp_path / "out" / "report.html") in result.stdout
    assert re.search(r"Ledger /\S+\.sqlite \(new\): epsilon 10\.00 of 10\.00 left", result.stdout)
    assert result.stderr == ""


def test_noise_that_drowns_the_signal_is_said_before_the_run(tmp_path):
    result = _run(QUICKSTART, tmp_path / "out", "--rounds", 1, *LOUD, *NO_EXTRA_ATTACKS)
    assert result.exit_code == ExitCode.DONE
    assert result.stderr.startswith("WARNING: a release's noise has norm 1.8, 1.8 times the greatest")
    assert len(result.stderr.splitlines()) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("a release&#39;s noise has norm 1.8") < page.index("<h2>Results"), "above the figures"


def test_a_run_in_rays_cache_of_jobs_is_warned_of(tmp_path):
    out = tmp_path / "runtime_resources" / "working_dir_files" / "out"
    result = _run(QUICKSTART, out, "--rounds", 1, *NO_EXTRA_ATTACKS)
    assert result.stderr.count(f"WARNING: {out} lies in Ray's cache of submitted jobs") == 2
    assert f"Written to {out}/" in result.stdout


@pytest.mark.long
def test_json_is_all_there_is_on_stdout(tmp_path):
    result = _run(QUICKSTART, tmp_path / "out", "--rounds", 2, "--format", "json", *LOUD, *NO_EXTRA_ATTACKS)
    assert result.exit_code == ExitCode.DONE
    events = [json.loads(line, parse_constant=pytest.fail) for line in result.stdout.splitlines()]
    kinds = ["warning", "phase", "phase", "ledger", "phase"] + ["round"] * 2 + ["phase", "summary"]
    events = [event for event in events if event["event"] != "progress"]
    assert [event["event"] for event in events] == kinds
    assert events[0]["code"] == "noise_drowns_signal"
    assert (events[3]["is_new"], events[3]["epsilon_left"]) == (True, 10.0)
    assert events[-1]["metrics"] == events[-3]["metrics"]
    assert events[-1]["out"] == str(tmp_path / "out")


@pytest.mark.long
def test_a_spent_budget_is_exit_code_3_and_once_renewed_the_run_goes_on(tmp_path):
    result = _run(
        QUICKSTART,
        tmp_path / "out",
        *("--rounds", 9, "--set", "federation.layer2.central_dp_epsilon=6.0", *NO_EXTRA_ATTACKS),
    )
    assert result.exit_code == ExitCode.BUDGET_SPENT
    assert "The privacy budget was spent after round" in result.stdout
    assert (tmp_path / "out" / "report.html").exists()
    before = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert before["budget_spent_early"]
    with HierarchicalFederation.restore(str(tmp_path / "out" / "state"), runtime="local") as fed:
        fed.renew_budget(7.0, 1e-5, operator="ann")
    result = _call("run", "--resume", tmp_path / "out")
    assert result.exit_code == ExitCode.BUDGET_SPENT
    after = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert after["rounds"] > before["rounds"]
    assert 0 < after["epsilon_spent"] <= after["total_epsilon"] == 7.0
    assert "and was renewed once" in after["privacy_claim"][0]


@pytest.mark.long
def test_production_continues_its_ledger_until_the_budget_is_spent(tmp_path):
    durable = (
        *("--set", f"federation.ledger_path={tmp_path / 'ledger.sqlite'}"),
        *("--set", "federation.layer2.central_dp_epsilon=4.5", "--rounds", 2),
    )
    outcomes = [_run(PRODUCTION, tmp_path / str(k), *durable) for k in range(3)]
    spent = [json.loads((tmp_path / str(k) / "summary.json").read_text()) for k in range(3)]
    assert [result.exit_code for result in outcomes] == [
        ExitCode.DONE,
        ExitCode.BUDGET_SPENT,
        ExitCode.BUDGET_SPENT,
    ]
    assert [summary["rounds"] for summary in spent] == [2, 1, 0]
    assert spent[0]["epsilon_spent"] < spent[1]["epsilon_spent"] == spent[2]["epsilon_spent"] <= 10
    assert (tmp_path / "2" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "training.round=5"), "scarcity-ray: training.round: 5 is not accepted; unknown key"),
        (("--set", "training.rounds=many"), "scarcity-ray: training.rounds: 'many' is not accepted"),
        (
            ("--set", "federation.vector_dim=64"),
            "scarcity-ray: federation.vector_dim: 64 is not accepted; 250",
        ),
    ],
)
def test_a_bad_config_is_one_line_on_stderr_and_exit_code_2(arguments, message, tmp_path):
    result = _run(QUICKSTART, tmp_path / "out", *arguments)
    assert result.exit_code == ExitCode.BAD_USAGE
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_missing_file_an_unknown_option_and_zero_rounds_are_exit_code_2(tmp_path):
    missing = _call("run", tmp_path / "none.yaml")
    assert missing.exit_code == ExitCode.BAD_USAGE
    assert "none.yaml" in missing.stderr
    assert _call("run", QUICKSTART, "--fast").exit_code == ExitCode.BAD_USAGE
    assert _call("run", QUICKSTART, "--rounds", 0).exit_code == ExitCode.BAD_USAGE
    assert _call("run", QUICKSTART, "--runtime", "dask").exit_code == ExitCode.BAD_USAGE


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    result = _run(QUICKSTART, tmp_path)
    assert result.exit_code == ExitCode.BAD_USAGE
    assert "is not empty (it holds precious.txt); give a new or empty folder" in result.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["precious.txt"]


@pytest.mark.parametrize("module", ["sklearn", "matplotlib"])
def test_a_missing_extra_is_one_line_with_the_command(module, tmp_path, monkeypatch):
    digit_images._bundled.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    result = _run(QUICKSTART, tmp_path / "out", "--rounds", 1)
    assert result.exit_code == ExitCode.BAD_USAGE
    assert "install it with: pip install 'scarcity-ray[quickstart]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_ledger_that_cannot_be_used_is_a_failure_without_a_traceback(tmp_path):
    ledger = tmp_path / "ledger.sqlite"
    ledger.write_bytes(b"not a database, whatever its name" * 100)
    result = _run(QUICKSTART, tmp_path / "out", "--rounds", 1, "--set", f"federation.ledger_path={ledger}")
    assert result.exit_code == ExitCode.FAILED
    assert result.stderr.startswith("scarcity-ray: Ledger")
    assert "Traceback" not in result.output


def test_help_and_version_name_the_exit_codes_and_the_package():
    assert "3 privacy budget spent" in " ".join(_call("--help").output.split())
    assert re.fullmatch(r"scarcity-ray \d+\.\d+\.\d+\n", _call("--version").output)
    assert _call("run", "--help").exit_code == ExitCode.DONE


def test_the_package_runs_as_a_module_and_imports_neither_ray_nor_the_extra():
    command = [sys.executable, "-X", "importtime", "-m", "scarcity_ray", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout.startswith("scarcity-ray ")
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "scarcity_ray.cli.main" in imported
    assert not imported & {"ray", "sklearn", "matplotlib", "pyarrow"}


NOISY = """
import os, signal
import numpy as np
from scarcity_ray_client import Client, Trained, Workload

class Noisy(Workload):
    def __init__(self, ends=""):
        print("made")
        self.ends = ends
    def clients(self):
        return [Client(f"site_{i}", f"region_{i % 2}") for i in range(8)]
    def initial_model(self):
        return {"w": np.zeros(2, np.float32)}
    def train(self, model, client, round_id):
        print("trained")
        return Trained(delta=np.ones(2, np.float32))
    def evaluate(self, model):
        print("evaluated")
        if self.ends and (model["w"].any() or self.ends == "at once"):
            if self.ends == "terminated":
                os.kill(os.getpid(), signal.SIGTERM)
            raise KeyboardInterrupt
        return {"mean": float(model["w"].mean())}
"""
NOISY_JOB = """
name: noisy
federation:
  gossip_budget_share: 0.0
  basket: {max_clients: 4, min_clients: 4}
  layer1: {aggregation_method: mean}
workload: {class: "noisy_workload:Noisy"}
training: {rounds: 1}
run: {runtime: local}
"""


@pytest.fixture
def noisy(tmp_path):
    (tmp_path / "noisy_workload.py").write_text(NOISY)
    (tmp_path / "job.yaml").write_text(NOISY_JOB)
    return tmp_path / "job.yaml"


def test_what_a_workload_prints_is_not_among_the_json(noisy, tmp_path):
    result = _call("run", noisy, "--out", tmp_path / "out", "--format", "json")
    assert result.exit_code == ExitCode.DONE, result.output
    assert [json.loads(line)["event"] for line in result.stdout.splitlines()][-1] == "summary"
    assert {"made", "trained", "evaluated"} <= {line.split("] ")[-1] for line in result.stderr.splitlines()}


@pytest.mark.parametrize("ends", ["interrupted", "terminated"])
def test_an_interrupted_run_keeps_its_model_and_says_what_it_left(noisy, tmp_path, ends):
    out = tmp_path / "out"
    result = _call("run", noisy, "--out", out, "--set", f"workload.args.ends={ends}")
    assert result.exit_code == ExitCode.INTERRUPTED
    assert "No round was completed; a round under way may have been charged." in result.stderr
    assert (
        f"{out} holds config.yaml, model.npz, state. Go on with: scarcity-ray run --resume {out}\n"
        in result.stderr
    )
    assert result.stderr.endswith("scarcity-ray: interrupted\n")
    went_on = _call("run", "--resume", out, "--set", "workload.args.ends=")
    assert went_on.exit_code == ExitCode.DONE, went_on.output
    assert re.search(
        r"Ledger /\S+ \(begun .*\): epsilon \d\.\d\d of 10\.00 left, 0\.\d+ spent before", went_on.stdout
    )
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


def test_what_cannot_be_resumed_is_refused(noisy, tmp_path):
    for arguments, said in (
        ((), "give the file CONFIG, or --resume DIR"),
        ((noisy, "--resume", tmp_path), "give the file CONFIG, or --resume DIR"),
        (("--resume", tmp_path, "--out", tmp_path), "give the file CONFIG, or --resume DIR"),
        (("--resume", tmp_path), f"--resume {tmp_path}: no run's folder, as it holds no config.yaml"),
    ):
        result = _call("run", *arguments)
        assert result.exit_code == ExitCode.BAD_USAGE
        assert said in result.stderr


def _held(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.long
def test_a_run_that_is_not_resumed_is_as_it_was(noisy, tmp_path):
    out = tmp_path / "out"
    assert _call("run", noisy, "--out", out).exit_code == ExitCode.DONE
    before = _held(out)
    for setting, said in (
        ("training.optimizer.learning_rate=5", "optimizer was ServerSGD(learning_rate=1.0"),
        ("federation.total_epsilon=2", "federation.total_epsilon: 2.0 is not accepted; 10.0, with which"),
    ):
        result = _call("run", "--resume", out, "--set", setting)
        assert result.exit_code == ExitCode.BAD_USAGE
        assert said in result.stderr
        assert _held(out) == before
    assert _call("run", "--resume", out).exit_code == ExitCode.DONE
    assert (out / "metrics.jsonl").read_bytes().count(b"\n") == 1
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"round": 2, "tor')  # killed as it wrote
    shutil.rmtree(out / "state")
    result = _call("run", "--resume", out)
    assert result.exit_code == ExitCode.BAD_USAGE
    assert "it released models, and nothing is stored in" in result.stderr
    assert "Ended after round 1, with epsilon" in result.stderr


def test_a_run_that_leaves_nothing_leaves_no_folder(noisy, tmp_path):
    result = _call("run", noisy, "--out", tmp_path / "out", "--set", "workload.args.ends=at once")
    assert result.exit_code == ExitCode.INTERRUPTED
    assert not (tmp_path / "out").exists()
