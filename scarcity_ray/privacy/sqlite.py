"""A ledger in a file: rows in SQLite, written so that a crash at any moment leaves a whole prefix of them."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scarcity_ray.config.arguments import shown
from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing
from scarcity_ray.privacy.chain import Row, read_back

_TABLE = """
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY,
    charge_id TEXT UNIQUE,
    record TEXT NOT NULL,
    payload BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT
"""

_ACCESS = "this user must be able to read the file and to write in its folder"
_REMEDIES = (("unable to open", _ACCESS), ("readonly", _ACCESS), ("full", "make room on the disk"))


class SqliteStore:
    """Rows in a SQLite file in WAL mode with ``synchronous=FULL``: a commit returns when it is on disk.

    Raises:
        LedgerMissing: If there is no such file.
        LedgerError: If it cannot be opened; every method raises it, or LedgerCorrupted, for SQLite's errors.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path
        if not self.exists(path):
            raise LedgerMissing(
                f"{path}: the ledger is not there, and without it nobody knows what was spent; bring the "
                "file back (from a backup, or the accountant's old node), or start another federation"
            )
        try:
            self._connection = _connect(path, mode="ro" if read_only else "rw")
        except sqlite3.Error as error:
            # Without a -wal file nobody writes and every row is in the file: it can be read where SQLite may
            # not make the files that it coordinates readers and a writer with.
            if not read_only or path.with_name(f"{path.name}-wal").exists():
                raise _told(path, error) from error
            self._connection = _immutable(path, error)

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is such a file.

        Raises:
            LedgerError: If it is a folder, or nobody can tell: what cannot be seen is not taken for absent.
        """
        try:
            kind = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise LedgerError(
                f"{shown(str(path))}: the ledger cannot be looked for ({error.strerror}); give this user the "
                "right to search its folder, or choose another path"
            ) from None
        except ValueError as error:
            raise LedgerError(f"{shown(str(path))}: no file can have this name ({error})") from None
        if stat.S_ISDIR(kind):
            raise LedgerError(f"{path}: this is a folder; name a file in it as the ledger")
        return True

    @classmethod
    def create(cls, path: Path, first: Row) -> None:
        """Make a file that holds one row, complete on disk before it has its name.

        Raises:
            LedgerError: If the file exists already or cannot be made.
        """
        draft = path.with_name(f"{path.name}.{os.urandom(6).hex()}.new")
        try:
            os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            try:
                connection = _connect(draft, mode="rw")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(_TABLE)
                _insert(connection, first)
                connection.close()
                os.link(draft, path)
            finally:
                draft.unlink()
            _sync_folder(path.parent)
        except FileExistsError:
            raise LedgerError(f"{path}: a ledger is there already; open it instead") from None
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{path}: the ledger could not be made: {error}") from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write transaction against all other writers; rolled back unless `commit` was called in it."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise _told(self.path, error) from error

    def commit(self, row: Row) -> None:
        """Insert `row` and commit; it is on disk when this returns.

        Raises:
            LedgerError: If its charge id is recorded already.
        """
        try:
            _insert(self._connection, row)
        except sqlite3.IntegrityError as error:
            raise LedgerError(f"{self.path}: charge {row.charge_id!r} is recorded already") from error
        self._connection.execute("COMMIT")

    def confirm(self) -> None:
        """Nothing: SQLite undoes a commit that it could not sync, so that no such row can be read."""

    def last(self) -> Row | None:
        """The newest row."""
        return next(iter(self._select("ORDER BY seq DESC LIMIT 1")), None)

    def find(self, charge_id: str) -> Row | None:
        """The row of a charge."""
        return next(iter(self._select("WHERE charge_id = ?", charge_id)), None)

    def page(self, since: int, limit: int) -> list[Row]:
        """At most `limit` rows from number `since` on, oldest first."""
        return self._select("WHERE seq >= ? ORDER BY seq LIMIT ?", since, limit)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _select(self, clause: str, *parameters: object) -> list[Row]:
        query = f"SELECT seq, charge_id, record, payload, hash FROM ledger {clause}"
        try:
            found = self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise _told(self.path, error) from error
        return [read_back(self.path, stored) for stored in found]


def _connect(path: Path, *, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=10.0,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def _immutable(path: Path, refusal: sqlite3.Error) -> sqlite3.Connection:
    try:
        return _connect(path, mode="ro&immutable=1")
    except sqlite3.Error:
        raise _told(path, refusal) from refusal


def _insert(connection: sqlite3.Connection, row: Row) -> None:
    values = (row.seq, row.charge_id, row.record, row.payload, bytes.fromhex(row.hash))
    connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?)", values)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _told(path: Path, error: sqlite3.Error) -> LedgerError:
    """The package's error for one of SQLite's."""
    text = str(error)
    if isinstance(error, sqlite3.OperationalError) and not text.startswith(("no such", "Could not decode")):
        remedy = next((remedy for words, remedy in _REMEDIES if words in text), "try again")
        return LedgerError(f"{path}: the ledger cannot be used now: {text}; {remedy}")
    return LedgerCorrupted(f"{path}: the file is damaged, or no ledger ({text}); bring back a backup")


__all__ = ["SqliteStore"]
