"""The ledger in a file: what a file can be, and who can read it."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing
from scarcity_ray.privacy import DurableBudget, Ledger
from scarcity_ray.privacy.ledger.events import Genesis, ReleaseCharge


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


GENESIS = Genesis(format=1, total_epsilon=10.0, total_delta=1e-5, gossip_share=0.0, name="hospital")
RELEASE = ReleaseCharge(0.1, 0.5, {})


def filled(path, rows=6):
    ledger = Ledger.create(path, GENESIS, now=1.0)
    for k in range(rows):
        ledger.append(ReleaseCharge(0.1 * k, 0.5, {}), charge_id=f"r{k}", now=2.0 + k)
    return ledger


def test_a_fork_is_found_against_a_head_hash(path, tmp_path):
    ledger = filled(path)
    with sqlite3.connect(tmp_path / "copy.sqlite") as copy:
        sqlite3.connect(path).backup(copy)
    ledger.append(RELEASE, charge_id="mine", now=5.0)
    head = ledger.head_hash
    fork = Ledger.open(tmp_path / "copy.sqlite", now=6.0)
    fork.append(RELEASE, charge_id="theirs", now=7.0)
    fork.verify()
    with pytest.raises(LedgerCorrupted, match="cut, rolled back or replaced"):
        fork.verify(head)


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 300, bytes(8192)])
def test_a_file_that_is_no_ledger_is_corrupted(path, content):
    path.write_bytes(content)
    with pytest.raises(LedgerCorrupted, match="an older one would grant again"):
        Ledger.open(path, now=1.0)


def test_a_torn_file_is_never_taken_for_a_shorter_one(path):
    ledger = filled(path, rows=200)
    head = ledger.head_hash
    ledger.close()
    whole = path.read_bytes()
    for size in range(0, len(whole), 4096):
        path.write_bytes(whole[:size])
        with pytest.raises(LedgerError):
            Ledger.read(path).verify(head)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LedgerError, match="could not be made"):
        Ledger.create(tmp_path / "no" / "ledger.sqlite", GENESIS, now=1.0)


def test_what_cannot_be_seen_is_not_taken_for_absent(tmp_path, monkeypatch):
    def denied(self, **_):
        raise PermissionError(13, "Permission denied")

    opened = {
        "name": "h",
        "total_epsilon": 1.0,
        "total_delta": 1e-5,
        "gossip_share": 0.0,
        "now": 1.0,
    }
    for path, said in ((tmp_path, "this is a folder"), (tmp_path / ("x" * 300), "File name too long")):
        for must_exist in (True, False):
            with pytest.raises(LedgerError, match=said):
                DurableBudget.open(path, must_exist=must_exist, **opened)
        with pytest.raises(LedgerError, match=said):
            Ledger.read(path)
    monkeypatch.setattr(Path, "stat", denied)
    with pytest.raises(LedgerError, match="right to search its folder") as caught:
        DurableBudget.open(tmp_path / "ledger.sqlite", must_exist=False, **opened)
    assert not isinstance(caught.value, LedgerMissing)


def test_only_the_owner_can_read_the_file(path):
    filled(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_draft_is_never_left_behind(path):
    filled(path)
    with pytest.raises(LedgerError, match="there already"):
        Ledger.create(path, GENESIS, now=1.0)
    assert [p.name for p in path.parent.glob("*.new*")] == []
