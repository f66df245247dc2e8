"""The journal's file: torn writes, foreign files, full disks, who may open it, and where."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from scarcity_ray.errors import StorageError
from scarcity_ray.storage import journal as module
from scarcity_ray.storage.journal import LONG_PAGE_BYTES, LONG_ROW_BYTES, PAGE_BYTES, Journal, JournalPlace
from scarcity_ray.storage.local_disk import make_own_folder, network_file_system

ROWS = os.urandom(50_000)


def opened(
    folder: Path, *, run: int = 1, continues: tuple[int, ...] = (), slot: int = 0, row_bytes: int = 0
) -> Journal:
    place = JournalPlace(str(folder / "journal"), continues=continues, row_bytes=row_bytes)
    return Journal(place, "fed", slot, run)


@pytest.fixture(params=[0, LONG_ROW_BYTES], ids=["short rows", "long rows"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journal]:
    """Other openings find its pages, and have their own mode."""
    made = opened(tmp_path, row_bytes=request.param)
    page = int.from_bytes(made.path.read_bytes()[16:18], "big")
    assert page == (1 if request.param else PAGE_BYTES)  # 1 stands for 65,536
    yield made
    made.close()


def read(folder: Path) -> list[str]:
    journal = opened(folder)
    try:
        return texts(journal)
    finally:
        journal.close()


def append(journal: Journal, text: str, rows: bytes | None = ROWS, round_id: int = 0) -> None:
    with journal.writing():
        journal.append("b", round_id, text.encode(), rows)
        journal.put("b", "count", "", text.encode())


def texts(journal: Journal) -> list[str]:
    return [batch.columns.decode() for batch in journal.batches("b")]


def copied(journal: Journal, folder: Path, files: dict[str, bytes]) -> Path:
    """Another journal folder with these files, each by what its name ends with."""
    place = folder / "journal" / "fed"
    place.mkdir(parents=True)
    for private in (place, place.parent):
        private.chmod(0o700)
    for end, content in files.items():
        (place / f"{journal.path.name}{end}").write_bytes(content)
    return folder


def test_a_write_that_was_torn_is_not_there_and_those_before_are(tmp_path: Path) -> None:
    """The log is cut at all kinds of places, as a machine that loses power may leave it."""
    journal = opened(tmp_path)
    for number in range(4):
        append(journal, str(number))
    log = Path(f"{journal.path}-wal").read_bytes()
    whole = journal.path.read_bytes()
    lengths = set()
    for cut in range(0, len(log) + 1, len(log) // 23):
        copy = copied(journal, tmp_path / "copy" / str(cut), {"": whole, "-wal": log[:cut]})
        found = opened(copy)
        there = texts(found)
        assert there == [str(number) for number in range(len(there))]
        assert found.records("b", "count").get("", b"").decode() == (there[-1] if there else "")
        lengths.add(len(there))
        found.close()
        shutil.rmtree(copy)
    journal.close()
    assert lengths >= {0, 1, 2, 3}


def test_power_that_fails_in_a_transaction_of_long_rows_leaves_those_before(tmp_path: Path) -> None:
    """Pages that were there are in SQLite's log by then; of new ones any may be on the disk."""
    journal, long = opened(tmp_path, row_bytes=LONG_ROW_BYTES), os.urandom(300_000)
    for number in range(4):
        append(journal, str(number), long)
    with journal.writing():
        journal.consume("b")  # what they leave free is written to in place
    append(journal, "4", long)
    before, log = journal.path.read_bytes(), Path(f"{journal.path}-journal")
    with journal.writing():
        for number in range(5, 60):
            journal.append("b", 0, str(number).encode(), long)
        journal.put("b", "count", "", b"59")
        within, logged = journal.path.read_bytes(), log.read_bytes()
    assert len(within) > len(before), "more than the cache holds"
    assert texts(journal) == [str(number) for number in range(60)]
    journal.close()
    torn = bytearray(within)
    for page in range(len(before), len(within), 3 * LONG_PAGE_BYTES):
        torn[page : page + LONG_PAGE_BYTES] = bytes(LONG_PAGE_BYTES)
    left = {"whole": within, "torn": bytes(torn), "short": within[: len(before) + 5 * LONG_PAGE_BYTES]}
    for name, content in left.items():
        for row_bytes in (0, LONG_ROW_BYTES):
            copy = copied(journal, tmp_path / f"{name}-{row_bytes}", {"": content, "-journal": logged})
            found = opened(copy, row_bytes=row_bytes)
            assert texts(found) == [str(number) for number in range(5)]
            assert [batch.rows for batch in found.batches("b")] == [None] * 4 + [long]
            assert found.records("b", "count")[""] == b"4"
            found.close()


@pytest.mark.parametrize("modes", [(0, LONG_ROW_BYTES), (LONG_ROW_BYTES, 0)])
def test_a_journal_goes_on_in_either_mode(modes: tuple[int, int], tmp_path: Path) -> None:
    for number, row_bytes in enumerate((*modes, modes[0])):
        journal = opened(tmp_path, row_bytes=row_bytes)
        append(journal, str(number))
        assert texts(journal) == [str(n) for n in range(number + 1)]
        assert Path(f"{journal.path}-wal").exists() is (row_bytes == 0)
        journal.close()


def test_a_file_that_is_torn_foreign_or_newer_is_refused_by_name(journal: Journal, tmp_path: Path) -> None:
    append(journal, "0")
    journal.close()
    good = journal.path.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(StorageError, match=match) as told:
            read(tmp_path)
        assert str(journal.path) in str(told.value)

    def change(statement: str) -> None:
        journal.path.write_bytes(good)
        connection = sqlite3.connect(journal.path, isolation_level=None)
        connection.execute(statement)
        connection.close()

    journal.path.write_bytes(b"no database at all" * 1000)
    refused("this is no journal of scarcity_ray")
    journal.path.write_bytes(good[:10_000])
    refused("torn")
    change("DROP TABLE about")
    refused("this is no journal of scarcity_ray")
    change("UPDATE about SET kind = 'ledger'")
    refused("this is no scarcity_ray journal")
    change("UPDATE about SET version = 3")
    refused("of version 3, and this release reads 1 to 2")
    change("UPDATE about SET version = 2")
    refused("the journal is encrypted; set journal_key_path to its key")
    change("UPDATE about SET federation = 'other'")
    refused("of federation 'other'")
    change("UPDATE batches SET columns = x'00'")
    refused("a checksum differs")
    change("DELETE FROM about")
    refused("does not say what it is")


def test_one_living_process_writes(journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.05)
    with pytest.raises(StorageError, match="a living process has it open"):
        opened(tmp_path)
    append(journal, "0")
    journal.close()
    again = opened(tmp_path)
    assert texts(again) == ["0"]
    again.close()


def test_a_transaction_that_fails_leaves_nothing(journal: Journal) -> None:
    """The file may not grow beyond a limit of the process's: as on a full disk, writes fail."""
    append(journal, "0")
    size = max(os.path.getsize(path) for path in journal.path.parent.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 600_000, before[1]))
        append(journal, "1", ROWS[:1000])
        with pytest.raises(StorageError, match="make room on the disk"):
            append(journal, "2", ROWS * 40)
        append(journal, "3", ROWS[:1000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert texts(journal) == ["0", "1", "3"]


def test_what_another_run_left_is_moved_aside_not_read(journal: Journal, tmp_path: Path) -> None:
    append(journal, "0")
    journal.close()
    going_on = opened(tmp_path, run=2, continues=(1,))
    assert texts(going_on) == ["0"]
    assert going_on.set_aside == ""
    going_on.close()
    anew = opened(tmp_path, run=3)
    assert texts(anew) == []
    assert anew.set_aside == str(journal.path.with_name("basket-0.run-2.sqlite"))
    with sqlite3.connect(anew.set_aside) as connection:
        assert connection.execute("SELECT count(*) FROM batches").fetchone() == (1,)
    connection.close()
    anew.close()


def test_what_may_be_lost_is_known_until_it_was_told(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.close()
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(module, "BOOT_ID", boot)

    def life(run: int = 1, *, syncs: bool = False, tell: bool = False) -> tuple[bool, bool, str]:
        place = JournalPlace(str(tmp_path / "journal"), syncs_updates=syncs)
        with closing(Journal(place, "fed", 0, run)) as found:
            if tell:
                found.told()
            return found.is_new, found.may_lack, Path(found.set_aside).name

    assert life() == life(tell=True) == (True, False, "")
    boot.write_text("first\n")
    assert life() == life(tell=True) == life() == (False, False, "")
    boot.write_text("second\n")
    assert life() == life(syncs=True, tell=True) == (False, True, "")
    boot.write_text("third\n")
    assert life(tell=True) == (False, False, ""), "each update was synced before"
    boot.unlink()
    assert life() == (False, True, ""), "nobody can tell"
    assert life(2) == life(2, tell=True) == (True, False, "basket-0.run-1.sqlite")
    assert life(2) == (False, False, "")


MOUNTS = """\
/dev/vda / ext4 rw 0 0
server:/export /srv/with\\040space nfs4 rw 0 0
sshfs@host: /srv/fuse fuse.sshfs rw 0 0
/dev/vdb /srv/with\\040space/local xfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv/with space/x", "nfs4"),
        ("/srv/with space", "nfs4"),
        ("/srv/with spaces", None),
        ("/srv/fuse/a/b", "fuse.sshfs"),
        ("/srv/with space/local/x", None),
        ("/home/x", None),
    ],
)
def test_a_network_file_system_is_refused_by_its_name(
    path: str, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert network_file_system(Path(path), MOUNTS) == kind
    if kind is not None:
        monkeypatch.setattr("scarcity_ray.storage.local_disk.network_file_system", lambda _: kind)
        with pytest.raises(StorageError, match=rf"{path}: the journal .* is {kind}.*journal_path"):
            make_own_folder(Path(path), "the journal", "journal_path")


def test_a_folder_of_its_own_is_this_users_alone(tmp_path: Path) -> None:
    own = tmp_path / "own"
    make_own_folder(own, "the journal", "journal_path")
    assert own.stat().st_mode & 0o777 == 0o700
    own.chmod(0o750)
    with pytest.raises(StorageError, match=r"others have access .*mode 0750"):
        make_own_folder(own, "the journal", "journal_path")
    own.chmod(0o700)
    tmp_path.chmod(0o777)
    with pytest.raises(StorageError, match=r"anybody may rename .*mode 0777.*journal_path"):
        make_own_folder(own, "the journal", "journal_path")
    tmp_path.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(StorageError, match="a link or a file"):
        make_own_folder(link, "the journal", "journal_path")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot be made"):
        make_own_folder(tmp_path / "file", "the journal", "journal_path")
