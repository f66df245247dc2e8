"""``ray job stop`` at any moment: the driver finishes its release, ends, and the next job goes on."""

from __future__ import annotations

import json
import os
import random
import shlex
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobSubmissionClient

from benchmarks._deaths_oracle import charges, judged
from scarcity_ray.actors.global_aggregator import RELEASE
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.storage.snapshots import Snapshots
from tests.runtime.test_clusters import Head, head

__all__ = ["head"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STOPS = 2
WORKLOAD = """
import time
import numpy as np
from scarcity_ray_client import Client, Trained, Workload

class Sites(Workload):
    def clients(self):
        return [Client(f"site_{i}", f"region_{i % 2}", num_cpus=0.1) for i in range(8)]
    def initial_model(self):
        return {"w": np.zeros(2, np.float32)}
    def train(self, model, client, round_id):
        time.sleep(0.1)
        return Trained(delta=np.ones(2, np.float32))
    def evaluate(self, model):
        return {"mean": float(model["w"].mean())}
"""
JOB = """
name: stopped
federation:
  ledger_path: {folder}/ledger.sqlite
  gossip_budget_share: 0.0
  basket: {{max_clients: 4, min_clients: 4}}
  layer1: {{aggregation_method: mean}}
  runtime: {{cpus_per_actor: 0.01}}
workload: {{class: "stopped_workload:Sites"}}
training: {{rounds: {rounds}}}
"""


def wait(until: Any, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_stopped_job_finishes_its_release_and_the_next_goes_on(head: Head, tmp_path: Path) -> None:
    chance, log = random.Random(), tmp_path / "log.jsonl"
    paths = os.pathsep.join(sys.path)

    jobs = JobSubmissionClient(head.dashboard)

    def submitted(verb: str) -> str:
        command = [sys.executable, "-m", "tests.runtime.job_driver", str(tmp_path), verb]
        environment = {"env_vars": {"PYTHONPATH": paths}}
        return str(jobs.submit_job(entrypoint=shlex.join(command), runtime_env=environment))

    def lines(what: str = "") -> list[dict[str, Any]]:
        found = log.read_text().splitlines() if log.exists() else []
        return [line for line in map(json.loads, found) if what in ("", line["what"])]

    releases: dict[int, Any] = {}
    for _ in range(STOPS):
        job = submitted("work")
        rounds = len(lines("round")) + 2
        wait(lambda rounds=rounds: len(lines("round")) >= rounds)
        time.sleep(chance.uniform(0.0, 1.0))
        pid = lines()[-1]["pid"]
        jobs.stop_job(job)
        wait(lambda job=job: jobs.get_job_status(job) == "STOPPED", 10.0)
        wait(lambda pid=pid: not is_running(pid), 10.0)
        kept = Snapshots(str(tmp_path / "state")).read_all(RELEASE, CODEC)
        releases |= {model.version: model for model in kept}
    submitted("settle")
    wait(lambda: lines("settled"))
    kept = Snapshots(str(tmp_path / "state")).read_all(RELEASE, CODEC)
    releases |= {model.version: model for model in kept}
    counts, wrong = judged(lines(), releases, tmp_path / "ledger.sqlite")
    assert not wrong
    assert counts["charges"] == counts["releases"]


def test_a_stopped_run_goes_on_as_one_that_was_not_stopped(head: Head, tmp_path: Path) -> None:
    """`scarcity-ray run` as a job, stopped twice, and `--resume`: each round is made and charged once."""
    chance, out, rounds = random.Random(), tmp_path / "out", 12
    jobs = JobSubmissionClient(head.dashboard)
    (tmp_path / "stopped_workload.py").write_text(WORKLOAD)
    job_file = tmp_path / "job.yaml"
    job_file.write_text(JOB.format(folder=tmp_path, rounds=rounds))

    def submitted(*words: str) -> str:
        command = [sys.executable, "-m", "scarcity_ray", "run", *words]
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}}
        return str(jobs.submit_job(entrypoint=shlex.join(command), runtime_env=environment))

    def made() -> list[dict[str, Any]]:
        file = out / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    job = submitted(str(job_file), "--out", str(out))
    for stop in (2, 4):
        wait(lambda stop=stop, job=job: len(made()) >= stop or jobs.get_job_status(job) == "FAILED")
        assert jobs.get_job_status(job) == "RUNNING", jobs.get_job_logs(job)
        time.sleep(chance.uniform(0.0, 0.5))
        jobs.stop_job(job)
        wait(lambda job=job: jobs.get_job_status(job) == "STOPPED", 10.0)
        said = str(jobs.get_job_logs(job))
        assert f"scarcity-ray run --resume {out}" in said, said
        job = submitted("--resume", str(out))
    wait(lambda: jobs.get_job_status(job) not in ("PENDING", "RUNNING"))
    assert jobs.get_job_status(job) == "SUCCEEDED", jobs.get_job_logs(job)
    assert [line["round"] for line in made()] == list(range(1, rounds + 1))
    assert len(list(charges(tmp_path / "ledger.sqlite"))) == rounds
