"""A ledger in a file: rows in SQLite, written so that a crash at any moment leaves a whole prefix of them.

A SQLite connection goes on working when its file was removed or replaced, and on cached pages when the file
was overwritten. So the files are compared with what this connection left before each write and after it. One
that was removed, replaced or cut is refused; after any other foreign change the rows are read afresh.

Guarantees:
    a_file_that_is_gone_replaced_or_cut_is_not_written_to: The ``-wal`` file beside it included.
    one_living_process_holds_a_file: By a lock on the ``.lock`` file beside it (`file_access`).
    a_file_is_known_by_one_name: Links are followed once, to the file that the lock and ``-wal`` lie beside; a
        file with a second name (a hard link) is refused.
    a_lock_that_lost_its_name_is_taken_again_or_nothing_is_written: Before each write.
"""

from __future__ import annotations

import glob
import os
import shlex
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing, LedgerRolledBack
from scarcity_ray.privacy.ledger.chain import NO_OLDER_COPY, Row, read_back
from scarcity_ray.privacy.ledger.file_access import FileLock
from scarcity_ray_client.errors import shown

_TABLE = """
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY,
    charge_id TEXT UNIQUE,
    record TEXT NOT NULL,
    payload BLOB NOT NULL,
    hash BLOB NOT NULL
) STRICT
"""

CACHE_KIB = 512
"""Of pages in memory; with the 2 MiB that SQLite takes else, 6,000 charges were no faster."""
_ACCESS = "this user must be able to read the file and to write in its folder"
_REMEDIES = (("unable to open", _ACCESS), ("readonly", _ACCESS), ("full", "make room on the disk"))


class SqliteStore:
    """Rows in a SQLite file in WAL mode with ``synchronous=FULL``: a commit returns when it is on disk.

    Raises:
        LedgerMissing: If there is no such file.
        LedgerError: If it cannot be opened; every method raises it, or LedgerCorrupted, for SQLite's errors.
    """

    def __init__(self, path: Path, *, read_only: bool) -> None:
        self.path = path = _followed(path)
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        self._traces: dict[Path, os.stat_result] = {}
        if not _is_file(path):
            raise LedgerMissing(
                f"{path}: the ledger is not there, and without it nobody knows what was spent; bring the "
                f"file itself back (from the accountant's old node or disk), but {NO_OLDER_COPY}; without "
                "one its budget counts as spent, and another federation is the operator's decision"
            )
        _refuse_other_names(path)
        try:
            self._connection = _connect(path, mode="ro" if read_only else "rw")
        except sqlite3.Error as error:
            # Without a -wal file nobody writes, and every row is in the file. It can be read as immutable
            # where SQLite may not make the files that coordinate readers and a writer.
            if not read_only or path.with_name(f"{path.name}-wal").exists():
                raise _told(path, error) from error
            try:
                self._connection = _connect(path, mode="ro&immutable=1")
            except sqlite3.Error:
                raise _told(path, error) from error
        if not read_only:
            try:
                # Once it has read, the -wal file stays while this connection does.
                self.last()
                self._remember()
            except BaseException:
                self.close()
                raise

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is such a file.

        Raises:
            LedgerError: If it is a folder, or nobody can tell: what cannot be seen is not taken for absent.
        """
        return _is_file(_followed(path))

    @classmethod
    def create(cls, path: Path, first: Row) -> None:
        """Make a file that holds one row, complete on disk before it has its name.

        Raises:
            LedgerError: If the file exists already or cannot be made.
        """
        path = _followed(path)
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
                draft.unlink(missing_ok=True)
            _sync_folder(path.parent)
        except FileExistsError:
            raise LedgerError(f"{path}: a ledger is there already; open it instead") from None
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{path}: the ledger could not be made: {error}") from error

    def hold(self, before: str, own: str, *, forced: bool) -> bool:
        """Take the one lock beside the file; whether it was taken."""
        return self._lock.take(forced=forced)

    def is_held(self, hold: str) -> bool | None:
        """Whether somebody has the lock beside the file; None if this user cannot tell."""
        return self._lock.is_held()

    def glance(self) -> Row | None:
        """The newest row.

        Raises:
            LedgerError: Also if the file is no longer the one that was opened.
        """
        self._look()
        return self.last()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write transaction against all other writers; rolled back unless `commit` was called in it.

        Raises:
            LedgerError: Also if the file is no longer the one that was opened.
        """
        self._look()
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
            LedgerError: If its charge id is recorded already, the file lost its name meanwhile, or another
                process has the lock.
        """
        if not self._lock.keep():
            raise LedgerError(
                f"{self.path}: the lock file beside it was removed or replaced, and another process has it "
                "now; nothing was written: see who opens this ledger (scarcity-ray ledger show), and leave "
                "its .lock file where it is"
            )
        try:
            _insert(self._connection, row)
        except sqlite3.IntegrityError as error:
            raise LedgerError(f"{self.path}: charge {row.charge_id!r} is recorded already") from error
        self._connection.execute("COMMIT")
        self._in_place()
        self._remember()

    def confirm(self) -> None:
        """Do nothing: SQLite undoes a commit that it could not sync, so every row that is read is durable."""

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
        """Close the file and give its lock back."""
        self._connection.close()
        self._lock.release()

    def _remember(self) -> None:
        """Note how the files look after this connection's own work."""
        for path in (self.path, self.path.with_name(f"{self.path.name}-wal")):
            with suppress(FileNotFoundError):
                self._traces[path] = path.stat()

    def _in_place(self) -> bool:
        """Refuse files that were removed, replaced or cut; whether anybody else changed them."""
        touched = False
        for path, known in self._traces.items():
            try:
                now = path.stat()
            except FileNotFoundError:
                raise LedgerMissing(
                    f"{path}: the ledger's file was removed under its accountant; nothing is charged any "
                    f"more, nothing may be released: {NO_OLDER_COPY}, and without one its budget counts as "
                    "spent"
                ) from None
            same = os.path.samestat(now, known)
            if not same or now.st_size < known.st_size:
                what = "cut" if same else "replaced by another file"
                raise LedgerRolledBack(
                    f"{path}: the ledger's file was {what} under its accountant; nothing is charged any "
                    f"more, nothing may be released: {NO_OLDER_COPY}"
                )
            touched |= (now.st_size, now.st_mtime_ns) != (known.st_size, known.st_mtime_ns)
        return touched

    def _look(self) -> None:
        """Refuse files that were removed, replaced or cut; reopen what anybody else changed."""
        if not self._in_place():
            return
        before = self._connection
        try:
            # The old connection is closed last: the last one to be closed would end the -wal file.
            self._connection = _connect(self.path, mode="rw")
            self._connection.execute("SELECT count(*) FROM ledger").fetchone()
        except sqlite3.Error as error:
            raise _told(self.path, error) from error
        before.close()
        self._remember()

    def _select(self, clause: str, *parameters: object) -> list[Row]:
        query = f"SELECT seq, charge_id, record, payload, hash FROM ledger {clause}"
        try:
            found = self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise _told(self.path, error) from error
        return [read_back(self.path, stored) for stored in found]


def _followed(path: Path) -> Path:
    """The file that links lead to: SQLite names the ``-wal`` file after it, so the lock file must be too.

    Raises:
        LedgerError: If no file can have this name.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as error:
        raise LedgerError(f"{shown(str(path))}: no file can have this name ({error})") from None


def _is_file(path: Path) -> bool:
    try:
        kind = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LedgerError(
            f"{shown(str(path))}: the ledger cannot be looked for ({error.strerror}); give this user the "
            "right to search its folder, or choose another path"
        ) from None
    if stat.S_ISDIR(kind):
        raise LedgerError(f"{path}: this is a folder; name a file in it as the ledger")
    return True


def _refuse_other_names(path: Path) -> None:
    """Refuse a file that has a second name, under which nobody would see who holds it.

    The name of a draft is removed: it is left over if a process died in `SqliteStore.create`.

    Raises:
        LedgerError: If it has.
    """
    found = path.stat()
    if found.st_nlink < 2:
        return
    for draft in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        with suppress(FileNotFoundError):
            if os.path.samestat(draft.lstat(), found):
                draft.unlink()
    if path.stat().st_nlink > 1:
        raise LedgerError(
            f"{path}: the ledger's file has {found.st_nlink} names (hard links), and under another one "
            f"nobody would see who holds it; find them (find / -samefile {shlex.quote(str(path))}), "
            "and remove all but one"
        )


def _connect(path: Path, *, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        timeout=10.0,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
    return connection


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
    return LedgerCorrupted(f"{path}: the file is damaged, or no ledger ({text}); {NO_OLDER_COPY}")
