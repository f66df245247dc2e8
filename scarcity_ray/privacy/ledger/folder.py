"""The folder of a ledger: made if need be, and where it is this package's choice, nobody else's.

Guarantees:
    a_private_folder_is_this_users_alone: Another's, one that others may enter, and a link are refused.
    what_others_may_have_put_there_is_not_heeded: By `is_this_users`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from scarcity_ray.errors import LedgerError

_REMEDY = "or choose another place with ledger_path"


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
    """As `make_folder`, and see that nobody else can put a ledger there, take one away or read it.

    What somebody else could have prepared would be a budget of their choosing.

    Raises:
        LedgerError: If it is another user's, others have access to it, or it is a link; or if anybody may
            rename what is in the folder above.
    """
    make_folder(folder)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise LedgerError(
            f"{folder}: the ledger's folder is a link or a file; put a folder in its place, {_REMEDY}"
        )
    if found.st_uid != os.geteuid():
        raise LedgerError(
            f"{folder}: the ledger's folder is of user {found.st_uid}, this is {os.geteuid()}; "
            f"remove it, {_REMEDY}"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise LedgerError(
            f"{folder}: others have access to the ledger's folder (mode {stat.S_IMODE(found.st_mode):04o}); "
            f"see that what is in it is yours, then chmod 700 it, {_REMEDY}"
        )
    above = folder.parent.stat()
    if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
        raise LedgerError(
            f"{folder.parent}: anybody may rename what is in it (mode {stat.S_IMODE(above.st_mode):04o}), "
            f"the ledger's folder too; chmod o-w it, {_REMEDY}"
        )


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


__all__ = ["is_this_users", "make_folder", "make_private_folder"]
