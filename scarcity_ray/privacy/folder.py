"""The folder of a ledger: made if need be, and where it is this package's choice, nobody else's.

Guarantees:
    a_private_folder_is_this_users_alone: Another's, one that others may enter, and a link are refused.
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


__all__ = ["make_folder", "make_private_folder"]
