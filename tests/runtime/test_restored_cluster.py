"""SIGKILL of a driver and of a whole cluster in mid-fit; another cluster comes to the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from scarcity_ray import HierarchicalFederation
from tests.federation.test_fitting import Towards
from tests.federation.test_resume import SeededNoise
from tests.runtime.restored_driver import ROUNDS, config
from tests.runtime.test_clusters import descendants

pytestmark = pytest.mark.ray


def life(folder: Path, verb: str, *, kill_after: int | None, whole: bool = True) -> list[str]:
    """A driver with a cluster of its own; its lines until it ends or is killed after a round's line."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", "tests.runtime.restored_driver", verb, str(folder)]
    lines: list[str] = []
    log = folder / f"{verb}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        ) as driver,
    ):
        assert driver.stdout is not None
        for line in driver.stdout:
            lines.append(line.strip())
            if kill_after is not None and line.startswith(f"round {kill_after} "):
                for pid in [driver.pid, *(descendants(driver.pid) if whole else [])]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                break
    assert kill_after is not None or driver.returncode == 0, log.read_text()[-3000:]
    return lines


def test_another_cluster_comes_to_the_same_bytes(tmp_path: Path) -> None:
    alone = replace(config(tmp_path / "alone"), storage_path=None)
    with (
        warnings.catch_warnings(),
        HierarchicalFederation(alone, runtime="local", noise=SeededNoise(1), clock=lambda: 1e9) as fed,
    ):
        warnings.simplefilter("ignore")
        whole = fed.fit(Towards(), rounds=ROUNDS)
    assert life(tmp_path, "begin", kill_after=0)[-1].startswith("round 0 ")
    assert life(tmp_path, "restore", kill_after=1, whole=False)[-1].startswith("round 1 ")
    told = life(tmp_path, "restore", kill_after=None)
    assert [line.split()[1] for line in told if line.startswith("round ")] == ["0", "1", "2", "3"]
    assert told[-2:] == [f"model {whole.vector.tobytes().hex()}", f"spent {whole.epsilon_spent!r}"]
