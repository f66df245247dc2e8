"""Folders for data that must stay on this machine and be read by nobody else.

A file system behind a network is refused by name: its locks and its ``fdatasync`` do not promise what a
journal needs, and its rows would leave the machine.

Guarantees:
    a_network_file_system_is_refused_by_its_name
    a_folder_of_its_own_is_this_users_alone: Another's, one that others may enter, and a link are refused.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from scarcity_ray.errors import StorageError
from scarcity_ray.private_folder import why_not_private

NETWORK_FILE_SYSTEMS = frozenset(
    [
        "9p",
        "afs",
        "acfs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "fhgfs",
        "gfs",
        "gfs2",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncp",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
        "wekafs",
    ]
)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def network_file_system(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that a path lies on, if that is behind a network.

    Everything that is mounted through FUSE under a name of its own (``fuse.sshfs``) counts as one: most are.

    Args:
        path: It need not be there yet.
        mounts: The text of ``/proc/mounts``; None: this machine's. Where there is none, nobody can tell, and
            the path counts as local.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text(errors="surrogateescape")
        except OSError:
            return None
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        _, point, found, *_ = [*line.split(" "), "", "", ""]
        point = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), point)
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of several mounts on one point the last counts
            best, kind = point, found
    return kind if kind in NETWORK_FILE_SYSTEMS or kind.startswith("fuse.") else None


def make_own_folder(folder: Path, what: str, setting: str) -> None:
    """Make a folder on a local disk, mode 0700, or check the one that is there.

    Args:
        what: What it is for, as the error says it.
        setting: The configuration's name for it.

    Raises:
        StorageError: If it lies on a network file system, cannot be made, is another user's, is open to
            others, or is a link; or if anybody may rename what is in the folder above.
    """
    kind = network_file_system(folder)
    if kind is not None:
        raise StorageError(
            f"{folder}: {what} must lie on a disk of this machine, and this is {kind}, a network file "
            f"system; set another {setting}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        why = why_not_private(folder, f"the folder for {what}")
    except OSError as error:
        raise StorageError(
            f"{folder}: the folder for {what} cannot be made ({error.strerror}); set another {setting}"
        ) from None
    if why:
        raise StorageError(f"{why}, or set another {setting}")
