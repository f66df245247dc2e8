"""The budget's memory: append-only, hash-chained rows in a file or a database, which outlive their writer.

Each row carries the SHA-256 of the row before it and of its own canonical JSON, so an edit, a deletion or a
reordering inside the chain is found by walking it, and truncation, rollback or a fork by looking for a head
hash that was kept elsewhere (every global model carries one). An attacker who can write there can make a
new chain, but not one that holds an old head.

Opening it for writing appends a row with the next epoch, and every later write of an earlier writer is
refused. The rows are kept in a SQLite file, or in PostgreSQL where the path is a URL; the chain is the same.
A file's backup must be taken with SQLite's own ``.backup``: the newest rows may still stand in the ``-wal``
file beside it.

Guarantees:
    what_was_appended_is_found_again: After SIGKILL at any moment.
    any_edit_deletion_or_reordering_is_found: `verify` names the row.
    truncation_is_found_against_a_head_hash: So are rollback and fork.
    a_superseded_writer_is_refused: It writes nothing.
    a_charge_id_is_recorded_once: The second row is refused, not written.
    what_a_lost_commit_left_is_settled: Recorded or not, `settle` says which, and the writer goes on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from scarcity_ray.errors import LedgerCorrupted, LedgerError
from scarcity_ray.privacy.chain import NO_HASH, Row, canonical, parse, seal
from scarcity_ray.privacy.store import Store, address_of, create_store, open_store

_FORMAT = 1
_PAGE = 1000


class Ledger:
    """One federation's ledger in a file or in a database; made by `create`, `open` (to write) or `read`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.path
        self.epoch = 0
        self._doubt: Row | None = None
        first, last = store.page(0, 1), store.last()
        if not first or last is None or first[0].body.get("format") != _FORMAT:
            raise LedgerCorrupted(f"{self.path}: its first row is not a ledger's; bring back a backup")
        self.genesis = first[0]
        self._head, self._head_seq = last.hash, last.seq

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], federation_id: str, *, now: float, body: Mapping[str, Any]
    ) -> Ledger:
        """Make a new ledger and open it for writing.

        Args:
            path: Where, a file or a URL; a file's folder must exist, the ledger must not.
            federation_id: Whose.
            now: Seconds since 1970.
            body: What the genesis row states for good, plain data.

        Raises:
            LedgerError: If it exists already or cannot be made.
        """
        states = {**body, "federation_id": federation_id, "format": _FORMAT}
        address = address_of(path, federation_id)
        create_store(address, _sealed(NO_HASH, 0, "genesis", None, 0, now, states, b""))
        return cls.open(address, now=now)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, now: float) -> Ledger:
        """Verify the ledger at `path` and become its writer; the writer before is refused from now on.

        Raises:
            LedgerMissing: If it is not there.
            LedgerCorrupted: If the chain does not hold.
            LedgerError: If it cannot be opened.
        """
        ledger = cls._over(open_store(address_of(path), read_only=False))
        try:
            ledger.verify()
            with ledger._store.writing():
                last = ledger._last()
                ledger.epoch = last.epoch + 1
                ledger._chain(last, "writer", None, now, {"pid": os.getpid()}, b"")
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Ledger:
        """Open the ledger at `path` to look at it; its writer goes on undisturbed.

        Raises:
            LedgerMissing: If it is not there.
            LedgerCorrupted: If it is not a ledger.
            LedgerError: If it cannot be opened.
        """
        return cls._over(open_store(address_of(path), read_only=True))

    @classmethod
    def _over(cls, store: Store) -> Ledger:
        try:
            return cls(store)
        except BaseException:
            store.close()
            raise

    @property
    def federation_id(self) -> str:
        """Whose ledger it is."""
        return str(self.genesis.body["federation_id"])

    @property
    def head_hash(self) -> str:
        """The newest hash that this object wrote or found, as hexadecimal digits."""
        return self._head

    @property
    def head_seq(self) -> int:
        """The number of the row that has the head hash."""
        return self._head_seq

    def append(
        self,
        kind: str,
        *,
        now: float,
        body: Mapping[str, Any],
        charge_id: str | None = None,
        payload: bytes = b"",
    ) -> Row:
        """Add a row, on disk before this returns.

        Args:
            kind: What it records.
            now: Seconds since 1970.
            body: Plain data; infinities are written as ``"inf"``.
            charge_id: The charge's own name, if it is one.
            payload: Bytes that belong to it.

        Raises:
            LedgerError: If another writer has taken over, the charge id is there already, or the disk or the
                database fails. After such a failure `settle` finds out whether the row is there.
            UsageError: If `body` is not plain data.
        """
        with self._store.writing():
            last = self._last()
            if last.epoch != self.epoch or last.hash != self._head:
                raise self._superseded(last)
            return self._chain(last, kind, charge_id, now, body, payload)

    def settle(self) -> Row | None:
        """End the doubt that a failed `append` left: was its row recorded after all?

        Returns:
            The row if it was, once; None if it was not, or if there was no doubt. What is not there now never
            will be: whatever still worked on it has ended when this writer has the ledger to itself.

        Raises:
            LedgerError: If the ledger cannot be used now, or another writer has taken over.
        """
        doubt = self._doubt
        if doubt is None:
            return None
        with self._store.writing():
            last = self._last()
            recorded = last.hash == doubt.hash
            if recorded:
                self._store.confirm()
            elif last.hash != self._head:
                raise self._superseded(last)
        self._doubt = None
        if not recorded:
            return None
        self._head, self._head_seq = doubt.hash, doubt.seq
        return doubt

    def find(self, charge_id: str) -> Row | None:
        """The row of a charge, if it is recorded.

        Raises:
            LedgerError: If this is a writer that does not know of the row: another wrote it, or `settle` has
                yet to say that its own append was recorded.
        """
        row = self._store.find(charge_id)
        if row is not None and self.epoch > 0 and row.seq > self._head_seq:
            raise self._superseded(row)
        return row

    def rows(self, since: int = 0) -> Iterator[Row]:
        """The rows from number `since` on, oldest first, as they stand (`verify` checks them)."""
        while page := self._store.page(since, _PAGE):
            yield from page
            since = page[-1].seq + 1

    def verify(self, head_hash: str | None = None) -> str:
        """Walk the chain.

        Args:
            head_hash: A hash that this ledger once had as its head, kept elsewhere.

        Returns:
            The head hash.

        Raises:
            LedgerCorrupted: If a row was changed, removed or moved (the text names the row), or if
                `head_hash` is nowhere in the chain: it was cut, rolled back or replaced.
        """
        head, found = NO_HASH, head_hash is None
        for row in self.checked():
            head = row.hash
            found = found or head == head_hash
        if not found:
            raise LedgerCorrupted(
                f"{self.path}: no row has the hash {head_hash}: the ledger was cut, rolled back or replaced; "
                "bring back the newest backup"
            )
        return head

    def checked(self) -> Iterator[Row]:
        """The rows, oldest first, each after the chain up to it was found whole.

        Raises:
            LedgerCorrupted: If a row was changed, removed or moved (the text names the row).
        """
        previous, epoch = NO_HASH, 0
        for expected, row in enumerate(self.rows()):
            whole = row.hash == seal(previous, row.record, row.payload)
            if not whole or row.seq != expected or row.epoch < epoch:
                raise LedgerCorrupted(
                    f"{self.path}: the chain breaks at row {expected}: a row was changed, removed or moved; "
                    "bring back a backup that verifies against the newest global model's head hash"
                )
            previous, epoch = row.hash, row.epoch
            yield row

    def close(self) -> None:
        """Let go of it; the rows are durable already."""
        self._store.close()

    def _last(self) -> Row:
        row = self._store.last()
        if row is None:
            raise LedgerCorrupted(f"{self.path}: the ledger has lost all its rows; bring back a backup")
        return row

    def _superseded(self, row: Row) -> LedgerError:
        return LedgerError(
            f"{self.path}: the ledger has moved on without this writer (it is at epoch {row.epoch}, this "
            f"writer at {self.epoch}); nothing was written: stop, or open it anew"
        )

    def _chain(
        self,
        last: Row,
        kind: str,
        charge_id: str | None,
        now: float,
        body: Mapping[str, Any],
        payload: bytes,
    ) -> Row:
        row = _sealed(last.hash, last.seq + 1, kind, charge_id, self.epoch, now, body, payload)
        self._doubt = row
        self._store.commit(row)
        self._head, self._head_seq, self._doubt = row.hash, row.seq, None
        return row


def _sealed(
    previous: str,
    seq: int,
    kind: str,
    charge_id: str | None,
    epoch: int,
    at: float,
    body: Mapping[str, Any],
    payload: bytes,
) -> Row:
    record = canonical(seq, kind, charge_id, epoch, at, body)
    return parse(record, payload, bytes.fromhex(seal(previous, record, payload)))


__all__ = ["Ledger"]
