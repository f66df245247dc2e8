"""Opening a federation: on which runtime, under what id, with its ledger where."""

from __future__ import annotations

import getpass
import os
import re
import tempfile
import uuid
from pathlib import Path

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.config.arguments import shown
from scarcity_ray.errors import UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.runtime.base import Runtime
from scarcity_ray.runtime.local import LocalRuntime

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_federation_name(name: str) -> str:
    """Return `name` if it can name a federation: its actors' namespace and its ledger's folder.

    Raises:
        UsageError: If it is anything but 1 to 100 letters, digits, dots, dashes and underscores.

    >>> check_federation_name("hospitals-2026")
    'hospitals-2026'
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            "name must be 1 to 100 letters, digits, '.', '-' and '_', the first a letter or digit, "
            f"got {shown(name)}"
        )
    return name


def federation_id_of(config: HierarchicalFederationConfig, name: str | None) -> str:
    """Stable wherever a ledger is to be found again: by name, else as the ledger's file or URL says."""
    if name is not None:
        return check_federation_name(name)
    if isinstance(config.ledger_path, LedgerUrl):
        return config.ledger_path.federation or config.ledger_path.database or "default"
    return Path(config.ledger_path).stem if config.ledger_path else uuid.uuid4().hex


def ledger_path_of(config: HierarchicalFederationConfig, federation_id: str) -> str:
    """The configured path or URL, or a file in this user's folder among the temporary ones.

    Raises:
        UsageError: If the URL names another federation.
    """
    if isinstance(config.ledger_path, LedgerUrl):
        return config.ledger_path.of(federation_id)
    if config.ledger_path is not None:
        return os.path.abspath(os.path.expanduser(config.ledger_path))
    folder = Path(tempfile.gettempdir()) / f"scarcity_ray-{getpass.getuser()}"
    return str(folder / federation_id / "ledger.sqlite")


def open_runtime(kind: str, name: str | None, address: str | None) -> Runtime:
    """The runtime of a federation; a named one outlives its driver and needs a cluster.

    Raises:
        UsageError: For an unknown kind, a name on the local runtime, or if no cluster answers.
    """
    if kind == "local":
        if name is not None:
            raise UsageError(
                "a named federation lives on a Ray cluster; leave out name= with runtime='local'"
            )
        return LocalRuntime()
    if kind != "ray":
        raise UsageError(f"runtime must be 'ray' or 'local', got {shown(kind)}")
    from scarcity_ray.runtime.ray_runtime import RayRuntime

    namespace = uuid.uuid4().hex if name is None else check_federation_name(name)
    return RayRuntime(f"scarcity_ray/{namespace}", address=address, detached=name is not None)
