"""Opening a federation: its runtime, its name and the place of its ledger."""

from __future__ import annotations

import getpass
import logging
import math
import os
import re
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path

from platformdirs import user_state_path

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.errors import ConfigError, LedgerWarning, UsageError, warn_caller
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.privacy.ledger.answers import BudgetStatus
from scarcity_ray.privacy.ledger.file_access import is_this_users
from scarcity_ray.runtime.base import Runtime
from scarcity_ray.runtime.local import LocalRuntime
from scarcity_ray_client.errors import shown

logger = logging.getLogger("scarcity_ray")


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


def federation_name(config: HierarchicalFederationConfig, name: str | None) -> str | None:
    """The federation's name, else the one in the URL of its ledger's database; None for neither.

    Raises:
        UsageError: If it cannot be a name.
    """
    if name is not None:
        return check_federation_name(name)
    if isinstance(config.ledger_path, LedgerUrl):
        return config.ledger_path.federation or config.ledger_path.database or "default"
    return None


def configured_ledger(config: HierarchicalFederationConfig, name: str | None) -> str | None:
    """The configured path, absolute, or URL; None if none is configured.

    Raises:
        UsageError: If the URL names another federation.
    """
    if isinstance(config.ledger_path, LedgerUrl):
        return config.ledger_path if name is None else config.ledger_path.of(name)
    if config.ledger_path is None:
        return None
    return os.path.abspath(os.path.expanduser(config.ledger_path))


def default_ledger(config: HierarchicalFederationConfig, name: str | None, machines: int) -> str:
    """A file in this user's state folder: by the federation's name, else a new one.

    With an infinite budget it may also be in a temporary folder.

    Raises:
        ConfigError: If the budget is finite and there is no such folder, or the cluster has several machines,
            each with its own.
    """
    state = user_state_path("scarcity-ray", appauthor=False)
    at_home = "XDG_STATE_HOME" in os.environ or Path(os.path.expanduser("~")).is_dir()
    if machines > 1 or not at_home or not state.is_absolute():
        if math.isinf(config.total_epsilon):
            return str(Path(tempfile.mkdtemp(prefix="scarcity_ray-")) / "ledger.sqlite")
        why = (
            f"this cluster spans {machines} machines, and an empty folder on another one would be a fresh "
            "budget"
            if machines > 1
            else "this user has no home folder to keep it in"
        )
        raise ConfigError(
            "ledger_path",
            None,
            f"with a finite budget (total_epsilon {config.total_epsilon:g}) a path on a disk that outlives "
            f"the cluster, or postgresql://USER@HOST/DATABASE: {why}",
        )
    if name is None:
        return str(state / f"run-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}.sqlite")
    path = state / f"{name}.sqlite"
    earlier = Path(tempfile.gettempdir()) / f"scarcity_ray-{getpass.getuser()}" / name / "ledger.sqlite"
    if not path.exists() and is_this_users(earlier):
        raise ConfigError(
            "ledger_path",
            None,
            f"an earlier version kept the ledger of {name!r} in {earlier}: look at it (scarcity-ray ledger "
            f"show, and verify), then configure that path, or move the file to {path}, so that what was "
            "spent still counts; remove it if it is not yours",
        )
    if not path.exists() and os.path.lexists(earlier):
        logger.warning("%s is not heeded: others than this user may have put it there", earlier)
    return str(path)


def tell_ledger(opened: BudgetStatus, *, is_default: bool, is_named: bool) -> None:
    """Log which ledger a federation has and how much is left; warn if a finite budget's is not configured."""
    words = opened.in_words()
    logger.info("%s", words)
    if not is_default or math.isinf(opened.total_epsilon):
        return
    if not is_named:
        meaning = (
            "No other run shares this budget, so what several runs release about the same clients is bounded "
            "by none of them; configure ledger_path to keep one budget over all runs"
        )
    elif not opened.is_new:
        meaning = (
            "It goes on from earlier federations of this name; for a budget of its own give another name or "
            "ledger_path"
        )
    else:
        return
    warn_caller(f"{words}. {meaning}", LedgerWarning)


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
