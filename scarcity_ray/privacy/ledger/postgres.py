"""A ledger in PostgreSQL: rows that outlive the node of their writer.

All federations of a database share the table ``scarcity_ray.ledger``, each with rows of its own. A write is
one transaction: take the federation's advisory lock, see that a commit will be on disk when it returns, read
the newest row, insert the next one, commit. Two writers therefore never interleave, a successor waits until
whatever its predecessor had begun is over, and after a connection that was lost in a commit the next
transaction finds the row or never will. Settings are made in each transaction, so that a pooler in between
changes nothing.

Guarantees:
    a_commit_is_on_the_servers_disk: ``synchronous_commit`` is forced, ``fsync=off`` and unlogged tables are
        refused, and so is a commit that the server did not confirm without a warning (a standby given up).
    one_living_session_holds_a_federations_rows: By an advisory lock that the server ends with the session. A
        pooler that gives a session to several clients cannot tell a dead holder from a living one.
    a_frozen_writer_does_not_block_its_successor: The server ends a transaction that says nothing for 10 s.
    rows_cannot_be_changed_by_accident: A trigger refuses UPDATE, DELETE and TRUNCATE, to their owner too.
    a_password_is_in_no_error: Nor in any row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

from psycopg import errors

from scarcity_ray.errors import LedgerError, LedgerMissing, UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.privacy.ledger.chain import NO_OLDER_COPY, Row, read_back
from scarcity_ray.privacy.ledger.postgres_session import PostgresSession

_DEFINITIONS: LiteralString = """
CREATE SCHEMA IF NOT EXISTS scarcity_ray;
CREATE TABLE scarcity_ray.ledger (
    federation text NOT NULL,
    seq bigint NOT NULL,
    charge_id text,
    record text NOT NULL,
    payload bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT ledger_rows PRIMARY KEY (federation, seq),
    CONSTRAINT ledger_charges UNIQUE (federation, charge_id)
);
CREATE FUNCTION scarcity_ray.refuse_change() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'scarcity_ray.ledger is append-only'; END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON scarcity_ray.ledger
    FOR EACH STATEMENT EXECUTE FUNCTION scarcity_ray.refuse_change();
ALTER TABLE scarcity_ray.ledger ENABLE ALWAYS TRIGGER append_only;
"""
_ROWS: LiteralString = """
SELECT seq, charge_id, record, payload, hash FROM scarcity_ray.ledger WHERE federation = %s
"""
_INSERT: LiteralString = "INSERT INTO scarcity_ray.ledger VALUES (%s, %s, %s, %s, %s, %s)"


class PostgresStore:
    """The rows of one federation in a PostgreSQL database.

    A connection that is lost between two calls is made again; one that is lost within a transaction is an
    error, and the next call connects anew.

    Args:
        address: The database, and whose rows; without a federation, those of the only one there.
        read_only: Whether the server is to refuse writes.

    Raises:
        LedgerMissing: If the database holds no such ledger.
        LedgerError: If it cannot be reached or used; every method raises it, or LedgerCorrupted.
        UsageError: If the URL names no federation and the database holds several.
    """

    def __init__(self, address: LedgerUrl, *, read_only: bool) -> None:
        self._session = PostgresSession(address, read_only=read_only)
        try:
            self.path = address.of(_federation(self._session, address))
        except BaseException:
            self.close()
            raise

    @classmethod
    def exists(cls, address: LedgerUrl) -> bool:
        """Whether the database holds the federation's rows."""
        try:
            cls(address, read_only=True).close()
        except LedgerMissing:
            return False
        return True

    @classmethod
    def create(cls, address: LedgerUrl, first: Row) -> None:
        """Begin a federation's rows, and make the table if there is none.

        Raises:
            LedgerError: If there are rows of it already, or it cannot be made.
            UsageError: If the URL names no federation.
        """
        if address.federation is None:
            raise UsageError(f"{address}: say whose ledger to begin with federation=NAME in the URL")
        session = PostgresSession(address, read_only=False)
        try:
            with session.transaction(_lock("")):
                if not _has_table(session):
                    session.execute(_DEFINITIONS)
                try:
                    session.execute(_INSERT, _values(address, first))
                except errors.UniqueViolation:
                    raise LedgerError(f"{address}: a ledger is there already; open it instead") from None
                session.commit()
        finally:
            session.close()

    def hold(self, before: str, own: str, *, forced: bool) -> bool:
        """Take the lock `own`, if the lock `before` is free or `forced`; whether it was taken.

        Each writer has a lock of its own, so that one that lives keeps nobody from taking over.
        """
        is_free = not self.is_held(before)
        return (is_free or forced) and (self._session.hold(_lock(own)) or forced)

    def is_held(self, hold: str) -> bool | None:
        """Whether a session has the lock `hold`."""
        lock = _lock(hold)
        is_free = self._session.try_lock(lock)
        if is_free:
            self._session.unlock(lock)
        return not is_free

    def glance(self) -> Row | None:
        """Nothing: the server is asked when there is something to record."""
        return None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write transaction against all other writers; rolled back unless `commit` was called in it."""
        with self._session.transaction(_lock(self.path.federation or "")):
            yield

    def commit(self, row: Row) -> None:
        """Insert `row` and commit; it is on the server's disk, and its standbys', when this returns.

        Raises:
            LedgerError: If its charge id is recorded already, or the server did not confirm the commit.
        """
        try:
            self._session.execute(_INSERT, _values(self.path, row))
        except errors.UniqueViolation as error:
            known = f"charge {row.charge_id!r}" if "ledger_charges" in str(error) else f"row {row.seq}"
            raise LedgerError(f"{self.path}: {known} is recorded already") from None
        self._session.commit()

    def confirm(self) -> None:
        """Commit something after all rows that can be read now, which makes them durable too."""
        self._session.execute("SELECT pg_logical_emit_message(true, 'scarcity_ray', 'settled')")
        self._session.commit()

    def last(self) -> Row | None:
        """The newest row."""
        return next(iter(self._select("ORDER BY seq DESC LIMIT 1")), None)

    def find(self, charge_id: str) -> Row | None:
        """The row of a charge."""
        return next(iter(self._select("AND charge_id = %s", _plain(charge_id))), None)

    def page(self, since: int, limit: int) -> list[Row]:
        """At most `limit` rows from number `since` on, oldest first."""
        return self._select("AND seq >= %s ORDER BY seq LIMIT %s", since, limit)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _select(self, clause: LiteralString, *parameters: object) -> list[Row]:
        found = self._session.ask(_ROWS + clause, [self.path.federation, *parameters])
        return [read_back(self.path, stored, _plain) for stored in found]


def _has_table(session: PostgresSession) -> bool:
    # Not to_regclass, which may remember from before the lock was waited for that there was none.
    query: LiteralString = (
        "SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = 'scarcity_ray' AND tablename = 'ledger'"
    )
    return bool(session.ask(query))


def _federation(session: PostgresSession, address: LedgerUrl) -> str:
    """Whose rows `address` means; there are some."""
    wanted = address.federation
    known: list[str] = []
    if _has_table(session):
        query: LiteralString = (
            "SELECT federation FROM scarcity_ray.ledger WHERE coalesce(federation = %s, seq = 0) "
            "GROUP BY federation ORDER BY federation"
        )
        known = [name for (name,) in session.ask(query, [wanted])]
    if len(known) > 1:
        raise UsageError(
            f"{address}: this database holds the ledgers of {', '.join(known[:20])}; say which with "
            "federation=NAME in the URL"
        )
    if not known:
        whose = f"federation {wanted!r}" if wanted else "any federation"
        raise LedgerMissing(
            f"{address}: the ledger of {whose} is not there, and without it nobody knows what was spent; "
            f"{NO_OLDER_COPY}; without one its budget counts as spent, and another federation is the "
            "operator's decision"
        )
    return known[0]


def _values(address: LedgerUrl, row: Row) -> tuple[object, ...]:
    digest = bytes.fromhex(row.hash)
    return address.federation, row.seq, _plain(row.charge_id), row.record, row.payload, digest


def _lock(federation: str) -> int:
    """The advisory lock of a federation; of '' for the making of ledgers; of a writer's hold."""
    digest = hashlib.sha256(f"scarcity_ray.ledger/{federation}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _plain(charge_id: str | None) -> str | None:
    """An id as PostgreSQL can keep it: spelt as in the record, where no character is special."""
    return None if charge_id is None else json.dumps(charge_id)[1:-1]


__all__ = ["PostgresStore"]
