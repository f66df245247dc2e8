"""A basket actor's journal in PostgreSQL: accepted updates that outlive the node of their baskets.

The same journal as the SQLite file (`storage.journal`), as rows of a database that the URL in
``journal_path`` names. All federations and basket actors of a database share its three tables.

No lock on a disk keeps a second writer out here, so writers are fenced: whoever opens a journal becomes its
*holder*, and each transaction begins by checking, under the journal's advisory lock, that nobody opened it
since. So an actor that is cut off and replaced, or belongs to an earlier opening of the federation (an older
*epoch*), writes nothing any more, and its calls fail before they are answered.

If the connection is lost in a commit, the next one finds out whether it was done.

Guarantees:
    what_was_committed_is_there_after_a_kill_at_any_moment: And nothing of a transaction that was not.
    an_older_epoch_and_a_holder_that_was_replaced_write_nothing
    rows_that_are_torn_or_newer_are_refused_by_name
    what_another_run_left_is_set_aside_not_read: Unless this run continues that one.
    a_commit_whose_answer_was_lost_is_found_out
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg
from psycopg import errors

from scarcity_ray.errors import StorageError, UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.postgres import Contents, PostgresConnection
from scarcity_ray.storage.journal import KIND, OWN, UNTOLD, Batch, JournalPlace, checksum, is_whole

_DEFINITIONS: LiteralString = """
CREATE SCHEMA IF NOT EXISTS scarcity_ray;
CREATE TABLE scarcity_ray.journals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    version integer NOT NULL,
    federation text NOT NULL,
    slot integer NOT NULL,
    run text NOT NULL,
    epoch bigint NOT NULL,
    holder bigint NOT NULL,
    writes bigint NOT NULL,
    last bigint NOT NULL,
    is_set_aside boolean NOT NULL
);
CREATE UNIQUE INDEX journals_in_use ON scarcity_ray.journals (federation, slot) WHERE NOT is_set_aside;
CREATE TABLE scarcity_ray.journal_batches (
    journal bigint NOT NULL REFERENCES scarcity_ray.journals ON DELETE CASCADE,
    number bigint NOT NULL,
    basket bytea NOT NULL,
    round bigint NOT NULL,
    columns bytea NOT NULL,
    checked bigint NOT NULL,
    rows bytea,
    PRIMARY KEY (journal, number)
);
ALTER TABLE scarcity_ray.journal_batches ALTER COLUMN rows SET STORAGE EXTERNAL;
CREATE TABLE scarcity_ray.journal_records (
    journal bigint NOT NULL REFERENCES scarcity_ray.journals ON DELETE CASCADE,
    basket bytea NOT NULL,
    kind text NOT NULL,
    name bytea NOT NULL,
    value bytea NOT NULL,
    checked bigint NOT NULL,
    PRIMARY KEY (journal, basket, kind, name)
);
"""
_FIND: LiteralString = """
SELECT id, kind, version, run, epoch, holder, last FROM scarcity_ray.journals
    WHERE federation = %s AND slot = %s AND NOT is_set_aside
"""
_BEGIN_ONE: LiteralString = """
INSERT INTO scarcity_ray.journals
    (kind, version, federation, slot, run, epoch, holder, writes, last, is_set_aside)
    VALUES (%s, %s, %s, %s, %s, %s, 1, 0, 0, false) RETURNING id
"""
_PAGE = 64
"""Batches that are read at once."""


class PostgresJournal:
    """One basket actor's journal, for as long as it is the holder; the methods are those of `Journal`.

    Raises:
        StorageError: From every method, if the database cannot do it, or another holds the journal now.
        UsageError: If libpq does not understand the URL.

    Attributes:
        path: The URL, which shows no password.
        set_aside: Says where the rows of a run are that this one does not continue; empty if there were none.
        is_new: Whether there was nothing to go on from, and `told` was not called since.
        may_lack: False, as the server is another machine: what `durability: round` may lose with it, its
            administrator knows.
    """

    def __init__(self, place: JournalPlace, federation_id: str, slot: int, run: int) -> None:
        if not isinstance(place.where, LedgerUrl):
            raise UsageError(f"{place.where}: this is no URL of a PostgreSQL database")
        self.path = place.where
        self.set_aside = ""
        self.is_new = False
        self.may_lack = False
        self._whose = f"basket actor {slot} of federation {federation_id!r}"
        self._lock = _JOURNALS.lock(f"{federation_id}/{slot}")
        self._writes = self._id = self._holder = self._last = 0
        self._is_unsure = False
        self._server = PostgresConnection(self.path, _JOURNALS, read_only=False)
        try:
            with self._server.transaction(_JOURNALS.lock("")):
                if not self._server.has_table("journals"):
                    self._server.execute(_DEFINITIONS)
                    self._server.commit()
            with self._server.transaction(self._lock):
                self._take_up(place, federation_id, slot, run)
                self._server.commit()
            untold = self.records(OWN, UNTOLD).get("")
            self.is_new, self.set_aside = untold is not None, (untold or b"").decode()
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self, *, sync: bool = True) -> Iterator[None]:
        """One transaction, committed when the block ends and undone if it raises.

        Args:
            sync: Whether it is on the server's disk then, with all before it.
        """
        try:
            with self._server.transaction(self._lock):
                if not sync:
                    self._server.execute("SET LOCAL synchronous_commit TO off")
                self._check_holder()
                self._writes += 1
                self._server.execute(
                    "UPDATE scarcity_ray.journals SET writes = %s WHERE id = %s", [self._writes, self._id]
                )
                yield
                self._server.commit()
        except StorageError:
            self._is_unsure = self._server.is_lost
            if not (self._is_unsure and self._was_committed()):
                raise

    def append(self, basket: str, round_id: int, columns: bytes, rows: bytes | None) -> None:
        """Write a batch; see `Journal.append`."""
        self._last += 1
        checked = checksum(columns, basket, self._last, round_id)
        self._server.execute(
            "INSERT INTO scarcity_ray.journal_batches VALUES (%s, %s, %s, %s, %s, %s, %s)",
            [self._id, self._last, basket.encode(), round_id, columns, checked, rows],
        )

    def last_number(self) -> int:
        """The number of the batch that was written last, of whatever basket; 0 before the first."""
        return self._last

    def consume(self, basket: str) -> None:
        """Drop the numbers of a basket's updates, which are in an aggregate; their columns stay."""
        self._server.execute(
            "UPDATE scarcity_ray.journal_batches SET rows = NULL "
            "WHERE journal = %s AND basket = %s AND rows IS NOT NULL",
            [self._id, basket.encode()],
        )

    def forget_before(self, round_id: int) -> None:
        """Drop the columns of consumed updates of rounds before `round_id`."""
        self._server.execute(
            "DELETE FROM scarcity_ray.journal_batches WHERE journal = %s AND rows IS NULL AND round < %s",
            [self._id, round_id],
        )
        self._keep_last()

    def forget_basket(self, basket: str) -> None:
        """Drop all of a basket."""
        whose = [self._id, basket.encode()]
        self._server.execute(
            "DELETE FROM scarcity_ray.journal_batches WHERE journal = %s AND basket = %s", whose
        )
        self._server.execute(
            "DELETE FROM scarcity_ray.journal_records WHERE journal = %s AND basket = %s", whose
        )
        self._keep_last()

    def put(self, basket: str, kind: str, name: str, value: bytes | None) -> None:
        """Write a record in the place of the one with these three names; None removes it."""
        key = [self._id, basket.encode(), kind, name.encode()]
        if value is None:
            self._server.execute(
                "DELETE FROM scarcity_ray.journal_records "
                "WHERE journal = %s AND basket = %s AND kind = %s AND name = %s",
                key,
            )
        else:
            self._server.execute(
                "INSERT INTO scarcity_ray.journal_records VALUES (%s, %s, %s, %s, %s, %s) "
                "ON CONFLICT (journal, basket, kind, name) "
                "DO UPDATE SET value = excluded.value, checked = excluded.checked",
                [*key, value, checksum(value, basket, kind, name)],
            )

    def forget_kind(self, basket: str, kind: str) -> None:
        """Remove all of a basket's records of a kind."""
        self._server.execute(
            "DELETE FROM scarcity_ray.journal_records WHERE journal = %s AND basket = %s AND kind = %s",
            [self._id, basket.encode(), kind],
        )

    def told(self) -> None:
        """Note that the user was told what `set_aside` and `is_new` say."""
        if self.is_new:
            with self.writing():
                self.put(OWN, UNTOLD, "", None)

    def baskets(self) -> tuple[str, ...]:
        """The baskets of which anything is here, sorted."""
        found = self._read(
            "SELECT basket FROM scarcity_ray.journal_batches WHERE journal = %s UNION "
            "SELECT basket FROM scarcity_ray.journal_records WHERE journal = %s AND basket <> '' "
            "ORDER BY basket",
            [self._id, self._id],
        )
        return tuple(basket.decode() for (basket,) in found)

    def batches(self, basket: str) -> Iterator[Batch]:
        """A basket's batches, in the order of their writing."""
        since = 0
        while True:
            found = self._read(
                "SELECT number, round, columns, checked, rows FROM scarcity_ray.journal_batches "
                "WHERE journal = %s AND basket = %s AND number > %s ORDER BY number LIMIT %s",
                [self._id, basket.encode(), since, _PAGE],
            )
            for number, round_id, columns, checked, rows in found:
                self._check(checked, columns, basket, number, round_id)
                yield Batch(number, columns, rows)
                since = number
            if len(found) < _PAGE:
                return

    def records(self, basket: str, kind: str) -> dict[str, bytes]:
        """A basket's records of a kind, by name."""
        found = self._read(
            "SELECT name, value, checked FROM scarcity_ray.journal_records "
            "WHERE journal = %s AND basket = %s AND kind = %s ORDER BY name",
            [self._id, basket.encode(), kind],
        )
        for name, value, checked in found:
            self._check(checked, value, basket, kind, name.decode())
        return {name.decode(): value for name, value, _ in found}

    def torn(self, detail: str) -> StorageError:
        """The error for content that is not what was written."""
        return StorageError(
            f"{self.path}: the journal of {self._whose} is torn or was changed ({detail}); the accepted "
            f"updates in it cannot be used: DELETE FROM scarcity_ray.journals WHERE id = {self._id}, and the "
            "clients that hold receipts send again"
        )

    def close(self) -> None:
        """Close the connection."""
        self._server.close()

    def _take_up(self, place: JournalPlace, federation_id: str, slot: int, run: int) -> None:
        """Become the holder of the actor's journal, within a transaction; begin one if there is none."""
        found, set_aside = self._server.ask(_FIND, [federation_id, slot]), ""
        if found:
            self._id, kind, version, left, epoch, holder, self._last = found[0]
            place.check_version(f"{self.path}: the journal of {self._whose}", kind, version)
            if epoch > place.epoch:
                raise StorageError(
                    f"{self.path}: the journal of {self._whose} belongs to opening {epoch} of the "
                    f"federation, and this is {place.epoch}, which was replaced: attach to the other"
                )
            if left in [f"{known:x}" for known in (run, *place.continues)]:
                self._holder = holder + 1
                self._server.execute(
                    "UPDATE scarcity_ray.journals SET run = %s, epoch = %s, holder = %s, writes = 0 "
                    "WHERE id = %s",
                    [f"{run:x}", place.epoch, self._holder, self._id],
                )
                newest = (
                    "SELECT coalesce(max(number), 0) FROM scarcity_ray.journal_batches WHERE journal = %s"
                )
                self._last = max(self._last, self._server.ask(newest, [self._id])[0][0])
                return
            set_aside = f"journal {self._id} in {self.path}"
            self._server.execute(
                "UPDATE scarcity_ray.journals SET is_set_aside = true, holder = %s WHERE id = %s",
                [holder + 1, self._id],
            )
        about = [KIND, place.version, federation_id, slot, f"{run:x}", place.epoch]
        self._id, self._holder, self._last = self._server.ask(_BEGIN_ONE, about)[0][0], 1, 0
        self.put(OWN, UNTOLD, "", set_aside.encode())

    def _check_holder(self) -> None:
        found = self._server.ask(
            "SELECT holder, is_set_aside FROM scarcity_ray.journals WHERE id = %s", [self._id]
        )
        if found != [(self._holder, False)]:
            raise StorageError(
                f"{self.path}: another basket actor holds the journal of {self._whose} now"
                + ("" if found else " (its row is gone)")
                + "; this one was replaced, and what it was sent is to be sent to the other"
            )

    def _was_committed(self) -> bool:
        """Whether the last transaction was, whose answer was lost with the connection."""
        said = self._read("SELECT holder, writes FROM scarcity_ray.journals WHERE id = %s", [self._id])
        return said == [(self._holder, self._writes)]

    def _read(self, query: LiteralString, parameters: Sequence[object]) -> list[Any]:
        """A query's rows, as they are once no lost transaction of this holder's can be committed any more."""
        if self._is_unsure:
            with self._server.transaction(self._lock):
                self._is_unsure = False
        return self._server.ask(query, parameters)

    def _keep_last(self) -> None:
        self._server.execute(
            "UPDATE scarcity_ray.journals SET last = %s WHERE id = %s", [self._last, self._id]
        )

    def _check(self, checked: int, value: bytes, *key: str | int) -> None:
        if not is_whole(checked, value, *key):
            raise self.torn("a checksum differs")


def _explain(url: LedgerUrl, error: psycopg.Error, text: str) -> StorageError:
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
        return StorageError(f"{url}: the journals are gone ({text}); restore the database from its backup")
    if isinstance(error, errors.InsufficientPrivilege):
        return StorageError(
            f"{url}: the journal cannot be used: {text}; grant this user USAGE on schema scarcity_ray, and "
            "SELECT, INSERT, UPDATE and DELETE on its tables journals, journal_batches and journal_records; "
            "for the first one, CREATE on the database"
        )
    if isinstance(error, errors.DiskFull | errors.OutOfMemory):
        return StorageError(f"{url}: make room on the server ({text}); what was acknowledged is kept")
    return StorageError(
        f"{url}: the journal cannot be used now: {text}; what was acknowledged is kept; try again once the "
        "server answers"
    )


_JOURNALS = Contents("journals", ("journals", "journal_batches", "journal_records"), StorageError, _explain)
