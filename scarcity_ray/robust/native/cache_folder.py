"""The folder where compiled kernels are kept: the user's own, and nobody else's.

Numba keeps machine code with pickle, and whoever can write to its cache runs code in the processes that read
it. So the folder is one that no other user can write to or replace, or there is none.

Guarantees:
    A folder is made with access for its owner alone.
    A folder that another user could write to or replace is refused.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

PAUSE_SECONDS = 0.02
"""How long a process that waits for another one to compile sleeps."""

PAUSES = 3000
"""How often it does, before it compiles as well: a minute."""


class UnsafeFolder(OSError):
    """Another user could change what is in the folder."""


def kernel_folder(key: str) -> Path:
    """The folder of the kernels with this key, made if need be.

    It is under the user's cache folder, ``$XDG_CACHE_HOME`` or ``~/.cache`` on Linux.

    Raises:
        UnsafeFolder: If another user could write to it or replace it.
        OSError: If it cannot be made.
    """
    path = platformdirs.user_cache_path("scarcity_ray") / "kernels" / key
    return private_folder(path)


def private_folder(path: Path) -> Path:
    """The folder, made if need be, which only its owner may enter; raises as `kernel_folder` does."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    if not hasattr(os, "geteuid"):
        return path
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeFolder(f"{path} is a link or a file: remove it")
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(f"{path} belongs to another user: remove it, or set XDG_CACHE_HOME")
    if found.st_mode & OTHERS:
        raise UnsafeFolder(f"{path} is open to other users, who may have written to it: remove it")
    for parent in path.resolve().parents:
        above = parent.stat()
        if above.st_uid not in (0, os.geteuid()):
            raise UnsafeFolder(f"{parent}, above {path}, belongs to another user: set XDG_CACHE_HOME")
        if above.st_mode & OTHERS_WRITE and not above.st_mode & stat.S_ISVTX:
            raise UnsafeFolder(f"{parent}, above {path}, is writable by other users: set XDG_CACHE_HOME")
    return path


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Run the body while no other process does, so that many that start together compile once.

    After `PAUSES` it runs all the same: two that compile do each other no harm.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as lock:
        for _ in range(PAUSES):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(PAUSE_SECONDS)
        yield
