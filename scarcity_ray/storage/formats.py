"""The versions of what is stored: each file says which kind it is and in which version it was written."""

from __future__ import annotations

from scarcity_ray.errors import StorageError
from scarcity_ray_client.formats import why_not_read

FORMATS = {"scarcity_ray snapshot": 1, "scarcity_ray journal": 2}
"""Each kind of file, with the version that this release writes."""


def check_format(path: str, kind: str, found_kind: object, found_version: object) -> None:
    """Check that a file is of a kind and in a version that this release reads.

    Raises:
        StorageError: If it is not; it names the path and the way out.
    """
    why = why_not_read(kind, FORMATS[kind], found_kind, found_version)
    if why:
        away = "" if found_kind == kind else "; name another folder, or move the file away"
        raise StorageError(f"{path}: {why}{away}")
