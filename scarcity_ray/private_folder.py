"""Whether a folder is this user's alone: what a ledger and a journal of un-noised rows may lie in."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def why_not_private(folder: Path, what: str) -> str:
    """Why others could read, remove or prepare what lies in a folder, and what to do; "" if they cannot.

    Args:
        folder: One that is there.
        what: What it is, for the answer.

    Raises:
        OSError: If it cannot be looked at.
    """
    found, above = folder.lstat(), folder.parent.stat()
    mode, mode_above = stat.S_IMODE(found.st_mode), stat.S_IMODE(above.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder}: {what} is a link or a file; put a folder in its place"
    if found.st_uid != os.geteuid():
        return f"{folder}: {what} is of user {found.st_uid}, this is {os.geteuid()}; remove it"
    if mode & 0o077:
        return (
            f"{folder}: others have access to {what} (mode {mode:04o}); see that what is in it is yours, "
            "then chmod 700 it"
        )
    if mode_above & stat.S_IWOTH and not mode_above & stat.S_ISVTX:
        return (
            f"{folder.parent}: anybody may rename what is in it (mode {mode_above:04o}), {what} too; "
            "chmod o-w it"
        )
    return ""
