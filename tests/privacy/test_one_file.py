"""A ledger's file is one file, whatever names lead to it, and its lock is where its name says."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from scarcity_ray.errors import LedgerError, LedgerHeld, LedgerMissing, LedgerRolledBack
from scarcity_ray.privacy import DurableBudget, Ledger
from scarcity_ray.privacy.ledger.file_access import FileLock


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder / "ledger.sqlite"


def by_link(path):
    link = path.parent.parent / "current.sqlite"
    link.symlink_to(path)
    return link


def by_link_to_link(path):
    link = path.with_name("newest.sqlite")
    link.symlink_to(by_link(path))
    return link


def by_linked_folder(path):
    folder = path.parent.parent / "budgets"
    folder.symlink_to(path.parent)
    return folder / path.name


LINKS = [by_link, by_link_to_link, by_linked_folder]


def opened(path, **more):
    totals = {"total_epsilon": 10.0, "total_delta": 1e-5, "gossip_share": 0.0}
    return DurableBudget.open(path, must_exist=False, now=1.0, **totals, **more)


def release(budget, charge_id):
    return budget.charge_release(charge_id, 0.1, now=2.0, details={})


@pytest.mark.parametrize("linked", LINKS)
def test_a_file_is_known_by_one_name(linked, path):
    with closing(opened(path)) as first:
        link = linked(path)
        with pytest.raises(LedgerHeld):
            opened(link)
        with closing(Ledger.read(link)) as reader:
            assert reader.is_held()
        assert release(first, "r0").allowed
    with closing(opened(link)) as second:
        assert second.status(0.1).ledger_path == str(path)
        with pytest.raises(LedgerHeld):
            opened(path)
    with closing(Ledger.read(link)) as reader:
        assert reader.is_held() is False


def test_a_link_to_a_file_that_is_yet_to_be_made_is_followed(path):
    link = by_link(path)
    with closing(opened(link)), pytest.raises(LedgerHeld):
        opened(path)
    assert link.is_symlink()


def test_links_in_a_circle_are_told(path):
    path.symlink_to(path)
    with pytest.raises(LedgerError, match="cannot be looked for"):
        opened(path)


@pytest.mark.parametrize("linked", LINKS)
@pytest.mark.parametrize("fault", ["removed", "cut"])
def test_a_wal_file_is_missed_whatever_name_led_to_it(linked, fault, path):
    opened(path).close()
    with closing(opened(linked(path))) as budget:
        assert release(budget, "r0").allowed
        wal = path.with_name(f"{path.name}-wal")
        wal.unlink() if fault == "removed" else os.truncate(wal, 0)
        with pytest.raises((LedgerMissing, LedgerRolledBack)):
            release(budget, "r1")


def test_a_file_with_a_second_name_is_refused(path):
    opened(path).close()
    other = path.with_name("other.sqlite")
    os.link(path, other)
    for name in (path, other):
        for look in (opened, Ledger.read):
            with pytest.raises(LedgerError, match=r"has 2 names \(hard links\).*remove all but one"):
                look(name)
    other.unlink()
    opened(path).close()


def test_a_draft_that_its_dead_maker_left_is_no_second_name(path):
    opened(path).close()
    draft = path.with_name(f"{path.name}.0123456789ab.new")
    os.link(path, draft)
    opened(path).close()
    assert not draft.exists()


def test_a_lock_that_lost_its_name_is_taken_again_or_nothing_is_written(path):
    lock = path.with_name(f"{path.name}.lock")
    with closing(opened(path)) as budget:
        lock.unlink()
        assert release(budget, "r0").allowed
        with pytest.raises(LedgerHeld):
            opened(path)
        lock.unlink()
        other = FileLock(lock)
        assert other.take(forced=False)
        for _ in range(2):
            with pytest.raises(LedgerError, match=r"lock file .* removed .* another process has it"):
                release(budget, "r1")
        other.release()
        assert release(budget, "r1").allowed
    with closing(Ledger.read(path)) as reader:
        assert [row.charge_id for row in reader.rows()][2:] == ["r0", "r1"]
