"""A session with a PostgreSQL server: made again when it is lost, its errors in the package's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing, UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.privacy.ledger.chain import NO_OLDER_COPY

_BEGIN: LiteralString = """
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL lock_timeout = '15s';
SET LOCAL idle_in_transaction_session_timeout = '10s';
"""
_SETTINGS: LiteralString = """
SELECT current_setting('fsync'),
    (SELECT relpersistence::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
        ON n.oid = c.relnamespace WHERE nspname = 'scarcity_ray' AND relname = 'ledger'),
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
    pg_advisory_xact_lock(%s)
"""
_DEFAULTS: dict[str, Any] = {
    "application_name": "scarcity_ray ledger",
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_GRANT = "grant this user USAGE on schema scarcity_ray, and SELECT and INSERT on scarcity_ray.ledger"
_QUIET = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)


class PostgresSession:
    """A connection that is made again if it was lost while nothing was under way.

    A lock that it holds for the session ends with the connection on the server's side, and is taken again
    with the next one.

    Args:
        url: The database.
        read_only: Whether the server is to refuse writes.

    Raises:
        LedgerError: If the server cannot be reached or refuses; every method raises it.
        UsageError: If libpq does not understand the URL.
    """

    def __init__(self, url: LedgerUrl, *, read_only: bool) -> None:
        self._url = url
        self._read_only = read_only
        self._warnings: list[str] = []
        self._held: int | None = None
        self._connection = self._connect()

    @contextmanager
    def transaction(self, lock: int) -> Iterator[None]:
        """A transaction that has `lock` to itself; rolled back unless `commit` was called in it."""
        with self._told():
            self._begin(lock)
            try:
                yield
            finally:
                if self._connection.info.transaction_status not in _QUIET:
                    self._connection.execute("ROLLBACK")

    def hold(self, lock: int) -> bool:
        """Take `lock` for as long as this session lasts; whether it was free."""
        free = self.try_lock(lock)
        if free:
            self._held = lock
        return free

    def try_lock(self, lock: int) -> bool:
        """Take `lock` until `unlock` or the connection's end; whether it was free."""
        return bool(self.ask("SELECT pg_try_advisory_lock(%s)", [lock])[0][0])

    def unlock(self, lock: int) -> None:
        """Give `lock` back."""
        self.ask("SELECT pg_advisory_unlock(%s)", [lock])

    def execute(self, query: LiteralString, parameters: Sequence[object] | None = None) -> None:
        """Run a statement of a transaction."""
        self._connection.execute(query, parameters)

    def commit(self) -> None:
        """Commit; all is on the server's disk, and on its synchronous standbys', when this returns.

        Raises:
            LedgerError: Also if the server gave up waiting for a standby, which it tells by a warning only.
        """
        self._warnings.clear()
        said = self._connection.execute("COMMIT").statusmessage
        if said != "COMMIT" or self._warnings:
            raise LedgerError(
                f"{self._url}: the server did not confirm that the row is safe ({said}"
                f"{''.join(f'; {one}' for one in self._warnings)}); try again"
            )

    def ask(self, query: LiteralString, parameters: Sequence[object] = ()) -> list[Any]:
        """A query's rows; outside a transaction a lost connection is made again."""
        with self._told():
            alone = self._connection.info.transaction_status in _QUIET
            try:
                return self._connection.execute(query, parameters).fetchall()
            except psycopg.Error:
                if not (alone and self._connection.closed):
                    raise
            self._connection = self._connect()
            return self._connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        """Give back what is held, and close the connection: the server ends its session later."""
        if self._held is not None:
            with suppress(psycopg.Error):
                self._connection.rollback()
                self._connection.execute("SELECT pg_advisory_unlock(%s)", [self._held])
        self._connection.close()

    def _connect(self) -> psycopg.Connection[Any]:
        try:
            given = conninfo_to_dict(self._url.conninfo)
        except psycopg.Error:
            raise UsageError(
                f"{self._url}: libpq does not understand this URL; its parameters are those of a PostgreSQL "
                "connection (host, sslmode, sslrootcert, passfile, ...), and federation"
            ) from None
        writes = {} if self._read_only else {"target_session_attrs": "read-write"}
        settings: dict[str, Any] = {**_DEFAULTS, **writes, **given}
        with self._told():
            connection = psycopg.connect(**settings, autocommit=True, prepare_threshold=None)
            connection.add_notice_handler(self._note)
            connection.execute("SET client_encoding TO 'UTF8'")
            if self._read_only:
                connection.execute("SET default_transaction_read_only TO on")
            if self._held is not None:
                connection.execute("SELECT pg_try_advisory_lock(%s)", [self._held])
            return connection

    def _note(self, notice: errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "a warning without words")

    def _begin(self, lock: int) -> None:
        try:
            self._connection.execute(_BEGIN)
        except psycopg.Error:
            if not self._connection.closed:
                raise
            self._connection = self._connect()
            self._connection.execute(_BEGIN)
        fsync, persistence, *_ = self._connection.execute(_SETTINGS, [lock]).fetchone() or ("", "")
        if fsync != "on" or persistence not in ("p", None):
            self._connection.execute("ROLLBACK")
            raise LedgerError(
                f"{self._url}: this database does not keep what it confirms (fsync is {fsync}, the table is "
                f"{'unlogged' if persistence == 'u' else 'logged'}); set fsync=on, and the table LOGGED"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise the package's error for one of PostgreSQL's."""
        try:
            yield
        except psycopg.Error as error:
            raise _error(self._url, error) from None


def _error(url: LedgerUrl, error: psycopg.Error) -> LedgerError:
    text = url.hidden_in("; ".join(str(error).strip().splitlines()[:2])) or type(error).__name__
    if isinstance(error, errors.DataCorrupted | errors.IndexCorrupted | psycopg.DataError):
        return LedgerCorrupted(f"{url}: the table is damaged, or no ledger ({text}); {NO_OLDER_COPY}")
    if isinstance(error, errors.UndefinedTable | errors.UndefinedColumn | errors.InvalidSchemaName):
        return LedgerMissing(f"{url}: the ledger is gone ({text}); {NO_OLDER_COPY}")
    if isinstance(error, errors.InsufficientPrivilege):
        return LedgerError(
            f"{url}: the ledger cannot be used: {text}; {_GRANT}; for the first one, CREATE on the database"
        )
    if isinstance(error, errors.LockNotAvailable):
        return LedgerError(f"{url}: another writer holds the ledger ({text}); end it, or try again")
    return LedgerError(
        f"{url}: the ledger cannot be used now: {text}; nothing may be released; try again once it answers"
    )


__all__ = ["PostgresSession"]
