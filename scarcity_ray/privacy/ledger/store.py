"""The interface to the place that stores a ledger's rows: a SQLite file or a PostgreSQL database."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from scarcity_ray.errors import UsageError
from scarcity_ray.ledger_url import LedgerUrl, is_ledger_url
from scarcity_ray.privacy.ledger.chain import Row
from scarcity_ray.privacy.ledger.sqlite import SqliteStore

if TYPE_CHECKING:
    from scarcity_ray.privacy.ledger.postgres import PostgresStore

Address = Path | LedgerUrl


class Store(Protocol):
    """Rows that are added in order and never change.

    Every method raises `LedgerError` where the place cannot be used now, and `LedgerCorrupted` where what it
    holds is no ledger.
    """

    @property
    def path(self) -> Address:
        """Where; as text without any secret."""

    def hold(self, before: str, own: str, *, forced: bool) -> bool:
        """Within `writing`: take the writer's lock, until `close` or the end of this process.

        Args:
            before: The name of the lock of the newest row's writer, who may be alive.
            own: The name of the lock to take.
            forced: Whether to take it from a living writer.

        Returns:
            Whether this holds it now; False if another does.
        """

    def is_held(self, hold: str) -> bool | None:
        """Whether the newest writer, whose lock has this name, is alive; None if that cannot be told."""

    def glance(self) -> Row | None:
        """The newest row where reading it is cheap; None elsewhere.

        Raises:
            LedgerError: Also if the place is no longer the one that was opened.
        """

    def writing(self) -> AbstractContextManager[None]:
        """One write transaction against all other writers; undone unless `commit` was called in it.

        Raises:
            LedgerError: Also if the place is no longer the one that was opened.
        """

    def commit(self, row: Row) -> None:
        """Insert `row` and commit; it is durable when this returns, and may be if this raises.

        Raises:
            LedgerError: Also if its charge id is recorded already.
        """

    def confirm(self) -> None:
        """Within `writing`: make all rows that can be read now durable."""

    def last(self) -> Row | None:
        """The newest row."""

    def find(self, charge_id: str) -> Row | None:
        """The row of a charge."""

    def page(self, since: int, limit: int) -> list[Row]:
        """At most `limit` rows from number `since` on, oldest first."""

    def close(self) -> None:
        """Let go of the place."""


def address_of(path: str | os.PathLike[str], name: str | None = None) -> Address:
    """The address of a ledger: a file, or the rows of the federation `name` in the database that a URL names.

    Raises:
        UsageError: For a URL that cannot be read, or that names another federation.
    """
    if not is_ledger_url(path):
        return Path(path)
    url = path if isinstance(path, LedgerUrl) else LedgerUrl(str(path))
    return url if name is None else url.of(name)


def exists(address: Address) -> bool:
    """Whether there is a ledger.

    Raises:
        LedgerError: If nobody can tell.
    """
    return SqliteStore.exists(address) if isinstance(address, Path) else _postgres().exists(address)


def create_store(address: Address, first: Row) -> None:
    """Make a ledger of one row, all of it or nothing.

    Raises:
        LedgerError: If there is one already, or it cannot be made.
    """
    if isinstance(address, Path):
        SqliteStore.create(address, first)
    else:
        _postgres().create(address, first)


def open_store(address: Address, *, read_only: bool) -> Store:
    """The rows of a ledger.

    Raises:
        LedgerMissing: If there is none.
        LedgerError: If it cannot be opened.
    """
    if isinstance(address, Path):
        return SqliteStore(address, read_only=read_only)
    return _postgres()(address, read_only=read_only)


def _postgres() -> type[PostgresStore]:
    try:
        from scarcity_ray.privacy.ledger.postgres import PostgresStore
    except ImportError as error:
        raise UsageError(
            f"a ledger in PostgreSQL needs the extra of that name ({error}): "
            "pip install 'scarcity-ray[postgresql]'"
        ) from None
    return PostgresStore
