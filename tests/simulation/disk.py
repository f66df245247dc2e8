"""The disk of a simulated federation: SQLite's files, as they are left when a machine stops at any write.

Every statement that writes (BEGIN, INSERT, COMMIT) is a place where the machine may stop before it, after it,
or in the middle of the bytes that it writes. What SQLite does when its process dies is what this does: the
files stay as they were then. A connection that is closed in order would tidy them up first, so they are put
back after it is closed.

A COMMIT in WAL mode with ``synchronous=FULL`` writes frames and then syncs them; until the sync has returned
any part of the bytes may be on the disk. A torn write here is the old bytes with the new ones up to a cut in
the range in which the two differ, and zeros for the rest of a sector that is half written.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.simulation.program import ON_DISK, Fault, Kind

SECTOR = 512
Files = dict[Path, bytes]


class Disk:
    """The files in one folder.

    Args:
        dies: Ends the process that writes; does not return.
    """

    def __init__(self, folder: Path, dies: Callable[[str], Any]) -> None:
        self.folder = folder
        self.passed = 0
        self.faults: dict[int, Fault] = {}
        self._dies = dies
        self._left: Files | None = None
        self._image: Files | None = None

    def expect(self, faults: Sequence[Fault]) -> None:
        """Begin a step in which these go wrong."""
        self.passed, self.faults = 0, {f.at: f for f in faults if f.kind in ON_DISK}

    def crash(self, end: Callable[[], None]) -> None:
        """End a process; the files stay as they are, or as a torn write has left them."""
        left, self._left = self._left or self._files(), None
        end()
        self._put_back(left)
        self._image = left

    def unwound(self) -> None:
        """The process that died has left its last method, and closed its connections as it did."""
        if self._image is not None:
            self._put_back(self._image)
            self._image = None

    def execute(self, sql: str, run: Callable[[], Any]) -> Any:
        """A statement of a connection."""
        self._image = None
        if not sql.startswith(("BEGIN", "INSERT", "COMMIT", "UPDATE", "DELETE")):
            return run()
        number, self.passed = self.passed, self.passed + 1
        fault = self.faults.pop(number, None)
        if fault is None:
            return run()
        before = self._files()
        match fault.kind:
            case Kind.DISK_FULL:
                raise sqlite3.OperationalError("database or disk is full")
            case Kind.DISK_DIES:
                self._left = before
                self._dies(f"{sql[:6]}: {fault}")
        answer = run()
        after = self._files()
        self._left = after if fault.kind is Kind.DISK_DIES_AFTER else torn(before, after, fault.k / 8)
        self._dies(f"{sql[:6]}: {fault}")
        return answer

    def _put_back(self, left: Files) -> None:
        for path in self._files().keys() - left.keys():
            path.unlink()
        for path, data in left.items():
            if not path.exists() or path.read_bytes() != data:
                path.write_bytes(data)

    def _files(self) -> Files:
        return {
            p: p.read_bytes() for p in sorted(self.folder.iterdir()) if not p.name.endswith(("-shm", ".lock"))
        }


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
        def execute(self, sql: str, *parameters: Any) -> Any:
            run = lambda: sqlite3.Connection.execute(self, sql, *parameters)  # noqa: E731
            there = disk()
            return run() if there is None else there.execute(sql, run)

    return Connection
