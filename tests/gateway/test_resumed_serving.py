"""A served job whose process is killed goes on: the same round, the same model, the same slots."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.sites import Served, job, target_of


class Process(Served):
    """The command in a process of its own."""

    process: subprocess.Popen[str]

    def serve(self, *arguments: str) -> None:
        run = "from scarcity_ray.cli.main import main; main()"
        command = [sys.executable, "-c", run, "serve", *arguments, "--format", "json"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        self.watching.url = self.event("listening")["url"]

    def event(self, kind: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == kind:
                return told
        raise AssertionError(self.process.stderr and self.process.stderr.read())


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_served_job_that_was_killed_goes_on_with_the_same_round_model_and_slots(
    tmp_path: Path, number: signal.Signals
) -> None:
    served = Process(tmp_path, job(tmp_path, rounds=2))
    served.serve(str(served.file), "--out", str(served.run))
    north, south = served.site("north-1", "north"), served.site("south-1", "south")
    for site in (north, south):
        assert site.send(site.round(), [1.0, 0.0]).status == 201
    told = north.round(0)
    body = north.update(told, [0.0, 1.0])
    first = north.ask("PUT", target_of(1, body), body)
    assert first.status == 201
    served.process.send_signal(number)
    served.process.wait(20)
    served.serve("--resume", str(served.run))
    for site in (north, south):
        site.hang_up()
        site.port = served.port
    again = north.round()
    assert (again.round_id, again.model) == (told.round_id, told.model)
    assert north.ask("PUT", target_of(1, body), body).body == first.body
    assert south.send(south.round(), [0.0, 1.0]).status == 201
    summary = served.event("summary")
    assert summary["releases"] == 2
    assert served.process.wait(20) == 0
    rounds = (served.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["accepted"] for line in rounds] == [2, 2]
