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

from benchmarks._deaths_oracle import judged
from scarcity_ray.actors.global_aggregator import RELEASE
from scarcity_ray.actors.kept import CODEC
from scarcity_ray.storage.snapshots import Snapshots
from tests.runtime.test_clusters import Head, head

__all__ = ["head"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STOPS = 4


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
