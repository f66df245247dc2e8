"""A ledger in PostgreSQL: rows that outlive the node of their writer.

All federations of a database share the table ``scarcity_ray.ledger``, each with rows of its own. A write is
one transaction: take the federation's advisory lock, check that a commit will be on disk when it returns,
read the newest row, insert the next one, commit. So two writers never interleave, and a successor waits until
its predecessor's transaction is over. If the connection is lost in a commit, the next transaction finds the
row, or it never will be there.

Guarantees:
    one_living_connection_holds_a_federations_rows: By an advisory lock that the server ends with it. A pooler
        that gives a connection to several clients cannot tell a dead holder from a living one.
    rows_cannot_be_changed_by_accident: A trigger refuses UPDATE, DELETE and TRUNCATE, to their owner too.
    a_password_is_in_no_error: Nor in any row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import LiteralString

import psycopg
from psycopg import errors

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing, UsageError
from scarcity_ray.ledger_url import LedgerUrl
from scarcity_ray.postgres import Contents, PostgresConnection
from scarcity_ray.privacy.ledger.chain import NO_OLDER_COPY, Row, read_back

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

_GRANT = "grant this user USAGE on schema scarcity_ray, and SELECT and INSERT on scarcity_ray.ledger"


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
        self._server = PostgresConnection(address, _LEDGER, read_only=read_only)
        try:
            self.path = address.of(_federation(self._server, address))
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
        server = PostgresConnection(address, _LEDGER, read_only=False)
        try:
            with server.transaction(_LEDGER.lock("")):
                if not server.has_table("ledger"):
                    server.execute(_DEFINITIONS)
                try:
                    server.execute(_INSERT, _values(address, first))
                except errors.UniqueViolation:
                    raise LedgerError(f"{address}: a ledger is there already; open it instead") from None
                server.commit()
        finally:
            server.close()

    def hold(self, before: str, own: str, *, forced: bool) -> bool:
        """Take the lock `own`, if the lock `before` is free or `forced`; whether it was taken.

        Each writer has a lock of its own, so that one that lives keeps nobody from taking over.
        """
        is_free = not self.is_held(before)
        return (is_free or forced) and (self._server.hold(_LEDGER.lock(own)) or forced)

    def is_held(self, hold: str) -> bool | None:
        """Whether a connection has the lock `hold`."""
        lock = _LEDGER.lock(hold)
        is_free = self._server.try_lock(lock)
        if is_free:
            self._server.unlock(lock)
        return not is_free

    def glance(self) -> Row | None:
        """None: asking the server is not cheap, so it is asked only when there is something to record."""
        return None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One write transaction against all other writers; rolled back unless `commit` was called in it."""
        with self._server.transaction(_LEDGER.lock(self.path.federation or "")):
            yield

    def commit(self, row: Row) -> None:
        """Insert `row` and commit; it is on the server's disk, and its standbys', when this returns.

        Raises:
            LedgerError: If its charge id is recorded already, or the server did not confirm the commit.
        """
        try:
            self._server.execute(_INSERT, _values(self.path, row))
        except errors.UniqueViolation as error:
            known = f"charge {row.charge_id!r}" if "ledger_charges" in str(error) else f"row {row.seq}"
            raise LedgerError(f"{self.path}: {known} is recorded already") from None
        self._server.commit()

    def confirm(self) -> None:
        """Commit an empty message, which makes all earlier commits durable too."""
        self._server.execute("SELECT pg_logical_emit_message(true, 'scarcity_ray', 'settled')")
        self._server.commit()

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
        self._server.close()

    def _select(self, clause: LiteralString, *parameters: object) -> list[Row]:
        found = self._server.ask(_ROWS + clause, [self.path.federation, *parameters])
        return [read_back(self.path, stored, _plain) for stored in found]


def _federation(server: PostgresConnection, address: LedgerUrl) -> str:
    """The federation whose rows `address` means.

    Raises:
        LedgerMissing: If there are none.
        UsageError: If the address names none and there are several.
    """
    wanted = address.federation
    known: list[str] = []
    if server.has_table("ledger"):
        query: LiteralString = (
            "SELECT federation FROM scarcity_ray.ledger WHERE coalesce(federation = %s, seq = 0) "
            "GROUP BY federation ORDER BY federation"
        )
        known = [name for (name,) in server.ask(query, [wanted])]
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


def _plain(charge_id: str | None) -> str | None:
    """An id in characters that PostgreSQL can store: as in the record's JSON, with escapes."""
    return None if charge_id is None else json.dumps(charge_id)[1:-1]


def _explain(url: LedgerUrl, error: psycopg.Error, text: str) -> LedgerError:
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


_LEDGER = Contents("ledger", ("ledger",), LedgerError, _explain)
"""Its locks: a federation's, by name; '' for the making of ledgers; a writer's hold."""
