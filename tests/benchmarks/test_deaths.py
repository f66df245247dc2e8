"""What `benchmarks.deaths` says of releases that are as they must be, and of others."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks import _deaths_oracle, deaths
from benchmarks._deaths_driver import CLIENTS, IDS, Log, Silence, Worker, config, row
from scarcity_ray import HierarchicalFederation


@pytest.fixture
def life(tmp_path: Path) -> deaths.Life:
    """Two rounds on the local runtime."""
    worker = Worker.__new__(Worker)
    worker.folder, worker.log, worker.round_id = tmp_path, Log(tmp_path), 0
    made = HierarchicalFederation(config(tmp_path), runtime="local", noise=Silence())
    with worker._watched(made, "begin") as worker.fed:
        made.register_clients(CLIENTS)
        for _ in range(2):
            worker.send(IDS, worker.round_id)
            worker.release()
            worker.round_id = made.advance_round()
    life = deaths.Life(tmp_path, "calls", Mock(), random.Random(0), 60.0)
    life.read_releases()
    return life


def judged(life: deaths.Life) -> Counter[str]:
    counts, wrong = _deaths_oracle.judged(life.lines(), life.releases, life.folder / "ledger.sqlite")
    life.wrong += wrong
    return counts


def test_what_is_as_it_must_be_is_counted(life: deaths.Life) -> None:
    counts = judged(life)
    assert not life.wrong
    assert counts["acknowledged"] == counts["released"] == 2 * len(IDS)
    assert counts["releases"] == counts["charges"] == 2


def test_an_update_that_is_lost_or_counts_twice_is_seen(life: deaths.Life) -> None:
    first, second = life.releases[1], life.releases[2]
    without = np.where(row("c03", 0) > 0, np.float32(0.0), first.aggregate)
    life.releases = {1: replace(first, aggregate=without), 2: replace(second, aggregate=row("c05", 0))}
    counts = judged(life)
    assert counts["double"] == 1
    assert counts["lost"] == 1 + len(IDS)
    assert "c03's update of round 0 was acknowledged and is nowhere" in life.wrong
    assert "(0, 'c05') is in 2 releases" in life.wrong


def test_a_release_without_a_charge_of_its_own_is_seen(life: deaths.Life) -> None:
    life.releases[3] = replace(life.releases[2], aggregate=row("c05", 7), version=3)
    judged(life)
    assert {"two releases have one charge", "3 releases, and 2 charges"} <= set(life.wrong)


def test_what_waits_and_what_its_client_takes_along_is_not_lost_but_what_others_outran_is(
    life: deaths.Life,
) -> None:
    """c03 and c04 are in no release: c03 leaves, and c04 waits; of c05 a later update is in one."""
    for client in ("c03", "c04"):
        for version, model in life.releases.items():
            gone = np.where(row(client, version - 1) > 0, np.float32(0.0), model.aggregate)
            life.releases[version] = replace(model, aggregate=gone)
    log = Log(life.folder)
    log("begin", call="unregister", client="c03", round=2)
    log("settled", stats={"n_updates_buffered": 2})
    counts = judged(life)
    assert not life.wrong
    assert (counts["withdrawn"], counts["waiting"], counts["lost"]) == (2, 2, 0)
    first = life.releases[1]
    outrun = np.where(row("c05", 0) > 0, np.float32(0.0), first.aggregate)
    life.releases[1] = replace(first, aggregate=outrun)
    assert judged(life)["lost"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_ten_deaths_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    seed = str(random.randrange(1000))
    command = [sys.executable, "-m", "benchmarks", "deaths", "--kills", "10", "--seed", seed]
    done = subprocess.run(
        [*command, "--folder", str(tmp_path / "deaths")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
