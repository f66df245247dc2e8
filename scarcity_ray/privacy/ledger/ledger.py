"""The durable record of a budget: append-only, hash-chained rows in a file or a database.

Each row carries the SHA-256 of the row before it and of its own canonical JSON. So walking the chain finds an
edit, a deletion or a reordering, and looking for a head hash that was kept elsewhere (every global model
carries one) finds truncation, rollback or a fork. An attacker who can write to the ledger can make a new
chain, but not one that holds an old head.

A process that opens the ledger for writing appends a row with the next epoch, and every later write of an
earlier writer is refused. So that this does not happen by accident, a writer also holds a lock, which the
operating system or the database's server releases when its process ends. To open a ledger whose lock is held,
a caller must ask to take it over. The accountant of a federation that comes back need not ask: it is known by
its incarnation, the number of times that a federation was opened on this ledger. Clients sign their updates
for the opening's run, a random number, because a count would recur when a backup is restored.

A ledger has a random id, made with it and kept in its first row. A ledger from before there were such ids is
given one by the first writer of a newer version.

The rows are kept in a SQLite file, or in PostgreSQL where the path is a URL; the chain is the same. A file's
backup must be taken with SQLite's own ``.backup``, as the newest rows may still be in the ``-wal`` file
beside it.

Guarantees:
    what_was_appended_is_found_again: After SIGKILL at any moment.
    any_edit_deletion_or_reordering_is_found: `verify` names the row.
    truncation_is_found_against_a_head_hash: So are rollback and fork.
    a_superseded_writer_is_refused: It writes nothing.
    a_living_holder_is_superseded_on_purpose_only: By `take_over`, or by its own federation coming back.
    a_dead_holder_blocks_nobody: Whatever killed it.
    each_opening_of_a_federation_has_a_number_of_its_own: The incarnation, recorded before it is used.
    each_opening_of_a_federation_has_a_random_run: Which no backup that is brought back makes recur.
    the_operators_key_is_kept: From the first opening that states one; another, or none, is refused then.
    a_forked_child_writes_nothing: Its parent would no longer know the ledger.
    a_charge_id_is_recorded_once: The second row is refused, not written.
    what_a_lost_commit_left_is_settled: Recorded or not, `settle` says which, and the writer goes on.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypedDict

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerHeld, LedgerRolledBack, LedgerTakenOver
from scarcity_ray.privacy.ledger.chain import NO_HASH, NO_OLDER_COPY, Row, seal, sealed
from scarcity_ray.privacy.ledger.events import Event, Genesis, WriterEpoch
from scarcity_ray.privacy.ledger.holder import Standing, in_utc
from scarcity_ray.privacy.ledger.store import Store, address_of, create_store, open_store

DYING_SECONDS = 5.0
"""How long to wait for a holder that may be dying, before it is taken to be alive."""
_POLL_SECONDS = 0.05
ANY_KEY = "any"
"""The operator's key where a ledger is opened without a configuration, at a terminal: none is checked."""
_PAGE = 1000
_RUN_BITS = 63


class Opening(TypedDict, total=False):
    """The arguments of `Ledger.open` that say who opens the ledger, and with what right."""

    name: str | None
    incarnation: int | None
    take_over: bool
    known_heads: Mapping[str, str] | None
    operator: str | None
    operator_key: str | None


class Ledger:
    """One federation's ledger in a file or in a database; made by `create`, `open` (to write) or `read`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.path = store.path
        self.epoch = 0
        self.doubt: Row | None = None
        first, last = store.page(0, 1), store.last()
        if not first or last is None or not isinstance(first[0].event, Genesis):
            raise LedgerCorrupted(f"{self.path}: its first row is not a ledger's; {NO_OLDER_COPY}")
        self.genesis, self.created = first[0].event, first[0].at
        self._first_hash = first[0].hash
        self._standing: Standing | None = None
        self._pid = os.getpid()
        self._head, self._head_seq = last.hash, last.seq

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        genesis: Genesis,
        *,
        now: float,
        operator_key: str | None = ANY_KEY,
    ) -> Ledger:
        """Make a new ledger at a file or a URL, and open it for writing as `open` does.

        Args:
            path: A file's folder must exist, the ledger must not.
            genesis: Its first row; without a federation's id a random one is made.

        Raises:
            LedgerError: If it exists already or cannot be made.
        """
        genesis = replace(genesis, federation_id=genesis.federation_id or secrets.token_hex(16))
        address = address_of(path, genesis.name)
        create_store(address, sealed(NO_HASH, 0, genesis, None, 0, now))
        return cls.open(address, now=now, name=genesis.name, operator_key=operator_key)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        now: float,
        name: str | None = None,
        incarnation: int | None = None,
        take_over: bool = False,
        known_heads: Mapping[str, str] | None = None,
        operator: str | None = None,
        operator_key: str | None = ANY_KEY,
    ) -> Ledger:
        """Verify the ledger at `path` and become its writer; the writer before is refused from now on.

        Args:
            now: Seconds since 1970.
            name: What people call the federation that opens it, if it has a name.
            incarnation: Of the federation whose accountant comes back, which opens its own ledger again, held
                or not; None where a federation is opened.
            take_over: Whether to take it from a living holder.
            known_heads: Hashes that were its head at some time, each with who says so.
            operator: Who takes it over, to be recorded.
            operator_key: The configured public key whose holder must sign renewals, in hexadecimal digits;
                None: none is configured. A ledger keeps the first one that it is opened with.

        Raises:
            LedgerMissing: If it is not there.
            LedgerRolledBack: If a known head is not in it, or the incarnation that comes back.
            LedgerCorrupted: If the chain does not hold.
            LedgerHeld: If a living process holds it.
            LedgerTakenOver: If another federation was opened on it since the one that comes back.
            LedgerError: If it is another federation's by name, keeps another operator's key, or cannot be
                opened.
        """
        ledger = cls._over(open_store(address_of(path, name), read_only=False))
        try:
            standing = ledger.survey(known_heads)
            if None not in (name, standing.name) and name != standing.name:
                raise LedgerError(
                    f"{ledger.path}: this ledger is of federation {standing.name!r}, not {name!r}; give each "
                    "federation its own ledger_path"
                )
            tries = int(DYING_SECONDS / _POLL_SECONDS)
            while not ledger._take_up(standing, now, name, incarnation, take_over, operator, operator_key):
                tries -= 1
                holder = standing.holder
                if (holder is not None and holder.is_this_process) or tries <= 0:
                    raise LedgerHeld(
                        f"{ledger.path}: the ledger is held by {holder}, which lives; end that federation "
                        "(close() or terminate()), or give this one a ledger of its own; to end the other's "
                        "charging for good, take the ledger over (take_over_ledger=True, or scarcity-ray "
                        "ledger take-over)"
                    )
                time.sleep(_POLL_SECONDS)
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
    def standing(self) -> Standing:
        """The federation and the last writer: as they were when this writer opened it, or as read now."""
        return self._standing or self._extended(Standing(), self.rows())

    @property
    def federation_id(self) -> str:
        """The federation's random id."""
        return self.standing.federation_id

    def is_held(self) -> bool | None:
        """Whether its last writer lives and holds it; None if nobody can tell."""
        return self._store.is_held(self._hold(self._last().epoch))

    @property
    def head_hash(self) -> str:
        """The newest hash that this object wrote or found, as hexadecimal digits."""
        return self._head

    @property
    def head_seq(self) -> int:
        """The number of the row that has the head hash."""
        return self._head_seq

    def append(self, event: Event, *, now: float, charge_id: str | None = None) -> Row:
        """Record an event, on disk before this returns.

        Args:
            event: Its details must be plain data; infinities are written as ``"inf"``.
            charge_id: The charge's own name, if it is one.

        Raises:
            LedgerError: If another writer has taken over, the charge id is there already, this process is a
                child that the writer's forked, or the disk or the database fails. After such a failure
                `settle` finds out whether the row is there.
            UsageError: If the event's details are not plain data.
        """
        if os.getpid() != self._pid:
            raise LedgerError(
                f"{self.path}: process {self._pid} opened the ledger and this is {os.getpid()}, a child that "
                "was forked from it; nothing was written: let the parent charge"
            )
        with self._store.writing():
            last = self._last()
            if last.epoch != self.epoch or last.hash != self._head:
                raise self._moved_on(last)
            return self._chain(last, event, charge_id, now)

    def settle(self) -> Row | None:
        """Find out whether a failed `append` recorded its row after all.

        Returns:
            The row if it was recorded, once; None if it was not, or if no append has failed. A row that is
            not there now never will be: in its write transaction this writer has the ledger to itself.

        Raises:
            LedgerError: If the ledger cannot be used now, or another writer has taken over.
        """
        doubt = self.doubt
        if doubt is None:
            return None
        with self._store.writing():
            last = self._last()
            recorded = last.hash == doubt.hash
            if recorded:
                self._store.confirm()
            elif last.hash != self._head:
                raise self._moved_on(last)
        self.doubt = None
        if not recorded:
            return None
        self._head, self._head_seq = doubt.hash, doubt.seq
        return doubt

    def look(self) -> None:
        """Check that this writer was not superseded, where checking is cheap.

        Raises:
            LedgerError: As `append`.
        """
        last = self._store.glance()
        doubt = None if self.doubt is None else self.doubt.hash
        if last is not None and last.hash not in (self._head, doubt):
            raise self._moved_on(last)

    def find(self, charge_id: str) -> Row | None:
        """The row of a charge, if it is recorded.

        Raises:
            LedgerError: If this is a writer that does not know of the row: another wrote it, or `settle` has
                yet to say that its own append was recorded.
        """
        row = self._store.find(charge_id)
        if row is not None and self.epoch > 0 and row.seq > self._head_seq:
            raise self._moved_on(row)
        return row

    def rows(self, since: int = 0) -> Iterator[Row]:
        """The rows from number `since` on, oldest first, as they stand (`verify` checks them)."""
        while page := self._store.page(since, _PAGE):
            yield from page
            since = page[-1].seq + 1

    def verify(self, head_hash: str | None = None) -> str:
        """Walk the chain as `survey` does, look for an earlier head hash, and return the newest one."""
        return self.survey({} if head_hash is None else {head_hash: "whoever kept it"}).hash

    def survey(self, known_heads: Mapping[str, str] | None = None) -> Standing:
        """Walk the chain, and say whose the ledger is and who opened it last.

        Args:
            known_heads: Hashes that were its head at some time, each with who says so.

        Raises:
            LedgerCorrupted: If a row was changed, removed or moved (the text names the row).
            LedgerRolledBack: If a known head is nowhere in the chain: it was cut, rolled back or replaced.
        """
        missing = dict(known_heads or {})
        standing = Standing()
        for row in self.checked():
            missing.pop(row.hash, None)
            standing.note(row)
        for head, witness in missing.items():
            raise LedgerRolledBack(
                f"{self.path}: no row has the hash {head}, which {witness} knows as this ledger's: the "
                f"ledger was cut, rolled back or replaced, and ends at row {standing.seq}; {NO_OLDER_COPY}"
            )
        return standing

    def checked(self, after: Standing | None = None) -> Iterator[Row]:
        """The rows, oldest first, each given once the chain up to it was checked.

        Args:
            after: Up to where it was checked before.

        Raises:
            LedgerCorrupted: If a row was changed, removed or moved (the text names the row).
        """
        start = after or Standing()
        seq, previous, epoch = start.seq, start.hash, start.epoch
        for expected, row in enumerate(self.rows(seq + 1), seq + 1):
            whole = row.hash == seal(previous, row.record, row.payload)
            if not whole or row.seq != expected or row.epoch < epoch:
                raise LedgerCorrupted(
                    f"{self.path}: the chain breaks at row {expected}: a row was changed, removed or moved; "
                    f"{NO_OLDER_COPY}"
                )
            previous, epoch = row.hash, row.epoch
            yield row

    def close(self) -> None:
        """Let go of it; the rows are durable already."""
        self._store.close()

    def _last(self) -> Row:
        row = self._store.last()
        if row is None:
            raise LedgerRolledBack(f"{self.path}: the ledger has lost all its rows; {NO_OLDER_COPY}")
        return row

    def _take_up(
        self,
        standing: Standing,
        now: float,
        name: str | None,
        incarnation: int | None,
        take_over: bool,
        operator: str | None,
        operator_key: str | None,
    ) -> bool:
        """Become the writer after all that stands in the ledger now; False if a living process holds it."""
        with self._store.writing():
            self._extended(standing, self.checked(standing))
            last = self._last()
            if last.hash != standing.hash:
                raise LedgerCorrupted(f"{self.path}: its rows do not end where they do; {NO_OLDER_COPY}")
            if operator_key != ANY_KEY and standing.operator_key not in (None, operator_key):
                raise LedgerError(_other_key(self.path, standing.operator_key, operator_key))
            comes_back = incarnation is not None
            if incarnation is not None and incarnation < standing.incarnation:
                raise LedgerTakenOver(_taken_over(self.path, standing))
            if incarnation is not None and incarnation > standing.incarnation:
                raise LedgerRolledBack(
                    f"{self.path}: a federation was opened {incarnation} times here, and the ledger knows of "
                    f"{standing.incarnation}: it was cut, rolled back or replaced; {NO_OLDER_COPY}"
                )
            before, own = self._hold(standing.epoch), self._hold(standing.epoch + 1)
            if not self._store.hold(before, own, forced=take_over or comes_back):
                return False
            states_key = standing.operator_key is None and operator_key != ANY_KEY
            event = WriterEpoch(
                pid=os.getpid(),
                host=socket.gethostname(),
                name=name,
                incarnation=standing.incarnation + (0 if comes_back else 1),
                run=standing.run if comes_back else secrets.randbits(_RUN_BITS),
                operator_key=operator_key if states_key else None,
                operator=operator,
                federation_id=None if standing.has_random_id else secrets.token_hex(16),
            )
            self.epoch = standing.epoch + 1
            standing.note(self._chain(last, event, None, now))
        self._standing = standing
        return True

    def _hold(self, epoch: int) -> str:
        return f"{self._first_hash}/{epoch}"

    def _moved_on(self, row: Row) -> LedgerError:
        """Why this writer, which found `row` at the end, or after its own rows, writes no more."""
        if self.epoch == 0:
            return LedgerError(f"{self.path}: the ledger was opened to be read; nothing was written")
        if row.epoch > self.epoch:
            return LedgerTakenOver(_taken_over(self.path, self._extended(Standing(), self.rows())))
        if row.seq > self._head_seq:
            return LedgerError(f"{self.path}: its last row is not known to be written; call settle() first")
        return LedgerRolledBack(
            f"{self.path}: the ledger ends at row {row.seq} with another hash than this writer left at row "
            f"{self._head_seq}: it was cut, rolled back or replaced; nothing was written: {NO_OLDER_COPY}"
        )

    @staticmethod
    def _extended(standing: Standing, rows: Iterable[Row]) -> Standing:
        for row in rows:
            standing.note(row)
        return standing

    def _chain(self, last: Row, event: Event, charge_id: str | None, now: float) -> Row:
        row = sealed(last.hash, last.seq + 1, event, charge_id, self.epoch, now)
        self.doubt = row
        self._store.commit(row)
        self._head, self._head_seq, self.doubt = row.hash, row.seq, None
        return row


def _other_key(path: object, kept: str | None, configured: str | None) -> str:
    has = "has no operator_key" if configured is None else f"has operator_key {configured!r}"
    return (
        f"{path}: renewals of this ledger are signed by the holder of {kept}, the key that it keeps, and the "
        f"configuration {has}; configure operator_key = {kept!r} (a ledger's key cannot be changed), or "
        "start another federation"
    )


def _taken_over(path: object, standing: Standing) -> str:
    holder = standing.holder
    since = "" if holder is None else f" at {in_utc(holder.since)}"
    return (
        f"{path}: the ledger has moved on without this writer: it was taken over{since} by {holder}; nothing "
        "is charged here any more, nothing may be released: end this federation, the other one goes on"
    )
