"""The card of a running federation: what a driver that attaches must know, with the release that wrote it.

The release stands before the rest and is compared first: what an actor of another release means by a message
is not known here, and its card might not even be read.
"""

from __future__ import annotations

from scarcity_ray.errors import UsageError
from scarcity_ray.release import __version__
from scarcity_ray_client.errors import shown

_MARK = b"scarcity_ray card\n"


def sealed(content: bytes) -> bytes:
    """A card's bytes as they are published, with this release's name before them."""
    return _MARK + __version__.encode() + b"\n" + content


def opened(published: bytes) -> bytes:
    """The bytes that `sealed` was given.

    Raises:
        UsageError: If another release published them; it names both, and the way out.
    """
    release = "0.0"
    if published.startswith(_MARK):
        name, _, content = published[len(_MARK) :].partition(b"\n")
        release = name.decode("utf-8", "replace")
        if release == __version__:
            return content
    raise UsageError(f"its actors run release {shown(release)} of scarcity_ray, {other_release()}")


def other_release() -> str:
    """What to do where actors are of another release, for the end of an error."""
    return (
        f"and this is {__version__}: go on with the release that runs, or let it finish its round and "
        "terminate() it there, and restore it here from its ledger_path and storage_path "
        "(HierarchicalFederation.restore)"
    )
