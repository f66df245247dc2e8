"""A run's folder, and the privacy claim."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.config import load_job, load_run
from scarcity_ray.workloads.records import RoundRecord
from scarcity_ray.workloads.report.privacy_claim import privacy_claim
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray_client import load_model

pytest.importorskip("sklearn")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_runs_own_folder_has_its_name_and_time_and_is_never_shared(tmp_path):
    config = load_run(QUICKSTART, [f"run.out={tmp_path}"])
    first, second = (RunFolder.new(config, None, NOW).path for _ in range(2))
    assert first == tmp_path / "quickstart-20260102-030405"
    assert second == tmp_path / "quickstart-20260102-030405-2"


def test_a_chosen_folder_may_be_new_or_empty_and_nothing_else(tmp_path):
    config = load_run(QUICKSTART)
    assert RunFolder.new(config, str(tmp_path / "a" / "b"), NOW).path.is_dir()
    assert RunFolder.new(config, str(tmp_path / "a" / "b"), NOW).path.is_dir()
    (tmp_path / "a" / "b" / "old.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is not empty \(it holds old.json\); give a new or empty folder"):
        RunFolder.new(config, str(tmp_path / "a" / "b"), NOW)
    with pytest.raises(UsageError, match="give a folder that can be written"):
        RunFolder.new(config, str(tmp_path / "a" / "b" / "old.json"), NOW)


def test_the_folder_is_absolute_and_a_home_may_be_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    config = load_run(QUICKSTART)
    assert RunFolder.new(config, None, NOW).path == tmp_path / "runs" / "quickstart-20260102-030405"
    assert RunFolder.new(config, "here", NOW).path == tmp_path / "here"
    assert RunFolder.new(config, "~/there", NOW).path == tmp_path / "home" / "there"


def test_results_in_rays_cache_of_jobs_are_told_of_with_the_remedy(tmp_path):
    config = load_run(QUICKSTART)
    cache = tmp_path / "session_latest" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    told = RunFolder.new(config, str(cache / "runs"), NOW).passing
    assert told is not None
    assert "give --out with an absolute path" in told
    assert RunFolder.new(config, str(tmp_path / "runs"), NOW).passing is None


def test_the_model_comes_back_bit_for_bit_and_as_its_own_kind(tmp_path):
    job = load_job(QUICKSTART)
    vector = np.random.default_rng(0).standard_normal(250).astype(np.float32)
    model = job.codec.decode(vector)
    RunFolder.new(job.config, str(tmp_path), NOW).write_model("model.npz", model)
    read = load_model(tmp_path / "model.npz", like=job.workload.initial_model())
    assert {name: part.tobytes() for name, part in read.items()} == {n: p.tobytes() for n, p in model.items()}


def test_the_written_config_can_be_run_again(tmp_path):
    config = load_run(QUICKSTART, ["training.rounds=7"])
    RunFolder.new(config, str(tmp_path), NOW).write_config(config)
    assert load_run(tmp_path / "config.yaml") == config


def test_metrics_are_on_disk_after_each_round_and_are_json_even_without_a_budget(tmp_path):
    folder = RunFolder.new(load_run(QUICKSTART), str(tmp_path), NOW)
    for number in (1, 2):
        folder.append_round(
            RoundRecord(
                *(number, {"auc": 0.5}, math.inf, math.inf, 10, 9, {"not_finite": 1}, 3, True, 1.0),
                *({"gossip": 0.1}, 1.0),
            )
        )
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == number
    assert json.loads(lines[1], parse_constant=pytest.fail) == {
        "format_version": 1,
        "round": 2,
        "metrics": {"auc": 0.5},
        "epsilon_spent": None,
        "epsilon_left": None,
        "sampled": 10,
        "accepted": 9,
        "rejected": {"not_finite": 1},
        "gossip_messages": 3,
        "released": True,
        "clip_norm": 1.0,
        "waits_for": "",
        "seconds": {"gossip": 0.1},
        "elapsed": 1.0,
        "training": {},
        "clients": {},
        "private_evaluation": {},
    }


def test_the_claim_says_what_for_whom_and_against_whom():
    claim = " ".join(privacy_claim(HierarchicalFederationConfig(total_delta=1e-5), 9.876))
    for words in (
        "(9.876, 1e-05)-differential privacy",
        "one client's accepted updates",
        "replace-one",
        "Against: whoever sees every released global model",
        "Not against: whoever operates the Ray cluster",
        "Outside the claim: what clients tell",
        "basket models, outlier reports and how many updates were clipped",
    ):
        assert words in claim


def test_gossip_is_in_the_claim_where_there_is_any():
    spoken = HierarchicalFederationConfig(total_delta=1e-5)
    assert "noised gossip is counted in" in " ".join(privacy_claim(spoken, 9.876))
    silent = HierarchicalFederationConfig(total_delta=1e-5, gossip_budget_share=0.0)
    assert "gossip" not in " ".join(privacy_claim(silent, 9.876))


def test_a_laboratory_is_said_to_be_one():
    config = HierarchicalFederationConfig(total_delta=1e-5)
    assert "This is a laboratory" not in " ".join(privacy_claim(config, 9.876))
    assert "This is a laboratory: the driver sees updates" in " ".join(
        privacy_claim(config, 9.876, is_lab=True)
    )


def test_without_a_budget_there_is_no_claim():
    (only,) = privacy_claim(HierarchicalFederationConfig(total_epsilon=math.inf), math.inf)
    assert only.startswith("No privacy claim")


def test_what_an_ended_run_left_is_told_with_what_it_spent(tmp_path):
    folder = RunFolder.new(load_run(QUICKSTART), str(tmp_path), NOW)
    values = 3, {"auc": 0.5}, 1.234, 8.766, 10, 10, {}, 0, True, 1.0, {}, 1.0
    folder.append_round(RoundRecord(*values))
    assert folder.left() == (
        f"Ended after round 3, with epsilon 1.234 spent by then; a round under way may have been charged. "
        f"{tmp_path} holds metrics.jsonl."
    )


def test_a_runs_metrics_keep_the_rounds_that_retention_asks_for(tmp_path):
    config = load_run(QUICKSTART, [f"run.out={tmp_path}", "federation.retention.metrics_rounds=2"])
    folder = RunFolder.new(config, None, NOW)
    for number in range(1, 6):
        folder.append_round(RoundRecord(number, {}, 0.0, 1.0, 1, 1, {}, 0, True, 1.0, {}, 0.0))
        rounds = [json.loads(line)["round"] for line in (folder.path / "metrics.jsonl").open()]
        assert rounds == list(range(max(1, number - 1), number + 1))
    assert sorted(entry.name for entry in folder.path.iterdir()) == ["metrics.jsonl"]
