"""Versions of what is stored or signed: who reads it refuses a newer one by name, and says the way out."""

from __future__ import annotations

from scarcity_ray_client.errors import shown


def why_not_read(kind: str, newest: int, found_kind: object, found_version: object) -> str:
    """Why something is not read here and what to do, for an error that names its place; "" if it is read.

    Args:
        kind: What is due, such as ``scarcity_ray model``.
        newest: Its version that this release writes; those from 1 on are read.
        found_kind: What it says that it is.
        found_version: In which version it says that it was written.

    >>> why_not_read("scarcity_ray model", 3, "scarcity_ray model", 4).partition(";")[0]
    'a scarcity_ray model of version 4, and this release reads 1 to 3'
    """
    if found_kind != kind:
        return f"this is no {kind}"
    if type(found_version) is not int or not 1 <= found_version <= newest:
        return (
            f"a {kind} of version {shown(found_version)}, and this release reads 1 to {newest}; use the "
            "release that wrote it, or a newer one"
        )
    return ""
