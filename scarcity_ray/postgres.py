"""A connection to a PostgreSQL database whose commits are on its disk: for a ledger, or for journals.

Settings are made in each transaction, so a connection pooler does no harm. A transaction takes an advisory
lock, so two writers never interleave, and a successor waits until its predecessor's transaction is over.

Guarantees:
    a_commit_is_on_the_servers_disk: ``synchronous_commit`` is forced, ``fsync=off`` and unlogged tables are
        refused, and so is a commit that the server did not confirm without a warning (a standby given up).
    a_frozen_writer_does_not_block_its_successor: The server ends a transaction that says nothing for 10 s.
    a_password_is_in_no_error
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from scarcity_ray.errors import ScarcityError, UsageError
from scarcity_ray.ledger_url import LedgerUrl

_BEGIN: LiteralString = """
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;
SET LOCAL lock_timeout = '15s';
SET LOCAL idle_in_transaction_session_timeout = '10s';
"""
_SETTINGS: LiteralString = """
SELECT current_setting('fsync'),
    (SELECT bool_and(relpersistence = 'p') FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n
        ON n.oid = c.relnamespace WHERE nspname = 'scarcity_ray' AND relname = ANY(%s)),
    set_config('synchronous_commit', CASE current_setting('synchronous_commit')
        WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true),
    pg_advisory_xact_lock(%s)
"""
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
_QUIET = (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)


@dataclass(frozen=True)
class Contents:
    """What a connection is for.

    Attributes:
        name: As errors say it: ``ledger``.
        tables: In schema ``scarcity_ray``.
        error: The package's error for what was refused here, of a text.
        explain: The package's error for one of PostgreSQL's, with its text, which has no password.
    """

    name: str
    tables: tuple[str, ...]
    error: Callable[[str], ScarcityError]
    explain: Callable[[LedgerUrl, psycopg.Error, str], ScarcityError]

    def lock(self, name: str) -> int:
        """The advisory lock of this name."""
        digest = hashlib.sha256(f"scarcity_ray.{self.name}/{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big", signed=True)


class PostgresConnection:
    """A connection that is made again if it was lost while nothing was under way.

    A lock that is held ends with the connection on the server's side, and is taken again with the next one.

    Args:
        url: The database.
        contents: What is in it for its user.
        read_only: Whether the server is to refuse writes.

    Raises:
        ScarcityError: As `contents` says, if the server cannot be reached or refuses; from every method.
        UsageError: If libpq does not understand the URL.
    """

    def __init__(self, url: LedgerUrl, contents: Contents, *, read_only: bool) -> None:
        self._url = url
        self._contents = contents
        self._read_only = read_only
        self._warnings: list[str] = []
        self._held: int | None = None
        self._connection = self._connect()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended; the next transaction makes another."""
        return self._connection.closed

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
        """Take `lock` for as long as this lasts; whether it was free."""
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
            ScarcityError: Also if the server gave up waiting for a standby, which it tells by a warning only.
        """
        self._warnings.clear()
        said = self._connection.execute("COMMIT").statusmessage
        if said != "COMMIT" or self._warnings:
            raise self._contents.error(
                f"{self._url}: the server did not confirm that the row is safe ({said}"
                f"{''.join(f'; {one}' for one in self._warnings)}); try again"
            )

    def ask(self, query: LiteralString, parameters: Sequence[object] = ()) -> list[Any]:
        """A query's rows; outside a transaction a lost connection is made again."""
        with self._told():
            alone = self._connection.info.transaction_status in _QUIET
            try:
                return self._connection.execute(query, parameters, binary=True).fetchall()
            except psycopg.Error:
                if not (alone and self._connection.closed):
                    raise
            self._connection = self._connect()
            return self._connection.execute(query, parameters, binary=True).fetchall()

    def has_table(self, name: str) -> bool:
        """Whether there is a table of this name in schema ``scarcity_ray``."""
        # Not to_regclass, which may remember from before the lock was waited for that there was none.
        query: LiteralString = (
            "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'scarcity_ray' AND tablename = %s"
        )
        return bool(self.ask(query, [name]))

    def close(self) -> None:
        """Give back what is held, and close: the server notices that the connection ended later."""
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
        named = {"application_name": f"scarcity_ray {self._contents.name}"}
        settings: dict[str, Any] = {**_DEFAULTS, **named, **writes, **given}
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
        asked = [list(self._contents.tables), lock]
        fsync, is_logged, *_ = self._connection.execute(_SETTINGS, asked).fetchone() or ("", None)
        if fsync != "on" or is_logged is False:
            self._connection.execute("ROLLBACK")
            raise self._contents.error(
                f"{self._url}: this database does not keep what it confirms (fsync is {fsync}, the table is "
                f"{'unlogged' if is_logged is False else 'logged'}); set fsync=on, and the table LOGGED"
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise the package's error for one of PostgreSQL's."""
        try:
            yield
        except psycopg.Error as error:
            text = "; ".join(str(error).strip().splitlines()[:2])
            text = self._url.hidden_in(text) or type(error).__name__
            raise self._contents.explain(self._url, error, text) from None
