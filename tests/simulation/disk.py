"""The disks of a simulated federation: files as they are left when a machine stops at any write.

Every statement of SQLite that writes (BEGIN, INSERT, COMMIT), and every fsync and rename of a snapshot, is a
place where the machine may stop before it, after it, or in the middle of the bytes that it writes. Who writes
dies with it. What SQLite does when its process dies is what this does: the files stay as they were then. A
connection that is closed in order would tidy them up first, so they are put back after it is closed.

A COMMIT in WAL mode with ``synchronous=FULL`` writes frames and then syncs them; until the sync has returned
any part of the bytes may be on the disk. A torn write here is the old bytes with the new ones up to a cut in
the range in which the two differ, and zeros for the rest of a sector that is half written. Of a file that was
not synced before it got its name a part is there under that name.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.simulation.program import ON_DISK, Fault, Kind

SECTOR = 512
Files = dict[Path, bytes]


@dataclass
class Database:
    """One SQLite file, with its log and the drafts of it.

    Attributes:
        synced: The files as they were last synced; None if they have not changed since.
    """

    path: Path
    synced: Files | None = None
    left: Files | None = None
    image: Files | None = None
    connections: list[sqlite3.Connection] = field(default_factory=list)
    _syncs: bool = True
    _has_written: bool = False

    def files(self) -> Files:
        if not self.path.parent.is_dir():
            return {}
        return {
            p: p.read_bytes()
            for p in sorted(self.path.parent.iterdir())
            if p.name.startswith(self.path.name) and not p.name.endswith(("-shm", ".lock"))
        }

    def crash(self, end: Callable[[], None]) -> None:
        """End the process that has it open; the files stay as they are, or as a torn write has left them."""
        left, self.left = self.left or self.files(), None
        end()
        for connection in self.connections:
            connection.close()
        self.connections.clear()
        self._put_back(left)
        self.image = left

    def note(self, sql: str) -> None:
        """Follow what is synced, from the statements that were executed."""
        match sql:
            case "PRAGMA synchronous=NORMAL":
                self._syncs = False
                self.synced = self.files() if self.synced is None else self.synced
            case "PRAGMA synchronous=FULL":
                self._syncs = True
            case "COMMIT" if self._syncs and self._has_written:
                self.synced = None
        self._has_written = sql.startswith(("INSERT", "UPDATE", "DELETE")) or (
            self._has_written and not sql.startswith("BEGIN")
        )

    def power_fails(self, part: float) -> None:
        """Of what was not synced `part` in [0, 1) is on the disk; its process has died."""
        if self.synced is not None:
            now = self.files() if self.image is None else self.image
            # SQLite syncs before and after it moves what is in its log to the file itself.
            is_moved = now.get(self.path) != self.synced.get(self.path)
            self.image, self.synced = now if is_moved else torn(self.synced, now, part), None
            self._put_back(self.image)

    def is_lost(self) -> None:
        """The disk is gone; its process has died."""
        self.image, self.synced = {}, None
        self._put_back({})

    def unwound(self) -> None:
        """The process that died has left its last method, and closed its connections as it did."""
        if self.image is not None:
            self._put_back(self.image)
            self.image = None

    def _put_back(self, left: Files) -> None:
        for path in self.files().keys() - left.keys():
            path.unlink()
        for path, data in left.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)


@dataclass
class Disk:
    """The files of one federation.

    Attributes:
        dies: Ends the process that writes; does not return.
        passed: Writes in this step.
    """

    dies: Callable[[str], Any]
    passed: int = 0
    faults: dict[int, Fault] = field(default_factory=dict)
    databases: dict[Path, Database] = field(default_factory=dict)
    _unsynced: set[Path] = field(default_factory=set)

    def expect(self, faults: Sequence[Fault]) -> None:
        """Begin a step in which these go wrong."""
        self.passed, self.faults = 0, {f.at: f for f in faults if f.kind in ON_DISK}

    def database(self, path: Path) -> Database:
        """The database of which this is a file; a draft is named after it."""
        path = path.with_name(path.name.partition(".sqlite")[0] + ".sqlite")
        return self.databases.setdefault(path, Database(path))

    def unwound(self) -> None:
        for database in self.databases.values():
            database.unwound()

    def execute(self, database: Database, sql: str, run: Callable[[], Any]) -> Any:
        """A statement of a connection."""
        database.image = None
        answer = self._executed(database, sql, run)
        database.note(sql)
        return answer

    def _executed(self, database: Database, sql: str, run: Callable[[], Any]) -> Any:
        if not sql.startswith(("BEGIN", "INSERT", "COMMIT", "UPDATE", "DELETE")):
            return run()
        fault = self._next()
        if fault is None:
            return run()
        why = f"{sql[:6]} in {database.path.name}: {fault}"
        before = database.files()
        match fault.kind:
            case Kind.DISK_FULL:
                raise sqlite3.OperationalError("database or disk is full")
            case Kind.DISK_DIES:
                database.left = before
                self.dies(why)
        answer = run()
        after = database.files()
        database.left = after if fault.kind is Kind.DISK_DIES_AFTER else torn(before, after, fault.k / 8)
        self.dies(why)
        return answer

    def fsync(self, number: int) -> None:
        """A file is synced; until then any part of it may be on the disk."""
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        fault = None if path.is_dir() else self._next()
        if fault is None:
            self._unsynced.discard(path)
            return
        if fault.kind is Kind.DISK_FULL:
            raise OSError(errno.ENOSPC, "no space left on device")
        if fault.kind is not Kind.DISK_DIES_AFTER:
            _cut(path, fault)
        self.dies(f"fsync of {path.name}: {fault}")

    def replace(self, source: Path, target: Path) -> None:
        """A file gets its name."""
        fault = self._next()
        if fault is None:
            os.replace(source, target)
            return
        if fault.kind is Kind.DISK_FULL:
            raise OSError(errno.ENOSPC, "no space left on device")
        if fault.kind is not Kind.DISK_DIES:
            os.replace(source, target)
            if source in self._unsynced:
                _cut(target, fault)
        self.dies(f"rename to {target.name}: {fault}")

    def written(self, path: Path) -> None:
        """A file was written, and not synced yet."""
        self._unsynced.add(path)

    def _next(self) -> Fault | None:
        number, self.passed = self.passed, self.passed + 1
        return self.faults.pop(number, None)


def _cut(path: Path, fault: Fault) -> None:
    os.truncate(path, path.stat().st_size * fault.k // 8)


def torn(before: Files, after: Files, part: float) -> Files:
    """The files when the first `part` in [0, 1) of what was written is on the disk."""
    left = dict(before)
    for path in sorted(after, reverse=True):  # the -wal file is written first
        old, new = before.get(path, b""), after[path]
        if old == new:
            continue
        changed = [i for i in range(len(new)) if i >= len(old) or old[i] != new[i]]
        cut = changed[0] + int(part * (changed[-1] + 1 - changed[0]))
        zeros = bytes(min(-cut % SECTOR, max(len(new) - cut, 0)))
        left[path] = (new[:cut] + zeros + old[cut + len(zeros) :])[: max(len(new), len(old))]
        break
    return left


def connections_of(disk: Callable[[], Disk | None]) -> type[sqlite3.Connection]:
    """Connections whose statements the current disk may stop."""

    class Connection(sqlite3.Connection):
        def __init__(self, database: Any, *args: Any, **more: Any) -> None:
            there, name = disk(), str(database)
            path = Path(unquote(urlsplit(name).path) if name.startswith("file:") else name)
            self.file = None if there is None else there.database(path)
            super().__init__(database, *args, **more)
            if self.file is not None and "mode=ro" not in name:
                self.file.connections.append(self)

        def execute(self, sql: str, *parameters: Any) -> Any:
            def run() -> Any:
                return sqlite3.Connection.execute(self, sql, *parameters)

            there = disk()
            if there is None or self.file is None:
                return run()
            return there.execute(self.file, sql, run)

    return Connection


class SimulatedOs:
    """The module `os` for snapshots: what is written may be stopped as it is synced or renamed."""

    def __init__(self, disk: Callable[[], Disk]) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Any, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT:
            self._disk().written(Path(path))
        return os.open(path, flags, *mode)

    def fsync(self, number: int) -> None:
        self._disk().fsync(number)

    def replace(self, source: Any, target: Any) -> None:
        self._disk().replace(Path(source), Path(target))
