"""A basket actor's journal: accepted updates and what follows from them, on a local disk.

One SQLite file. A transaction holds all that one call has changed, and the call is answered after
its commit, so an update that was acknowledged is on the disk. Each batch of updates is one row: its columns
and its rows of numbers, as bytes. SQLite was compared with LMDB and with one's own file of records
(``python -m benchmarks journal``): neither is 1.5 times as fast where a batch is stored so.

The journal knows neither baskets nor Ray: who writes to it says what the bytes mean (`baskets.journalled`).

Guarantees:
    what_was_committed_is_there_after_a_kill_at_any_moment: And nothing of a transaction that was not.
    a_file_that_is_torn_foreign_or_newer_is_refused_by_name
    one_living_process_writes: A second one is refused while the first lives.
    a_transaction_that_fails_leaves_nothing: On a full disk the file stays as it was.
    what_another_run_left_is_moved_aside_not_read: Unless this run continues that one.
    what_may_be_lost_is_known_until_it_was_told: A new file in the place of a lost one, and a machine that was
        started anew since the last `told`, are so after any number of openings.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scarcity_ray.errors import StorageError, UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.storage.formats import check_format
from scarcity_ray.storage.local_disk import make_own_folder

if TYPE_CHECKING:
    from scarcity_ray.storage.postgres_journal import PostgresJournal

KIND = "scarcity_ray journal"
ENCRYPTED = 2
"""Version of an encrypted journal; else it is 1."""
PAGE_BYTES = 16_384
"""Of the file. With 4 KiB a batch of 4 MiB took twice as long; a single update writes a page or two."""
LONG_PAGE_BYTES = 65_536
"""SQLite's longest, for long rows. Short ones would take longer with it."""
LONG_ROW_BYTES = 1 << 20
"""A row from this size is long: to write it twice takes longer than three more syncs of most disks."""
LOGS = ("-wal", "-journal")
"""What the names of SQLite's logs end with, in the two modes."""
CHECKPOINT_PAGES = 1_024
"""SQLite moves what is in its log to the file itself once that is so long."""
CACHE_KIB = 8_192
"""Of pages in memory. A transaction that does not fit in writes some of them twice."""
BLOB_BYTES = 1 << 16
"""Rows from this size are written straight into the file's pages. Each such write leaves about 90 bytes in
sqlite3's connection for as long as that is open (CPython 3.11), so that small ones are parameters."""
VALUE_BYTES = 1 << 24
"""A batch with more bytes of rows is written as several: who reads it has each in memory at once."""
LOCK_SECONDS = 5.0
"""Time that a process which has the file open may take to end."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux's random number of the machine's start; elsewhere there is none."""
OWN = ""
"""Stands for the journal itself among the names of baskets in records."""
UNTOLD = "untold"
"""Kind of the record of a new journal: the place of the one before, if that was moved aside."""
BOOT = "boot"
"""Kind of the record of the machine's start, where acknowledged updates may not be on the disk."""
_TABLES = """
CREATE TABLE about (kind TEXT, version INTEGER, federation TEXT, slot INTEGER, run TEXT, last INTEGER) STRICT;
CREATE TABLE batches (
    number INTEGER PRIMARY KEY,
    basket TEXT NOT NULL,
    round INTEGER NOT NULL,
    columns BLOB NOT NULL,
    checked INTEGER NOT NULL,
    rows BLOB
) STRICT;
CREATE TABLE records (
    basket TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    checked INTEGER NOT NULL,
    PRIMARY KEY (basket, kind, name)
) STRICT, WITHOUT ROWID;
"""


@dataclass(frozen=True)
class JournalPlace:
    """Where the journals of a federation's basket actors lie, and when they are on the disk.

    Attributes:
        where: A folder on each machine with baskets, mode 0700; or a database (`LedgerUrl`).
        syncs_updates: Whether each call is on the disk before it is answered (``durability: update``). If not
            (``round``), it is handed to the operating system, so that it outlives the process but not the
            machine, until the next call that is not an update: an aggregate, a session, a new round.
        continues: The runs whose journals this run takes over.
        epoch: How often the federation was opened; in a database, an earlier one writes nothing any more.
        key_path: The file of the key that rows are encrypted with; empty: they are not.
        row_bytes: Length of a client's row.
    """

    where: str
    syncs_updates: bool = True
    continues: tuple[int, ...] = ()
    epoch: int = 0
    key_path: str = ""
    row_bytes: int = 0

    @property
    def has_long_rows(self) -> bool:
        """Whether the file and its log are made for long rows."""
        return self.row_bytes >= LONG_ROW_BYTES

    @property
    def mode(self) -> str:
        """SQLite's journal mode.

        Where each call is synced, long rows are written once, to the file itself, and only the few pages that
        were there before are logged. A write-ahead log syncs once, not four times, and writes a row twice.
        """
        return "PERSIST" if self.has_long_rows and self.syncs_updates else "WAL"

    @property
    def version(self) -> int:
        """Of the journals written here: encrypted ones are refused by releases that know of none."""
        return ENCRYPTED if self.key_path else 1

    def check_version(self, where: str, kind: object, version: object) -> None:
        """Check that a journal that was found is one that can be read with the key, or without one.

        Raises:
            StorageError: If it is not; it names the place and the way out.
        """
        check_format(where, KIND, kind, version)
        if version != self.version:
            raise StorageError(
                f"{where}: the journal is encrypted; set journal_key_path to its key"
                if version == ENCRYPTED
                else f"{where}: the journal is not encrypted, and journal_key_path is set; unset it"
            )

    @property
    def is_database(self) -> bool:
        """Whether the journals outlive the disks of the machines with baskets."""
        return isinstance(self.where, LedgerUrl)

    def path(self, federation_id: str, slot: int) -> Path:
        """The file of one basket actor."""
        return Path(self.where) / federation_id / f"basket-{slot}.sqlite"


@dataclass(frozen=True)
class Batch:
    """Updates of one basket that were accepted in one call.

    Attributes:
        number: Rises from batch to batch; never used again.
        columns: What its writer says of each update.
        rows: The updates' numbers; None once they are in an aggregate.
    """

    number: int
    columns: bytes
    rows: bytes | None


class Journal:
    """One basket actor's journal, for as long as it is open.

    Raises:
        StorageError: From every method, if SQLite cannot do it; it names the path and the remedy.

    Attributes:
        set_aside: Where the file of a run is that this one does not continue; empty if there was none.
        is_new: Whether there was nothing to go on from, and `told` was not called since.
        may_lack: Whether acknowledged updates may be missing, as the machine was started anew before
            they were on its disk.
    """

    def __init__(self, place: JournalPlace, federation_id: str, slot: int, run: int) -> None:
        path = place.path(federation_id, slot)
        for folder in (path.parent.parent, path.parent):
            make_own_folder(folder, "the journal", "journal_path")
        self.path = path
        if not path.exists():
            self._create(place, federation_id, slot, run)
        self._connection = self._opened(place, federation_id, slot, run)
        self._syncs = True
        self._boot = b"" if place.syncs_updates or not BOOT_ID.exists() else BOOT_ID.read_bytes().strip()
        last = "SELECT max(last, (SELECT coalesce(max(number), 0) FROM batches)) FROM about"
        try:
            untold, boot = self.records(OWN, UNTOLD).get(""), self.records(OWN, BOOT).get("", b"")
            with self._told():
                self._last = int(self._connection.execute(last).fetchone()[0])
        except BaseException:
            self.close()
            raise
        self.is_new, self.set_aside = untold is not None, (untold or b"").decode()
        self.may_lack = bool(boot) and (not BOOT_ID.exists() or BOOT_ID.read_bytes().strip() != boot)

    @contextmanager
    def writing(self, *, sync: bool = True) -> Iterator[None]:
        """One transaction, committed when the block ends and undone if it raises.

        Args:
            sync: Whether it is on the disk then, with all before it.
        """
        with self._told():
            if sync is not self._syncs:
                self._connection.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
                self._syncs = sync
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def append(self, basket: str, round_id: int, columns: bytes, rows: bytes | None) -> None:
        """Write a batch.

        Args:
            basket: Whose it is.
            round_id: The latest round of its updates.
            columns: What `Batch.columns` gives again.
            rows: The updates' numbers; None if they are in an aggregate already, and only remembered.
        """
        self._last += 1
        is_large = rows is not None and len(rows) >= BLOB_BYTES
        self._connection.execute(
            f"INSERT INTO batches VALUES (?, ?, ?, ?, ?, {'zeroblob(?)' if is_large else '?'})",
            (
                self._last,
                basket,
                round_id,
                columns,
                checksum(columns, basket, self._last, round_id),
                len(rows) if is_large and rows else rows,
            ),
        )
        if is_large and rows:  # As a parameter it would be copied three times before.
            with self._connection.blobopen("batches", "rows", self._last) as blob:
                blob.write(rows)

    def last_number(self) -> int:
        """The number of the batch that was written last, of whatever basket; 0 before the first."""
        return self._last

    def consume(self, basket: str) -> None:
        """Drop the numbers of a basket's updates, which are in an aggregate; their columns stay."""
        self._connection.execute(
            "UPDATE batches SET rows = NULL WHERE basket = ? AND rows IS NOT NULL", (basket,)
        )

    def forget_before(self, round_id: int) -> None:
        """Drop the columns of consumed updates of rounds before `round_id`."""
        self._connection.execute("DELETE FROM batches WHERE rows IS NULL AND round < ?", (round_id,))
        self._connection.execute("UPDATE about SET last = ?", (self._last,))

    def forget_basket(self, basket: str) -> None:
        """Drop all of a basket."""
        self._connection.execute("DELETE FROM batches WHERE basket = ?", (basket,))
        self._connection.execute("UPDATE about SET last = ?", (self._last,))
        self._connection.execute("DELETE FROM records WHERE basket = ?", (basket,))

    def put(self, basket: str, kind: str, name: str, value: bytes | None) -> None:
        """Write a record in the place of the one with these three names; None removes it."""
        if value is None:
            self._connection.execute(
                "DELETE FROM records WHERE basket = ? AND kind = ? AND name = ?", (basket, kind, name)
            )
        else:
            self._connection.execute(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?)",
                (basket, kind, name, value, checksum(value, basket, kind, name)),
            )

    def forget_kind(self, basket: str, kind: str) -> None:
        """Remove all of a basket's records of a kind."""
        self._connection.execute("DELETE FROM records WHERE basket = ? AND kind = ?", (basket, kind))

    def told(self) -> None:
        """Note that the user was told what `set_aside`, `is_new` and `may_lack` say."""
        if self.is_new or self.may_lack or self.records(OWN, BOOT).get("", b"") != self._boot:
            with self.writing():
                self.put(OWN, UNTOLD, "", None)
                self.put(OWN, BOOT, "", self._boot or None)

    def baskets(self) -> tuple[str, ...]:
        """The baskets of which anything is here, sorted."""
        with self._told():
            found = self._connection.execute(
                "SELECT basket FROM batches UNION SELECT basket FROM records WHERE basket <> '' "
                "ORDER BY basket"
            ).fetchall()
        return tuple(basket for (basket,) in found)

    def batches(self, basket: str) -> Iterator[Batch]:
        """A basket's batches, in the order of their writing."""
        with self._told():
            for number, round_id, columns, checked, rows in self._connection.execute(
                "SELECT number, round, columns, checked, rows FROM batches WHERE basket = ? ORDER BY number",
                (basket,),
            ):
                self._check(checked, columns, basket, number, round_id)
                yield Batch(number, columns, rows)

    def records(self, basket: str, kind: str) -> dict[str, bytes]:
        """A basket's records of a kind, by name."""
        with self._told():
            found = self._connection.execute(
                "SELECT name, value, checked FROM records WHERE basket = ? AND kind = ? ORDER BY name",
                (basket, kind),
            ).fetchall()
        for name, value, checked in found:
            self._check(checked, value, basket, kind, name)
        return {name: value for name, value, _ in found}

    def torn(self, detail: str) -> StorageError:
        """The error for content that is not what was written."""
        return StorageError(
            f"{self.path}: the journal is torn or was changed ({detail}); the accepted updates in it cannot "
            "be used: move the file away, and the clients that hold receipts send again"
        )

    def close(self) -> None:
        """Close the file, so that another process may open it."""
        self._connection.close()

    def _check(self, checked: int, value: bytes, *key: str | int) -> None:
        if not isinstance(value, bytes) or not is_whole(checked, value, *key):
            raise self.torn("a checksum differs")

    def _create(
        self, place: JournalPlace, federation_id: str, slot: int, run: int, set_aside: str = ""
    ) -> None:
        """Make a file that is complete on the disk before it has its name."""
        draft = self.path.with_name(f"{self.path.name}.{os.urandom(6).hex()}.new")
        with self._told():
            try:
                os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                connection = sqlite3.connect(draft, isolation_level=None)
                pages = LONG_PAGE_BYTES if place.has_long_rows else PAGE_BYTES
                connection.execute(f"PRAGMA page_size={pages}")
                connection.executescript(_TABLES)
                about = (KIND, place.version, federation_id, slot, f"{run:x}")
                connection.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, 0)", about)
                untold = (OWN, UNTOLD, "", set_aside.encode(), checksum(set_aside.encode(), OWN, UNTOLD, ""))
                connection.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", untold)
                connection.close()
                draft.rename(self.path)
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
                os.fsync(folder)
                os.close(folder)
            finally:
                draft.unlink(missing_ok=True)

    def _opened(self, place: JournalPlace, federation_id: str, slot: int, run: int) -> sqlite3.Connection:
        connection = self._connect(place.mode)
        try:
            with self._told():
                try:
                    found = connection.execute(
                        "SELECT kind, version, federation, slot, run FROM about"
                    ).fetchall()
                except sqlite3.Error as error:
                    raise _foreign(self.path, error) from error
                if len(found) != 1:
                    raise self.torn("it does not say what it is")
                kind, version, federation, number, left = found[0]
                place.check_version(str(self.path), kind, version)
                if (federation, number) != (federation_id, slot):
                    raise StorageError(
                        f"{self.path}: this is the journal of basket actor {number} of federation "
                        f"{federation!r}, not of {slot} of {federation_id!r}; move it away"
                    )
                if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise self.torn("SQLite's own check fails")
                if left in [f"{known:x}" for known in (run, *place.continues)]:
                    if left != f"{run:x}":
                        connection.execute("UPDATE about SET run = ?", (f"{run:x}",))
                    return connection
                connection.close()
                set_aside = self.path.with_name(f"{self.path.stem}.run-{left}.sqlite")
                for end in (*LOGS, ""):  # A log beside another file would be taken for its own.
                    with suppress(FileNotFoundError):
                        Path(f"{self.path}{end}").rename(f"{set_aside}{end}")
                self._create(place, federation_id, slot, run, str(set_aside))
                return self._connect(place.mode)
        except BaseException:
            connection.close()
            raise

    def _connect(self, mode: str) -> sqlite3.Connection:
        with self._told():
            connection = sqlite3.connect(self.path, isolation_level=None, timeout=LOCK_SECONDS)
            try:
                connection.execute("PRAGMA locking_mode=EXCLUSIVE")
                connection.execute(f"PRAGMA journal_mode={mode}")
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
                connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
                connection.execute(f"PRAGMA journal_size_limit={64 << 20}")
                # The lock is taken by the first write.
                connection.execute("BEGIN EXCLUSIVE")
                connection.execute("COMMIT")
            except BaseException as error:
                connection.close()
                if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.OperationalError):
                    raise _foreign(self.path, error) from error
                raise
            return connection

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's and the system's errors as `StorageError`, with the path and a remedy."""
        try:
            yield
        except (sqlite3.Error, UnicodeError) as error:  # What SQLite says may quote torn bytes.
            raise _storage_error(self.path, error) from error
        except OSError as error:
            raise StorageError(f"{self.path}: the journal cannot be made ({error.strerror})") from error


def open_journal(place: JournalPlace, federation_id: str, slot: int, run: int) -> Journal | PostgresJournal:
    """The journal of one basket actor, which this process alone writes from now on.

    Raises:
        StorageError: If it cannot be used.
        UsageError: If it is in a database, and the extra ``postgresql`` is not installed.
    """
    if not place.is_database:
        return Journal(place, federation_id, slot, run)
    try:
        from scarcity_ray.storage.postgres_journal import PostgresJournal
    except ImportError as error:
        raise UsageError(
            f"a journal in PostgreSQL needs the extra of that name ({error}): "
            "pip install 'scarcity-ray[postgresql]'"
        ) from None
    return PostgresJournal(place, federation_id, slot, run)


def checksum(value: bytes, *key: str | int) -> int:
    """Of a value and of the key that it is found by."""
    return zlib.crc32(value, zlib.crc32(repr(key).encode()))


def is_whole(checked: int, value: bytes, *key: str | int) -> bool:
    """Whether this was its `checksum`; the first journals of version 1 have that of the value alone."""
    return checked in (checksum(value, *key), zlib.crc32(value))


def _foreign(path: Path, error: sqlite3.Error) -> StorageError:
    """The error for a file that SQLite does not read as a journal."""
    return StorageError(
        f"{path}: this is no journal of scarcity_ray, or it is torn ({error}); move it away, or set another "
        "journal_path"
    )


_REMEDIES = (
    ("locked", "a living process has it open: end the other basket actor first"),
    ("full", "make room on the disk; what was acknowledged is kept"),
    ("disk I/O", "make room on the disk, or see what ails it; what was acknowledged is kept"),
    ("readonly", "make the disk writable again; what was acknowledged is kept"),
    ("unable to open", "this user must be able to write in its folder"),
    ("malformed", "it is torn: move it away, and the clients that hold receipts send again"),
)


def _storage_error(path: Path, error: Exception) -> StorageError:
    remedy = next((text for part, text in _REMEDIES if part in str(error)), "see the disk")
    return StorageError(f"{path}: the journal cannot be used ({error}): {remedy}")
