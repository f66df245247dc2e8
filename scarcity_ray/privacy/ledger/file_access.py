"""Who may use a ledger's file: a folder private to this user, and a lock that one living process holds.

The lock is `flock` on an empty file beside the ledger, which is never removed. The operating system releases
it when the holder's process ends, however it ends. A lock that a living process holds cannot be taken from
it. To take over all the same, a process puts another file, locked already, in its place: a lock counts only
while its file has the lock's name.

Guarantees:
    a_private_folder_is_this_users_alone: Another's, one that others may enter, and a link are refused.
    what_others_may_have_put_there_is_not_heeded: By `is_this_users`.
    a_dead_holder_does_not_block: Not after SIGKILL, and not while a child that it forked lives on.
    a_living_holder_is_never_overlooked: Also one in this process.
"""

from __future__ import annotations

import fcntl
import os
import stat
import weakref
from pathlib import Path
from typing import BinaryIO

from scarcity_ray.errors import LedgerError
from scarcity_ray.private_folder import why_not_private


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it, for this user alone, unless it is there.

    Raises:
        LedgerError: If it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LedgerError(
            f"{folder}: the ledger's folder cannot be made ({error.strerror}); choose another ledger_path"
        ) from None


def make_private_folder(folder: Path) -> None:
    """As `make_folder`, and check that nobody else can put a ledger there, remove it or read it.

    A ledger that somebody else prepared could state any budget.

    Raises:
        LedgerError: If it is another user's, others have access to it, or it is a link; or if anybody may
            rename what is in the folder above.
    """
    make_folder(folder)
    if why := why_not_private(folder, "the ledger's folder"):
        raise LedgerError(f"{why}, or choose another place with ledger_path")


def is_this_users(path: Path) -> bool:
    """Whether there is a file that only this user can have put there.

    It, its folder and the one above are this user's, no links, and nobody else may write in them; nor may
    anybody else read the file. False where nobody can tell.
    """
    try:
        file, folders = path.lstat(), [path.parent.lstat(), path.parent.parent.lstat()]
    except OSError:
        return False
    own = all(found.st_uid == os.geteuid() for found in (file, *folders))
    closed = file.st_mode & 0o077 == 0 and all(folder.st_mode & 0o022 == 0 for folder in folders)
    real = stat.S_ISREG(file.st_mode) and all(stat.S_ISDIR(folder.st_mode) for folder in folders)
    return own and closed and real


class FileLock:
    """The lock with the name `path`; released by `release`, or with the process or this object.

    Raises:
        LedgerError: From every method, if the file cannot be opened or the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def take(self, *, forced: bool) -> bool:
        """Take it if nobody holds it, or whoever holds it if `forced`; whether it was taken."""
        while True:
            file = self._opened(self._path, os.O_RDWR | os.O_CREAT)
            if not self._locked(file, fcntl.LOCK_EX):
                file.close()
                return forced and self._replace()
            if self._has_name(file):
                return self._keep(file)
            file.close()

    def is_held(self) -> bool | None:
        """Whether somebody holds it; None if this user cannot tell. Nobody is kept from taking it."""
        try:
            file = self._opened(self._path, os.O_RDONLY)
        except LedgerError:
            return None if self._path.exists() else False
        with file:
            return not self._locked(file, fcntl.LOCK_SH)

    def keep(self) -> bool:
        """Whether this holds it; one whose file was removed or replaced is taken again if nobody has it."""
        return self._file is not None and (self._has_name(self._file) or self.take(forced=False))

    def release(self) -> None:
        """Give it back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _replace(self) -> bool:
        draft = self._path.with_name(f"{self._path.name}.{os.urandom(6).hex()}.new")
        file = self._opened(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._locked(file, fcntl.LOCK_EX)
        try:
            draft.replace(self._path)
        except OSError as error:
            file.close()
            draft.unlink(missing_ok=True)
            raise self._told(error) from error
        return self._keep(file)

    def _keep(self, file: BinaryIO) -> bool:
        self.release()
        self._file = file
        _held.add(self)
        return True

    def _has_name(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _opened(self, path: Path, flags: int) -> BinaryIO:
        try:
            return open(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb")
        except OSError as error:
            raise self._told(error) from error

    def _locked(self, file: BinaryIO, kind: int) -> bool:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            file.close()
            raise self._told(error) from error
        return True

    def _told(self, error: OSError) -> LedgerError:
        return LedgerError(
            f"{self._path}: the ledger cannot be held ({error.strerror}); keep it in a folder of this "
            "user's, on a local disk"
        )


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """Release in a forked child the locks that it inherits, and would keep when its parent is dead."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go_in_child)
