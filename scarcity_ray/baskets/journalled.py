"""How baskets are written to their actor's journal, and made again from it.

What is written is what the baskets have changed (`Unsaved`): accepted updates as a batch, what clients
brought along, the clients whose trust, gossip or local state has changed, as they would take it along to
another basket, and the latest aggregate. An aggregate is written in the transaction that drops the updates in
it; that it was handed in to a session, and that it is spent, before the answer leaves that says so.

To make a basket again, its batches are accepted once more, in order; a client's record is put between the
batches that it was written between. So a restarted basket has the same updates, keys, caps, trust, reports
and states, and judges the next update as the one that died would have.

Guarantees:
    a_basket_made_again_is_the_basket_that_was: But for its key, its refusals since its counts were last
        written, and messages of gossip that had not reached a client.
    an_update_in_an_aggregate_waits_no_more: Both are written at once, or neither.
    an_update_whose_bytes_were_changed_is_refused: By its digest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.baskets.basket import Basket, ClientMigration
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.latest_aggregate import AggregateRecord
from scarcity_ray.baskets.local_state import MetaReport
from scarcity_ray.baskets.receipt_book import Settled
from scarcity_ray.baskets.reports import BasketReport
from scarcity_ray.baskets.reputation import Reputation
from scarcity_ray.baskets.unsaved import Accepted, BasketCounts, Unsaved
from scarcity_ray.baskets.update_buffer import BufferedUpdate, ClientUpdates, JudgedUpdate, ReplayKey
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.gossip import GossipMessage, GossipMigration, GossipState
from scarcity_ray.layers.models import BasketModel, Placing
from scarcity_ray.plan import BasketFacts
from scarcity_ray.storage.codec import Codec
from scarcity_ray.storage.journal import VALUE_BYTES, Batch, Journal
from scarcity_ray.storage.sealing import Sealing
from scarcity_ray.updates import content_digest
from scarcity_ray_client.receipts import Fate, ReceiptBatch

if TYPE_CHECKING:
    from scarcity_ray.storage.postgres_journal import PostgresJournal

DIGEST_BYTES = 32
HOST = ""
"""Stands for the actor itself among the names of baskets, of which none is empty."""


@dataclass(frozen=True, eq=False)
class AcceptedColumns:
    """What a batch's updates have beside their numbers: one entry each; None for a column of Nones.

    Attributes:
        digests: uint8, 32 for each.
        receipts: Keys of the receipts for them, uint8, 32 for each; None without receipts.
    """

    clients: tuple[str, ...]
    rounds: tuple[int, ...]
    digests: NDArray[np.uint8]
    times: tuple[float, ...]
    sequences: tuple[int | None, ...] | None
    num_examples: tuple[int | None, ...] | None
    reports: tuple[MetaReport | None, ...] | None
    receipts: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class ClientRecord:
    """A client's state, without its updates.

    Attributes:
        number: Of the last batch before it.
        round_id: The basket's round then.
    """

    number: int
    round_id: int
    carried: ClientMigration


_codec = Codec(
    AcceptedColumns,
    AggregateRecord,
    BasketCounts,
    BasketFacts,
    BasketModel,
    BasketReport,
    ClientMemory,
    ClientMigration,
    ClientRecord,
    ClientUpdates,
    BufferedUpdate,
    Fate,
    GossipMessage,
    GossipMigration,
    GossipState,
    OrderNumber,
    Placing,
    ReceiptBatch,
    ReplayKey,
    Reputation,
    Settled,
)


class BasketJournal:
    """The journal of one actor's baskets.

    Args:
        keeps_states: Whether local states are used after their updates have gone into an aggregate: with
            gossip, and without Layer 2.
        sealing: Of what is written.
    """

    def __init__(
        self, journal: Journal | PostgresJournal, keeps_states: bool, sealing: Sealing | None = None
    ) -> None:
        self._journal = journal
        self._sealing = sealing or Sealing()
        self._keeps_states = keeps_states
        self._own: dict[tuple[str, str], object] = {}
        self._forgotten: list[str] = []
        self._oldest_round: int | None = None

    def keep(self, kind: str, name: str, value: object) -> None:
        """Have a record of the actor's own written with the next `save`; None removes it."""
        self._own[kind, name] = value

    def kept(self, kind: str) -> dict[str, Any]:
        """The actor's own records of a kind, by name."""
        found = self._journal.records(HOST, kind)
        return {name: self._unpack(value, HOST, kind, name) for name, value in found.items()}

    def names(self, kind: str) -> tuple[str, ...]:
        """The names of the actor's own records of a kind."""
        return tuple(self._journal.records(HOST, kind))

    def forget(self, basket_id: str) -> None:
        """Have a basket that has closed dropped with the next `save`."""
        self._forgotten.append(basket_id)

    def forget_before(self, round_id: int) -> None:
        """Have what only earlier rounds need dropped with the next `save`."""
        self._oldest_round = round_id

    def baskets(self) -> tuple[str, ...]:
        """The baskets of which anything is here."""
        return self._journal.baskets()

    def save(self, baskets: Iterable[Basket], *, sync: bool = True) -> None:
        """Write all changes in one transaction.

        Args:
            sync: See `Journal.writing`.

        Raises:
            StorageError: If it cannot be written. Then nothing is, and the baskets must be made again.
        """
        changed = [basket for basket in baskets if _has_changed(basket)]
        if not (changed or self._own or self._forgotten or self._oldest_round is not None):
            return
        own, forgotten, oldest = self._own, self._forgotten, self._oldest_round
        self._own, self._forgotten, self._oldest_round = {}, [], None
        with self._journal.writing(sync=sync):
            for (kind, name), value in own.items():
                packed = None if value is None else self._pack(value, HOST, kind, name)
                self._journal.put(HOST, kind, name, packed)
            for basket_id in forgotten:
                self._journal.forget_basket(basket_id)
            for basket in changed:
                self._write(basket)
            if oldest is not None:
                self._journal.forget_before(oldest)
        for basket in changed:
            basket.unsaved = Unsaved()

    def restore(self, basket: Basket) -> frozenset[str]:
        """Give a new basket all that it had; the clients that any of it is of.

        Raises:
            StorageError: If the journal is torn.
        """
        basket.unsaved = None
        left = {c: int(n) for c, n in self._journal.records(basket.basket_id, "left").items()}
        found = self._journal.records(basket.basket_id, "client").items()
        carried = (self._unpack(value, basket.basket_id, "client", name) for name, value in found)
        records = sorted(carried, key=lambda record: record.number)
        counts = self.counts(basket.basket_id)
        since, known = Counter[str](), set[str]()
        for batch in self._journal.batches(basket.basket_id):
            while records and records[0].number < batch.number:
                known.add(_put(basket, records.pop(0)))
            columns = self._unpack(batch.columns, basket.basket_id, batch.number, "columns")
            known.update(c for c in columns.clients if batch.number > left.get(c, 0))
            self._accept_again(basket, batch, columns, left)
            if counts is None or batch.number > counts.number:
                since["accepted"] += len(columns.clients)
        known.update(_put(basket, record) for record in records)
        aggregate = self._unpacked(basket.basket_id, "aggregate")
        if aggregate is not None:
            basket.latest.restore(aggregate)
            known.update(aggregate.contributors if aggregate.is_fresh else ())
        basket.settle(counts, since)
        basket.unsaved = Unsaved()
        return frozenset(known)

    def counts(self, basket_id: str) -> BasketCounts | None:
        """A basket's counts as they were last written; None if they never were."""
        counts: BasketCounts | None = self._unpacked(basket_id, "counts")
        return counts

    def told(self) -> None:
        """See `Journal.told`."""
        self._journal.told()

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _write(self, basket: Basket) -> None:
        journal, name, unsaved = self._journal, basket.basket_id, basket.unsaved or Unsaved()
        if unsaved.has_consumed:
            journal.consume(name)
            journal.forget_kind(name, "left")
        self._append(name, unsaved.accepted)
        for arrived in unsaved.arrived:
            self._append(name, [_accepted(update) for update in arrived.updates])
            self._remember(name, arrived.accepted)
        number = journal.last_number()
        for client_id in sorted(unsaved.gone):
            journal.put(name, "left", client_id, str(number).encode())
            journal.put(name, "client", client_id, None)
        for client_id in sorted(unsaved.clients & basket.members.keys()):
            carried = basket.carried(client_id)
            if not self._keeps_states:
                carried = replace(carried, local_state=None)
            record = ClientRecord(number, basket.round_id, carried)
            journal.put(name, "client", client_id, self._pack(record, name, "client", client_id))
        if basket.latest.is_unsaved:
            journal.put(name, "aggregate", "", self._pack(basket.latest.record(), name, "aggregate", ""))
        if unsaved != Unsaved(accepted=unsaved.accepted):
            journal.put(name, "counts", "", self._pack(basket.counts(number), name, "counts", ""))

    def _append(self, basket_id: str, accepted: Sequence[Accepted]) -> None:
        if not accepted:
            return
        most = max(1, VALUE_BYTES // accepted[0].judged.update.nbytes)
        if len(accepted) > most:
            for start in range(0, len(accepted), most):
                self._append(basket_id, accepted[start : start + most])
            return
        judged = [update.judged for update in accepted]
        rows = b"".join(np.ascontiguousarray(j.update, "<f4").data for j in judged)
        reports = tuple(update.report for update in accepted)
        columns = _columns(
            [j.key for j in judged],
            [update.time for update in accepted],
            [j.num_examples for j in judged],
            reports if any(report is not None for report in reports) else None,
            b"".join(j.receipt for j in judged) if all(j.receipt for j in judged) else b"",
        )
        newest, number = max(j.round_id for j in judged), self._journal.last_number() + 1
        packed = self._pack(columns, basket_id, number, "columns")
        self._journal.append(basket_id, newest, packed, self._sealing.seal(rows, basket_id, number, "rows"))

    def _remember(self, basket_id: str, keys: Collection[ReplayKey]) -> None:
        if keys:
            columns = _columns(list(keys), [0.0] * len(keys), [None] * len(keys), None)
            newest, number = max(key.round_id for key in keys), self._journal.last_number() + 1
            self._journal.append(basket_id, newest, self._pack(columns, basket_id, number, "columns"), None)

    def _accept_again(
        self, basket: Basket, batch: Batch, columns: AcceptedColumns, left: Mapping[str, int]
    ) -> None:
        clients = columns.clients
        digests = columns.digests.reshape(len(clients), DIGEST_BYTES)
        place = basket.basket_id, batch.number, "rows"
        held = None if batch.rows is None else self._opened(batch.rows, *place)
        rows = None if held is None else np.frombuffer(held, "<f4").reshape(len(clients), -1)
        for i, client_id in enumerate(clients):
            sequence = None if columns.sequences is None else columns.sequences[i]
            key = ReplayKey(client_id, columns.rounds[i], digests[i].tobytes(), sequence)
            if rows is None or batch.number <= left.get(client_id, 0):
                basket.remember(key)
                continue
            row = np.array(rows[i], np.float32)
            row.setflags(write=False)
            if content_digest(row) != key.digest:
                raise self._journal.torn(f"an update of client {client_id!r} has another digest")
            examples = None if columns.num_examples is None else columns.num_examples[i]
            report = None if columns.reports is None else columns.reports[i]
            part = slice(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES)
            receipt = b"" if columns.receipts is None else columns.receipts[part].tobytes()
            judged = JudgedUpdate(client_id, row, key.round_id, key.digest, sequence, examples, receipt)
            basket.accept(Accepted(judged, report, columns.times[i]))

    def _pack(self, value: object, *place: str | int) -> bytes:
        return self._sealing.seal(_codec.pack(value), *place)

    def _unpack(self, kept: bytes, *place: str | int) -> Any:
        return _codec.unpack(self._opened(kept, *place))

    def _opened(self, kept: bytes, *place: str | int) -> bytes:
        try:
            return self._sealing.open(kept, *place)
        except ValueError as error:
            raise self._journal.torn(str(error)) from None

    def _unpacked(self, basket_id: str, kind: str) -> Any:
        value = self._journal.records(basket_id, kind).get("")
        return None if value is None else self._unpack(value, basket_id, kind, "")


def _has_changed(basket: Basket) -> bool:
    return basket.latest.is_unsaved or basket.unsaved != Unsaved()


def _accepted(update: BufferedUpdate) -> Accepted:
    """A buffered update that came with its client; its key, with the client's own number, comes apart."""
    digest = content_digest(update.update)
    judged = JudgedUpdate(
        update.client_id,
        update.update,
        update.round_id,
        digest,
        num_examples=update.num_examples,
        receipt=update.receipt,
    )
    return Accepted(judged, None, update.timestamp)


def _columns(
    keys: list[ReplayKey],
    times: list[float],
    examples: list[int | None],
    reports: tuple[MetaReport | None, ...] | None,
    receipts: bytes = b"",
) -> AcceptedColumns:
    sequences = tuple(key.sequence for key in keys)
    return AcceptedColumns(
        tuple(key.client_id for key in keys),
        tuple(key.round_id for key in keys),
        np.frombuffer(b"".join(key.digest for key in keys), np.uint8),
        tuple(times),
        None if all(number is None for number in sequences) else sequences,
        None if all(number is None for number in examples) else tuple(examples),
        reports,
        np.frombuffer(receipts, np.uint8) if receipts else None,
    )


def _put(basket: Basket, record: ClientRecord) -> str:
    """Give a client its state again, but for a local state that a later round has formed anew."""
    carried = record.carried
    if basket.forms_anew(carried.client_id, record.round_id):
        carried = replace(carried, local_state=None)
    basket.put(carried)
    return carried.client_id
