"""Who holds a ledger: one living accountant, known by name; no dead one blocks, no older copy is taken."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from scarcity_ray.errors import (
    LedgerCorrupted,
    LedgerError,
    LedgerHeld,
    LedgerMissing,
    LedgerRolledBack,
    LedgerTakenOver,
)
from scarcity_ray.privacy import DurableBudget, Ledger
from scarcity_ray.privacy.ledger import ledger as ledger_module

TOTALS = {"total_epsilon": 10.0, "total_delta": 1e-5, "gossip_share": 0.25}
OLD = Path(__file__).parent / "data" / "ledger_before_ids.sql"


def opened(path, *, now=1.0, must_exist=False, name="hospital", **more):
    return DurableBudget.open(path, name=name, must_exist=must_exist, now=now, **{**TOTALS, **more})


def release(budget, charge_id, mu=0.2):
    return budget.charge_release(charge_id, mu, now=3.0, details={})


def kinds(path):
    with closing(Ledger.read(path)) as ledger:
        ledger.verify()
        return [row.charge_id or row.kind for row in ledger.rows()]


CHILD = """
import json, os, sys
from scarcity_ray.privacy import DurableBudget
budget = DurableBudget.open(sys.argv[1], name="hospital", must_exist=False, now=1.0,
                            total_epsilon=10.0, total_delta=1e-5, gossip_share=0.25)
budget.charge_release("theirs", 0.2, now=1.0, details={})
if sys.argv[2:] == ["forked"] and os.fork() == 0:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def elsewhere(path):
    """Start a process that opens the ledger and lives until it is killed."""
    started = []

    def start(*words):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert int(child.stdout.readline()) == child.pid
        return child

    yield start
    for child in started:
        child.kill()
        child.stdin.close()
        child.wait()
        child.stdout.close()


@pytest.mark.long
def test_a_living_holder_is_superseded_on_purpose_only(path, monkeypatch, elsewhere):
    monkeypatch.setattr(ledger_module, "DYING_SECONDS", 0.2)
    child = elsewhere()
    before = kinds(path)
    with pytest.raises(LedgerHeld) as caught:
        opened(path, now=2.0)
    said = f"held by federation 'hospital', process {child.pid} on {socket.gethostname()}, since 1970-01-01"
    assert said in str(caught.value)
    assert "take_over_ledger=True, or scarcity-ray ledger take-over" in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    assert kinds(path) == before
    with closing(opened(path, now=2.0, take_over=True)) as second:
        assert release(second, "ours").allowed
        # The lock counts for the new holder now, whatever the old one still has.
        with pytest.raises(LedgerHeld, match=f"process {os.getpid()} "):
            opened(path, now=3.0)


@pytest.mark.long
def test_a_dead_holder_blocks_nobody(path, elsewhere):
    os.kill(elsewhere().pid, signal.SIGKILL)
    with closing(opened(path, now=2.0)) as budget:
        assert release(budget, "ours").allowed
        assert budget.status(0.1).incarnation == 2
    assert kinds(path) == ["genesis", "writer", "theirs", "writer", "ours"]


def test_a_child_that_a_dead_holder_forked_does_not_block(path, elsewhere):
    if isinstance(path, str):
        pytest.skip("a forked child shares its parent's connection to a database: it lives as long")
    child = elsewhere("forked")
    os.kill(child.pid, signal.SIGKILL)
    with closing(opened(path, now=2.0)) as budget:
        assert release(budget, "ours").allowed


def test_one_in_this_process_is_refused_at_once(path, monkeypatch):
    monkeypatch.setattr(ledger_module, "DYING_SECONDS", 1e9)
    with closing(opened(path)), pytest.raises(LedgerHeld):
        opened(path)
    opened(path).close()


def test_whoever_is_taken_over_charges_nothing_more(path):
    first = opened(path)
    release(first, "r0")
    with closing(opened(path, name=None, now=5.0, take_over=True)) as second:
        for _ in range(2):
            with pytest.raises(LedgerTakenOver, match="taken over at 1970-01-01 00:00:05 UTC by federation"):
                release(first, "r1")
            with pytest.raises(LedgerTakenOver):
                first.charge_gossip("g1", ["a"], 0.1, now=3.0, details={})
            with pytest.raises(LedgerTakenOver):
                first.renew(20.0, 1e-5, now=3.0, operator="ann")
        status = first.status(0.1)
        assert (status.read_only, status.taken_over) == (True, True)
        assert "taken over" in status.read_only_reason
        assert status.epsilon_spent == second.status(0.1).epsilon_spent
        assert not second.status(0.1).read_only
        # The one that was taken over cannot come back either: only its own ledger's accountant can.
        with pytest.raises(LedgerTakenOver):
            opened(path, must_exist=True, incarnation=status.incarnation)
    assert kinds(path) == ["genesis", "writer", "r0", "writer"]


@pytest.mark.long
def test_its_own_federation_takes_it_up_again_unasked(path, elsewhere):
    """As when the accountant's node was cut off and lives."""
    elsewhere()
    with closing(opened(path, must_exist=True, incarnation=1)) as budget:
        assert release(budget, "ours").allowed
        assert budget.status(0.1).incarnation == 1
    with pytest.raises(LedgerRolledBack, match="opened 2 times here, and the ledger knows of 1"):
        opened(path, must_exist=True, incarnation=2)


def test_each_opening_of_a_federation_has_a_number_of_its_own(path):
    seen = []
    for _ in range(3):
        with closing(opened(path)) as budget:
            seen.append(budget.status(0.1).incarnation)
        with closing(opened(path, must_exist=True, incarnation=seen[-1])) as budget:
            assert budget.status(0.1).incarnation == seen[-1]
    assert seen == [1, 2, 3]


def test_its_id_is_random_and_kept(tmp_path):
    ids = []
    for place in (tmp_path / "one" / "ledger.sqlite", tmp_path / "two" / "ledger.sqlite"):
        place.parent.mkdir()
        for _ in range(2):
            with closing(opened(place, name=None)) as budget:
                ids.append(budget.status(0.1).federation_id)
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_another_name_is_refused_before_anything_is_written(path):
    opened(path).close()
    before = kinds(path)
    with pytest.raises((LedgerError, ValueError), match=r"'hospital'.*'bank'"):
        opened(path, name="bank")
    assert kinds(path) == before


def test_a_ledger_from_before_there_were_ids_goes_on_under_a_random_one(tmp_path):
    path = tmp_path / "renamed.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(OLD.read_text())
    with closing(Ledger.read(path)) as reader:
        assert (reader.federation_id, reader.standing.incarnation) == ("ledger", 0)
    with pytest.raises(LedgerError, match="of federation 'ledger', not 'hospital'"):
        opened(path)
    ids = set()
    for number in (1, 2):
        with closing(opened(path, name=None, total_epsilon=12.0)) as budget:
            status = budget.status(0.1)
            assert (status.incarnation, status.period) == (number, 1)
            assert status.run > number
            assert status.epsilon_spent == pytest.approx(1.131774896643168, rel=1e-9)
            assert status.lifetime_epsilon == pytest.approx(1.4441601165970244, rel=1e-9)
            ids.add(status.federation_id)
            assert release(budget, f"new{number}", 1e-6).allowed
        with closing(Ledger.read(path)) as reader:
            ids.add(reader.federation_id)
    assert len(ids) == 1
    assert re.fullmatch("[0-9a-f]{32}", ids.pop())


def test_each_opening_of_a_federation_has_a_random_run(place, path):
    """A count would be the same again once the rows of an opening are gone."""
    opened(path).close()
    seen = []
    for _ in range(3):
        with closing(opened(path, must_exist=True)) as budget:
            status = budget.status(0.1)
            assert (status.incarnation, 0 < status.run < 2**63) == (2, True)
            seen.append(status.run)
        with closing(opened(path, must_exist=True, incarnation=2)) as budget:
            assert budget.status(0.1).run == status.run
        place.tamper("DELETE FROM ledger WHERE seq >= 2")
    assert len(set(seen)) == 3


def test_the_operators_key_is_kept(path):
    ann, bob = "aa" * 32, "bb" * 32
    opened(path).close()
    opened(path, operator_key=ann).close()
    before = kinds(path)
    for other, said in ((None, "has no operator_key"), (bob, f"has operator_key '{bob}'")):
        for more in ({}, {"take_over": True}):
            with pytest.raises(LedgerError, match=f"{said}; configure operator_key = '{ann}'"):
                opened(path, operator_key=other, **more)
    assert kinds(path) == before
    with closing(opened(path, operator_key=ann)) as budget:
        assert release(budget, "r0").allowed
        with pytest.raises(LedgerError, match="configure operator_key"):
            opened(path, take_over=True)
        assert release(budget, "r1").allowed
    # An operator at a terminal has no configuration; what the ledger keeps stays.
    Ledger.open(path, now=2.0, take_over=True, operator="ann").close()
    with pytest.raises(LedgerError, match="configure operator_key"):
        opened(path)


def test_the_operators_key_is_kept_from_the_beginning(path):
    opened(path, operator_key="aa" * 32).close()
    with pytest.raises(LedgerError, match="configure operator_key"):
        opened(path)


def test_a_forked_child_writes_nothing(path):
    with closing(opened(path)) as budget:
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                release(budget, "theirs")
                said = "charged"
            except BaseException as error:
                said = f"{type(error).__name__} {error}"
            os.write(tell, said.encode())
            os._exit(0)
        os.close(tell)
        os.waitpid(child, 0)
        with os.fdopen(told) as answer:
            said = answer.read()
        assert said.startswith("LedgerError ")
        assert f"process {os.getpid()} opened the ledger" in said
        assert release(budget, "ours").allowed
    assert kinds(path) == ["genesis", "writer", "ours"]


# An older copy, or none, under an accountant that lives, and after it.


def test_an_older_copy_is_never_continued(place, path):
    with closing(opened(path)) as budget:
        release(budget, "r0")
        kept = budget.head_hash
        release(budget, "r1")
        newest = budget.head_hash
    place.tamper("DELETE FROM ledger WHERE seq >= 3")
    before = kinds(path)
    with pytest.raises(LedgerRolledBack, match=f"no row has the hash {newest}, which basket:3 knows") as told:
        opened(path, must_exist=True, incarnation=1, known_heads={kept: "the driver", newest: "basket:3"})
    assert "an older one would grant again what is spent" in str(told.value)
    assert pickle.loads(pickle.dumps(told.value)).args == told.value.args
    assert kinds(path) == before
    opened(path, must_exist=True, incarnation=1, known_heads={kept: "the driver"}).close()


def test_rows_that_vanish_under_a_living_accountant_are_missed(place, path):
    with closing(opened(path)) as budget:
        release(budget, "r0")
        release(budget, "r1")
        place.tamper("DELETE FROM ledger WHERE seq >= 3")
        for _ in range(2):
            with pytest.raises(LedgerRolledBack, match="ends at row 2 with another hash"):
                release(budget, "r2")


def copied(path, to):
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def unlinked(path, _):
    path.unlink()


def with_its_wal_unlinked(path, _):
    path.with_name(f"{path.name}-wal").unlink()


def moved(path, _):
    path.rename(path.with_name("elsewhere.sqlite"))


def replaced_by_an_older_copy(path, older):
    shutil.copy(older, path.with_name("put"))
    path.with_name("put").replace(path)


def replaced_by_itself(path, _):
    """The same rows in another file: whoever wrote there would be alone with it."""
    copied(path, path.with_name("same"))
    path.with_name("same").replace(path)


def overwritten_by_an_older_copy(path, older):
    shutil.copy(older, path)


def cut(path, _):
    os.truncate(path, 4096)


def emptied(path, _):
    os.truncate(path, 0)


def with_its_wal_cut(path, _):
    os.truncate(path.with_name(f"{path.name}-wal"), 4096)


FAULTS = [
    unlinked,
    with_its_wal_unlinked,
    moved,
    replaced_by_an_older_copy,
    replaced_by_itself,
    overwritten_by_an_older_copy,
    cut,
    emptied,
    with_its_wal_cut,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("carried_over", [False, True])
def test_a_file_that_is_gone_replaced_or_cut_is_not_written_to(tmp_path, fault, carried_over):
    """With the newest rows in the -wal file alone, and after most were carried over into the file."""
    if fault is overwritten_by_an_older_copy and not carried_over:
        pytest.skip("nothing is lost: the next test")
    path, older = tmp_path / "ledger.sqlite", tmp_path / "older"
    with closing(opened(path, total_epsilon=1e4)) as budget:
        release(budget, "early", 1e-6)
        copied(path, older)
        for k in range(30):
            release(budget, f"r{k}", 1e-6)
        if carried_over:
            with closing(sqlite3.connect(path)) as shell:
                shell.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            release(budget, "newest", 1e-6)
        fault(path, older)
        for _ in range(2):
            with pytest.raises((LedgerMissing, LedgerCorrupted)) as caught:
                release(budget, "late", 1e-6)
            assert "an older one would grant again what is spent" in str(caught.value)
        with pytest.raises((LedgerMissing, LedgerCorrupted)):
            budget.status(0.1)


def test_an_older_copy_under_a_wal_that_has_every_row_loses_none(tmp_path):
    path, older = tmp_path / "ledger.sqlite", tmp_path / "older"
    with closing(opened(path)) as budget:
        copied(path, older)
        for k in range(3):
            release(budget, f"r{k}")
        overwritten_by_an_older_copy(path, older)
        assert release(budget, "late").allowed
        assert kinds(path) == ["genesis", "writer", "r0", "r1", "r2", "late"]


def test_a_file_that_goes_while_a_charge_commits_allows_nothing(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    with closing(opened(path)) as budget:
        store = budget._ledger._store
        commit = store._in_place

        def gone():
            path.rename(tmp_path / "elsewhere")
            return commit()

        monkeypatch.setattr(store, "_look", lambda: None)
        monkeypatch.setattr(store, "_in_place", gone)
        with pytest.raises(LedgerMissing, match="removed under its accountant"):
            release(budget, "r0")


def test_looking_at_a_ledger_disturbs_no_accountant(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with closing(opened(path)) as budget:
        for k in range(3):
            assert release(budget, f"r{k}").allowed
            assert kinds(path)[-1] == f"r{k}"
            with closing(sqlite3.connect(path)) as shell:
                shell.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            with closing(Ledger.read(path)) as reader:
                assert reader.is_held()
        copied(path, tmp_path / "backup.sqlite")
        assert release(budget, "last").allowed
    with closing(Ledger.read(path)) as reader:
        assert reader.is_held() is False
