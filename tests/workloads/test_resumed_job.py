"""A job that was interrupted goes on, and comes to what it would have come to."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial

import pytest

from scarcity_ray.errors import LedgerHeld, UsageError
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.secagg import Roster
from scarcity_ray.workloads.config import load_job
from scarcity_ray.workloads.job import run_job
from scarcity_ray.workloads.run_folder import RunFolder
from scarcity_ray_client.receipts import ReleaseRecord
from tests.workloads.test_job import QUICKSTART, SMALL, Silent

pytest.importorskip("sklearn")
ALIKE = {"noise": SeededNoise(1), "clock": lambda: 1e9}  # how much gossip is delivered goes by the clock, too
SEEDED = {
    "open_federation": partial(HierarchicalFederation, **ALIKE),
    "restore": partial(HierarchicalFederation.restore, **ALIKE),
}
OVERRIDES = (*SMALL, "training.rounds=3", "lab.compare_attacks=[]", "lab.compare=[]", "training.patience=3")


class Stopping(Silent):
    """Ctrl-C, once so many rounds were told."""

    def __init__(self, rounds):
        self.left = rounds

    def round(self, record):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def made(path, watcher, *overrides, resume=False):
    job = load_job(QUICKSTART, (*OVERRIDES, *overrides))
    now = datetime.now(UTC)
    folder = RunFolder.resumed(job.config, path, now) if resume else RunFolder.new(job.config, str(path), now)
    return run_job(job, folder, watcher, resume=resume, **SEEDED).summary


def lines(path):
    told = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "elapsed")} for line in told]


@pytest.mark.long
def test_a_run_that_was_interrupted_comes_to_the_same(tmp_path):
    whole = made(tmp_path / "whole", Silent())
    path = tmp_path / "interrupted"
    for rounds in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            made(path, Stopping(rounds), resume=rounds > 1)
    summary = made(path, Silent(), resume=True)
    assert lines(path) == lines(tmp_path / "whole")
    for name in ("metrics", "best_round", "best_metrics", "epsilon_spent", "releases", "rejected", "rounds"):
        assert getattr(summary, name) == getattr(whole, name), name
    for model in ("model.npz", "best_model.npz"):
        assert (path / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()
    again = made(path, Silent(), "training.rounds=4", resume=True)
    assert (again.rounds, again.epsilon_spent > whole.epsilon_spent) == (4, True)


def test_a_run_goes_on_with_its_own_federation_and_terms(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "run", Stopping(1))
    with pytest.raises(UsageError, match=r"^federation\.total_epsilon: 99\.0 is not accepted; .*it is"):
        made(tmp_path / "run", Silent(), "federation.total_epsilon=99.0", resume=True)
    with pytest.raises(UsageError, match=r"another one: clients_per_round was None"):
        made(tmp_path / "run", Silent(), "training.clients_per_round=90", resume=True)


@pytest.mark.long
def test_what_cannot_go_on_leaves_the_folder_as_it_was(tmp_path):
    """Terms that are refused, and a run that goes on elsewhere at this moment."""

    class Rival(Silent):
        def round(self, record):
            if len(lines(path)) == 2:
                found = {file: file.read_bytes() for file in path.iterdir() if file.is_file()}
                for refused, override in ((LedgerHeld, ()), (LedgerHeld, ("federation.total_epsilon=99.0",))):
                    with pytest.raises(refused):
                        made(path, Silent(), *override, resume=True)
                assert found == {file: file.read_bytes() for file in path.iterdir() if file.is_file()}

    path = tmp_path / "run"
    made(path, Rival())
    assert [line["round"] for line in lines(path)] == [1, 2, 3]
    before = (path / "config.yaml").read_bytes()
    for override in ("federation.total_epsilon=99.0", "training.clients_per_round=90"):
        with pytest.raises(UsageError):
            made(path, Silent(), override, resume=True)
    assert (path / "config.yaml").read_bytes() == before
    assert len(lines(path)) == 3


def test_a_run_that_had_not_begun_begins(tmp_path):
    job = load_job(QUICKSTART, OVERRIDES)
    RunFolder.new(job.config, str(tmp_path), datetime.now(UTC)).write_config(job.config)
    assert made(tmp_path, Silent(), resume=True).rounds == 3


@pytest.mark.long
def test_releases_are_kept_for_an_audit_once_each(tmp_path):
    """A run that is interrupted, with a line that was torn as it died."""
    path, receipts = tmp_path / "run", "federation.receipts=true"
    with pytest.raises(KeyboardInterrupt):
        made(path, Stopping(2), receipts)
    kept = (path / "releases.jsonl").read_text()
    (path / "releases.jsonl").write_text(kept.splitlines()[0] + "\n" + kept.splitlines()[1][:50])
    made(path, Silent(), receipts, resume=True)
    records = [ReleaseRecord.from_text(line) for line in (path / "releases.jsonl").read_text().splitlines()]
    assert [record.version for record in records] == [1, 2, 3]
    keys = {
        (party.party_id, party.identity_public)
        for file in path.glob("roster-*.json")
        for party in Roster.from_json(file.read_text()).parties
    }
    for record in records:
        assert record.roots
        assert {(root.basket_id, root.basket_key) for root in record.roots} <= keys
        assert all(root.is_valid for root in record.roots)
