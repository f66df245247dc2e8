"""The versions of what is stored: each file says which kind it is and in which version it was written."""

from __future__ import annotations

from scarcity_ray.errors import StorageError

FORMATS = {"scarcity_ray snapshot": 1, "scarcity_ray journal": 1}
"""Each kind of file, with the version that this release writes."""


def check_format(path: str, kind: str, found_kind: object, found_version: object) -> None:
    """Check that a file is of a kind and in a version that this release reads.

    Raises:
        StorageError: If it is not; it names the path and the way out.
    """
    known = FORMATS[kind]
    if found_kind != kind:
        raise StorageError(f"{path}: this is no {kind}; name another folder, or move the file away")
    if type(found_version) is not int or not 1 <= found_version <= known:
        raise StorageError(
            f"{path}: a {kind} of version {found_version!r:.20}, and this release reads 1 to {known}; use "
            "the release that wrote it, or a newer one"
        )
