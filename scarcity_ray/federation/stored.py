"""What is stored of a federation as a whole, by which it is restored: configuration, name, ledger.

The ledger's password is not among it, nor any key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scarcity_ray.actors.messages import FederationIdentity
from scarcity_ray.config import HierarchicalFederationConfig, load, to_plain
from scarcity_ray.errors import ConfigError, StorageError
from scarcity_ray.ledger_url import is_ledger_url
from scarcity_ray.storage.codec import Codec
from scarcity_ray.storage.snapshots import Snapshots

_NAME = "federation"
_TORN = "the folder or the URI that a federation was given as storage_path"


@dataclass(frozen=True)
class FederationRecord:
    """A federation as it is stored.

    Attributes:
        config: As plain data.
        ledger_path: Absolute, or a URL without its password.
        name: The federation's, if it has one.
        private_ledger: See `FederationIdentity`, as `run` and `first_head`.
        continued: Earlier runs, whose journals may not be taken over yet, as a restore was under way.
    """

    federation_id: str
    config: Mapping[str, Any]
    ledger_path: str
    name: str | None
    private_ledger: bool
    run: int
    continued: tuple[int, ...] = ()
    first_head: str = ""


_CODEC = Codec(FederationRecord)


def write_record(kept: Snapshots, identity: FederationIdentity, continued: Sequence[int] = ()) -> None:
    """Store a federation's record.

    Raises:
        StorageError: If it cannot be written.
    """
    record = FederationRecord(
        identity.federation_id,
        to_plain(identity.config),
        str(identity.ledger_path),
        identity.name,
        identity.private_ledger,
        identity.run,
        tuple(continued),
        identity.first_head,
    )
    kept.write(_NAME, record, _CODEC)


def stored_federation(storage_path: str) -> tuple[FederationRecord, HierarchicalFederationConfig]:
    """The federation that a place holds, and its configuration with this place.

    Raises:
        StorageError: If it holds none, or a torn one.
        ConfigError: If its configuration is not accepted any more.
    """
    record = Snapshots(storage_path).read(_NAME, _CODEC)
    if not isinstance(record, FederationRecord):
        raise StorageError(f"{storage_path}: no federation is stored here; give {_TORN}")
    config = load(HierarchicalFederationConfig, record.config)
    return record, with_absolute_places(replace(config, storage_path=storage_path))


def with_absolute_places(config: HierarchicalFederationConfig) -> HierarchicalFederationConfig:
    """The configuration with absolute paths: roles and other drivers run in folders of their own."""
    storage, journal = config.storage_path, config.journal_path
    if storage is not None and "://" not in storage:
        storage = os.path.abspath(os.path.expanduser(storage))
    if journal is not None and not is_ledger_url(journal):
        journal = os.path.abspath(os.path.expanduser(journal))
    return replace(config, storage_path=storage, journal_path=journal)


def check_unused(config: HierarchicalFederationConfig) -> None:
    """Refuse to begin a federation where one is stored.

    Raises:
        StorageError: If one is, or the place cannot be read.
        ConfigError: If rows are to be retained, and there is no place.
    """
    path = config.storage_path
    if path is None and config.retain_rounds:
        raise ConfigError(
            "retain_rounds", config.retain_rounds, "0 without storage_path: the rows are kept there"
        )
    if path is None or Snapshots(path).is_empty():
        return
    resume = path if "://" in path else os.path.abspath(os.path.expanduser(path))
    raise StorageError(
        f"{path}: a federation is stored here; go on with it by HierarchicalFederation.restore({resume!r}), "
        "or name another storage_path for a new one"
    )
