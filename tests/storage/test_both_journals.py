"""What a journal promises, be it a SQLite file or rows in PostgreSQL; and how the rows are fenced."""

from __future__ import annotations

import os
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, LiteralString

import pytest

from scarcity_ray.errors import StorageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.storage.journal import LONG_ROW_BYTES, Journal, JournalPlace, open_journal

ROWS = os.urandom(50_000)
Open = Callable[..., Any]


@pytest.fixture(params=["sqlite", "sqlite, long rows", "postgresql"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def where(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if kind != "postgresql":
        return str(tmp_path / "journal")
    return LedgerUrl(request.getfixturevalue("postgres_url"))


@pytest.fixture
def opened(kind: str, where: str) -> Iterator[Open]:
    made: list[Any] = []
    row_bytes = LONG_ROW_BYTES if kind == "sqlite, long rows" else 0

    def opened(*, run: int = 1, continues: tuple[int, ...] = (), slot: int = 0, epoch: int = 1) -> Any:
        place = JournalPlace(where, continues=continues, epoch=epoch, row_bytes=row_bytes)
        made.append(open_journal(place, "fed", slot, run))
        return made[-1]

    yield opened
    for journal in made:
        journal.close()


def append(journal: Any, text: str, rows: bytes | None = ROWS, round_id: int = 0, basket: str = "b") -> None:
    with journal.writing():
        journal.append(basket, round_id, text.encode(), rows)
        journal.put(basket, "count", "", text.encode())


def texts(journal: Any) -> list[str]:
    return [batch.columns.decode() for batch in journal.batches("b")]


def test_what_was_committed_is_there_after_a_kill_at_any_moment(opened: Open) -> None:
    """A child writes without end and says so after each commit; it is killed at what is a random moment."""
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            journal = opened()
            for number in range(1_000_000):
                append(journal, str(number))
                os.write(its, b".")
        finally:
            os._exit(1)
    os.close(its)
    said = 0
    while said < 20:
        heard = os.read(mine, 20 - said)
        assert heard, "the child has failed"
        said += len(heard)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := len(os.read(mine, 1000)):
        said += more
    os.close(mine)
    journal = opened()
    there = [(batch.columns, batch.rows) for batch in journal.batches("b")]
    assert there == [(str(number).encode(), ROWS) for number in range(len(there))]
    assert len(there) in (said, said + 1)
    assert journal.records("b", "count")[""] == there[-1][0], "a transaction is there as a whole"


def test_what_is_written_is_read_again(opened: Open) -> None:
    journal = opened()
    assert journal.is_new
    journal.told()
    with journal.writing(sync=False):
        journal.append("b\0é", 3, b"\0columns", None)
        for name, value in (("x\0", b"\0\xff"), ("", b""), ("x", b"1"), ("x", b"2")):
            journal.put("b", "kind", name, value)
        journal.put("", "kind", "gone", b"1")
        journal.put("", "kind", "gone", None)
        journal.put("", "other", "gone", b"1")
        journal.forget_kind("", "other")
    for _ in range(2):
        assert journal.baskets() == ("b", "b\0é")
        assert journal.records("b", "kind") == {"": b"", "x": b"2", "x\0": b"\0\xff"}
        assert [(b.number, b.columns, b.rows) for b in journal.batches("b\0é")] == [(1, b"\0columns", None)]
        journal.close()
        journal = opened()
        assert not journal.is_new


def test_a_transaction_that_fails_leaves_nothing(opened: Open) -> None:
    journal = opened()
    append(journal, "0")
    with pytest.raises(StorageError), journal.writing():  # noqa: PT012
        journal.append("b", 0, b"x", None)
        journal.append("b", "no round", b"x", None)
    append(journal, "1")
    assert texts(journal) == ["0", "1"]


def test_numbers_are_never_used_again(opened: Open) -> None:
    journal = opened()
    append(journal, "0")
    with journal.writing():
        journal.consume("b")
        journal.forget_before(1)
    append(journal, "1")
    assert [batch.number for batch in journal.batches("b")] == [2]
    with journal.writing():
        journal.forget_basket("b")
    journal.close()
    again = opened()
    assert again.last_number() == 2


def test_consumed_rows_are_gone_and_their_columns_stay_until_their_round_is_forgotten(opened: Open) -> None:
    journal = opened()
    append(journal, "other", round_id=3, basket="other")
    append(journal, "0", round_id=3)
    with journal.writing():
        journal.consume("b")
    append(journal, "1", round_id=3)
    assert [batch.rows for batch in journal.batches("b")] == [None, ROWS]
    assert [batch.rows for batch in journal.batches("other")] == [ROWS]
    with journal.writing():
        journal.forget_before(4)
    assert texts(journal) == ["1"], "what waits is never forgotten"
    with journal.writing():
        journal.forget_basket("b")
    assert journal.baskets() == ("other",)


def test_what_another_run_left_is_set_aside_not_read(opened: Open) -> None:
    append(journal := opened(), "0")
    journal.close()
    with closing(opened(run=2, continues=(1,))) as going_on:
        assert texts(going_on) == ["0"]
        assert going_on.set_aside == ""
    with closing(opened(run=3)) as anew:
        assert (texts(anew), anew.is_new) == ([], True)
        assert anew.set_aside is not None
        append(anew, "1")
    assert texts(opened(run=3)) == ["1"]


# In PostgreSQL alone, where no lock of a disk keeps a second writer out.


@pytest.fixture
def url(postgres_url: str) -> LedgerUrl:
    return LedgerUrl(postgres_url)


def held(url: str, *, run: int = 1, epoch: int = 1, continues: tuple[int, ...] = ()) -> Any:
    return open_journal(JournalPlace(url, continues=continues, epoch=epoch), "fed", 0, run)


def test_an_older_epoch_and_a_holder_that_was_replaced_write_nothing(url: LedgerUrl) -> None:
    """A zombie: cut off, replaced by the same opening or by a later one, and back."""
    with closing(held(url)) as zombie:
        append(zombie, "0")
        with closing(held(url)) as successor:
            with pytest.raises(
                StorageError, match="another basket actor holds the journal of basket actor 0"
            ):
                append(zombie, "late")
            append(successor, "1")
        with closing(held(url, run=2, epoch=2, continues=(1,))) as later:
            for late in (zombie, successor):
                with pytest.raises(StorageError, match="another basket actor holds"):
                    append(late, "late")
            with pytest.raises(StorageError, match="opening 2 of the federation, and this is 1"):
                held(url, run=1, epoch=1)
            append(later, "2")
            with closing(held(url, run=3, epoch=3)) as stranger:
                with pytest.raises(StorageError, match="another basket actor holds"):
                    append(later, "late")
                append(stranger, "else")
            assert texts(later) == ["0", "1", "2"], "and what was set aside stays"


def test_a_commit_whose_answer_was_lost_is_found_out(url: LedgerUrl, monkeypatch: Any) -> None:
    import psycopg

    with closing(held(url)) as journal:
        commit, end = journal._server.commit, journal._server.close

        def cut(*, before: bool) -> None:
            if not before:
                commit()
            end()
            raise psycopg.OperationalError("the connection is lost")

        append(journal, "0")
        monkeypatch.setattr(journal._server, "commit", lambda: cut(before=False))
        append(journal, "1")
        monkeypatch.setattr(journal._server, "commit", lambda: cut(before=True))
        with pytest.raises(StorageError, match="cannot be used now: the connection is lost; what was"):
            append(journal, "2")
        monkeypatch.setattr(journal._server, "commit", commit)
        assert texts(journal) == ["0", "1"]
        append(journal, "3")
        assert texts(journal) == ["0", "1", "3"]


def test_rows_that_are_torn_or_newer_are_refused_by_name(url: LedgerUrl) -> None:
    import psycopg

    with closing(held(url)) as journal, psycopg.connect(url.conninfo, autocommit=True) as admin:
        append(journal, "0")
        admin.execute("UPDATE scarcity_ray.journal_batches SET columns = 'x'")
        with pytest.raises(StorageError, match=r"torn or was changed .a checksum differs.*DELETE FROM"):
            texts(journal)
        admin.execute("UPDATE scarcity_ray.journals SET version = 3")
        with pytest.raises(StorageError, match=r"a scarcity_ray journal of version 3, .*reads 1 to 2"):
            held(url)
        admin.execute("DELETE FROM scarcity_ray.journals")
        assert admin.execute("SELECT count(*) FROM scarcity_ray.journal_batches").fetchone() == (0,)
        with pytest.raises(StorageError, match="its row is gone"):
            append(journal, "1")
        admin.execute("DROP SCHEMA scarcity_ray CASCADE")
        with pytest.raises(StorageError, match="the journals are gone"):
            texts(journal)
    assert url.hidden_in(str(url)) == str(url)


@pytest.mark.parametrize("change", ["basket = 'other'", "round = 7", "number = 5"])
def test_a_batch_that_is_given_to_another_place_is_refused(url: LedgerUrl, change: LiteralString) -> None:
    import psycopg

    with closing(held(url)) as journal, psycopg.connect(url.conninfo, autocommit=True) as admin:
        append(journal, "0")
        old = [
            zlib.crc32(columns)
            for (columns,) in admin.execute("SELECT columns FROM scarcity_ray.journal_batches")
        ]
        admin.execute(f"UPDATE scarcity_ray.journal_batches SET {change}")
        basket = "other" if "other" in change else "b"
        with pytest.raises(StorageError, match="a checksum differs"):
            list(journal.batches(basket))
        admin.execute("UPDATE scarcity_ray.journal_batches SET checked = %s", old)
        assert list(journal.batches(basket)), "the first journals have the checksum of the columns alone"


def test_a_user_needs_to_own_nothing(url: LedgerUrl, postgres_server: Any) -> None:
    import psycopg

    held(url).close()
    clerk = LedgerUrl(postgres_server.url(user="scribe", password="scribes-word"))
    with psycopg.connect(url.conninfo, autocommit=True) as admin:
        admin.execute("DROP ROLE IF EXISTS scribe")
        admin.execute("CREATE ROLE scribe LOGIN PASSWORD 'scribes-word'")
        admin.execute("GRANT USAGE ON SCHEMA scarcity_ray TO scribe")
        with pytest.raises(StorageError, match="SELECT, INSERT, UPDATE and DELETE on its tables") as told:
            held(clerk)
        assert "scribes-word" not in str(told.value)
        for table in ("journals", "journal_batches", "journal_records"):
            admin.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON scarcity_ray.{table} TO scribe")
        with closing(held(clerk)) as journal:
            append(journal, "0")
        admin.execute("DROP OWNED BY scribe; DROP ROLE scribe")


def test_a_file_is_opened_where_a_folder_is_named(tmp_path: Path) -> None:
    with closing(open_journal(JournalPlace(str(tmp_path / "j")), "fed", 0, 1)) as journal:
        assert isinstance(journal, Journal)
