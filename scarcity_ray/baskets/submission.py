"""Updates as a driver sends them to the baskets, with their signatures, and the receipts for them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.baskets.update_buffer import JudgedUpdate
from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import IdentityKeyPair
from scarcity_ray.updates import (
    Rejection,
    SigningScope,
    UpdateStatement,
    canonical_report,
    content_digest,
    read_row,
    update_message,
)
from scarcity_ray_client.receipts import ReceiptBatch, SignedReceipt

T = TypeVar("T")

STACKED_BYTES = 1 << 16
"""Longer updates are sent as they lie: a copy costs more than a message's part of its own."""
JOINED = "<f4+report"
"""The dtype in the signed statement of a row that ends in its client's report: no array has it."""


VIEW_BYTES = 1 << 16
"""From here on a row is sent as it lies in its matrix: to gather a basket's rows would copy each again."""


@dataclass(frozen=True)
class Receipt:
    """The answer to a client's update; true if it was accepted.

    Attributes:
        accepted: As `BasketBuffer.accept` defines it.
        reason: Why not; None if accepted.
        basket_id: The basket that judged it; None if the client is not known.
        round_id: The round that it was sent for.
        batch: With ``receipts: true``, the signed receipts among which the one for it is.
        place: Where it is there.
    """

    accepted: bool
    reason: Rejection | None
    basket_id: str | None
    round_id: int
    batch: ReceiptBatch | None = field(default=None, compare=False, repr=False)
    place: int = field(default=0, compare=False, repr=False)

    def __bool__(self) -> bool:
        return self.accepted

    def signed(self) -> SignedReceipt | None:
        """The signed receipt, for the client's file (docs/receipts.md); None without ``receipts: true``."""
        return None if self.batch is None else self.batch[self.place]


@dataclass(frozen=True, eq=False)
class StoredRow:
    """An update that lies in a runtime's object store, on its way from where it was made to its basket.

    Attributes:
        reference: The runtime's, of an array (n, d), or (n, d + k) with reports.
        digest: `updates.content_digest`, made beside the update: what is signed for it.
        index: Which row of it.
    """

    reference: Any
    digest: bytes
    index: int = 0


@dataclass(frozen=True, eq=False)
class Submission:
    """One update as it reaches its basket.

    Attributes:
        update: An array of numbers, or why it is none. The basket sees no `StoredRow`.
        round_id: The round that it was made for; None is the current one; anything but an integer is refused.
        signature: Ed25519 signature of `updates.update_message`, if the client registered a key.
        meta: The client's report of meta-parameters.
        sequence: The client's own number for it, unique within the round.
        num_examples: Training examples behind it.
        is_joined: Whether the report came in the update's row, as in `SubmissionBatch.has_reports`.
    """

    client_id: str
    update: NDArray[Any] | Rejection | StoredRow
    round_id: object = None
    signature: bytes | None = None
    meta: Mapping[str, float] | None = None
    sequence: object = None
    num_examples: object = None
    is_joined: bool = False


@dataclass(frozen=True, eq=False)
class SubmissionBatch:
    """Updates of many clients, one a row; the columns are as in `Submission`, or None.

    Attributes:
        rows: (n, d) array, which is fastest, or one entry for each update.
        round_id: The same for all.
        has_reports: Whether each row ends in its client's report: a number for each declared meta-parameter
            in the order of the configuration, NaN for none. So a report that lies in the object store comes
            to its basket unseen, and a signature of the row covers it.
    """

    client_ids: tuple[str, ...]
    rows: NDArray[Any] | tuple[NDArray[Any] | Rejection | StoredRow, ...]
    round_id: object = None
    signatures: tuple[bytes | None, ...] | None = None
    meta: tuple[Mapping[str, float] | None, ...] | None = None
    sequences: tuple[object, ...] | None = None
    num_examples: tuple[object, ...] | None = None
    has_reports: bool = False

    def take(self, indices: Sequence[int]) -> SubmissionBatch:
        """The updates at `indices`, in that order; long rows of an array are views of it."""
        if list(indices) == list(range(len(self.client_ids))):
            return self
        rows = self.rows
        if isinstance(rows, np.ndarray) and rows[:1].nbytes < VIEW_BYTES:
            taken: NDArray[Any] | tuple[NDArray[Any] | Rejection | StoredRow, ...] = rows[list(indices)]
        else:
            taken = tuple(rows[i] for i in indices)
        return SubmissionBatch(
            tuple(self.client_ids[i] for i in indices),
            taken,
            self.round_id,
            _taken(self.signatures, indices),
            _taken(self.meta, indices),
            _taken(self.sequences, indices),
            _taken(self.num_examples, indices),
            self.has_reports,
        )

    def fetched(self, get: Callable[[Any], Any]) -> SubmissionBatch:
        """The batch with its rows here; one that is lost is no row of numbers any more."""
        if isinstance(self.rows, np.ndarray):
            return self
        stored = {id(row.reference): row.reference for row in self.rows if isinstance(row, StoredRow)}
        arrays = {key: get(reference) for key, reference in stored.items()}
        rows = [_row(row, arrays) if isinstance(row, StoredRow) else row for row in self.rows]
        return replace(self, rows=tuple(rows))

    def with_reports_apart(self, dimension: int, names: Sequence[str]) -> SubmissionBatch:
        """A batch that `has_reports` as one whose rows are updates alone, and the reports in `meta`.

        Args:
            dimension: Length of an update; a row of another length than its report asks for stays as it is.
            names: Of the declared meta-parameters.
        """
        rows, reports = list[NDArray[Any] | Rejection | StoredRow](), list[Mapping[str, float] | None]()
        for row in self.rows:
            if isinstance(row, np.ndarray) and row.shape == (dimension + len(names),):
                rows.append(row[:dimension])
                reports.append(dict(zip(names, row[dimension:].tolist(), strict=True)))
            else:
                rows.append(row)
                reports.append(None)
        return replace(self, rows=tuple(rows), meta=tuple(reports))

    def __getitem__(self, index: int) -> Submission:
        return Submission(
            self.client_ids[index],
            self.rows[index],
            self.round_id,
            None if self.signatures is None else self.signatures[index],
            None if self.meta is None else self.meta[index],
            None if self.sequences is None else self.sequences[index],
            None if self.num_examples is None else self.num_examples[index],
            self.has_reports,
        )

    def __len__(self) -> int:
        return len(self.client_ids)


def joined(batches: Sequence[SubmissionBatch]) -> SubmissionBatch:
    """Batches of one update each, for the same round, as one."""
    first = batches[0]
    if len(batches) == 1:
        return first
    rows = [batch.rows[0] for batch in batches]
    arrays = [row for row in rows if isinstance(row, np.ndarray) and row.nbytes <= STACKED_BYTES]
    are_alike = len(arrays) == len(rows) and len({(a.dtype, a.shape) for a in arrays}) == 1
    return SubmissionBatch(
        tuple(batch.client_ids[0] for batch in batches),
        np.stack(arrays) if are_alike and arrays[0].ndim == 1 else tuple(rows),
        first.round_id,
        _column([batch.signatures for batch in batches]),
        _column([batch.meta for batch in batches]),
        _column([batch.sequences for batch in batches]),
        _column([batch.num_examples for batch in batches]),
    )


def _column(singles: Sequence[tuple[T, ...] | None]) -> tuple[T | None, ...] | None:
    """A column of entries that each are one, or not given; None if none is."""
    if all(single is None for single in singles):
        return None
    return tuple(None if single is None else single[0] for single in singles)


def charged_rows(
    batch: SubmissionBatch,
    dimension: int,
    charge: Callable[[str, Sequence[str], Mapping[str, object]], Collection[str]],
) -> SubmissionBatch:
    """A batch of rows that their clients noised, each charged; one that does not fit is no row any more.

    A row is charged before it is judged, and m rows of a client m times. A charge is named by what it covers,
    so that bytes that are sent again for a round, in the same call or batch, are charged once. In another
    round they may be another draw: of few coordinates two are the same bytes once in thousands.

    Args:
        batch: With its round, not None for the current one.
        dimension: Length of an update.
        charge: Charges clients, each named once, under an id; those whose charge fits.
    """
    times: Counter[str] = Counter()
    turns: dict[int, list[int]] = defaultdict(list)
    for index, client_id in enumerate(batch.client_ids):
        turns[times[client_id]].append(index)
        times[client_id] += 1
    refused: list[int] = []
    round_id = int(batch.round_id) if isinstance(batch.round_id, int | np.integer) else None
    for indices in turns.values():
        covered = hashlib.sha256(f"{round_id}/".encode())
        for index in indices:
            row = read_row(batch.rows[index], dimension)
            # What is no row is charged as one each time: nobody can tell whether it was sent before.
            content = os.urandom(32) if isinstance(row, Rejection) else content_digest(row)
            covered.update(hashlib.sha256(batch.client_ids[index].encode()).digest() + content)
        clients = [batch.client_ids[index] for index in indices]
        allowed = charge(f"row/{covered.hexdigest()}", clients, {"round": round_id})
        refused += [index for index in indices if batch.client_ids[index] not in allowed]
    if not refused:
        return batch
    rows = list(batch.rows)
    for index in refused:
        rows[index] = Rejection.BUDGET_SPENT
    return replace(batch, rows=tuple(rows))


def _row(row: StoredRow, arrays: Mapping[int, Any]) -> NDArray[Any] | Rejection:
    array = arrays[id(row.reference)]
    is_there = isinstance(array, np.ndarray) and array.ndim == 2 and row.index < len(array)
    return array[row.index] if is_there else Rejection.NOT_NUMERIC


def _taken(column: tuple[T, ...] | None, indices: Sequence[int]) -> tuple[T, ...] | None:
    return None if column is None else tuple(column[i] for i in indices)


def message_of(
    judged: JudgedUpdate, meta: Mapping[str, float] | None, scope: SigningScope, *, is_joined: bool = False
) -> bytes:
    """The bytes that a client signs for an update and its report of meta-parameters.

    Where the two came as one row, it is this row that is signed.
    """
    statement = UpdateStatement(
        scope=scope,
        round_id=judged.round_id,
        client_id=judged.client_id,
        digest=judged.digest,
        shape=judged.update.shape,
        sequence=judged.sequence,
        num_examples=judged.num_examples,
        report=None if meta is None or is_joined else canonical_report(meta),
    )
    if is_joined and meta is not None:
        row = np.concatenate([judged.update, np.asarray(list(meta.values()), np.float32)])
        statement = replace(statement, digest=content_digest(row), shape=row.shape, dtype=JOINED)
    return statement.encode()


def message_as_sent(submission: Submission, round_id: int, scope: SigningScope) -> bytes | None:
    """The bytes that a client signs for a submission, also a malformed one; None if there are none."""
    try:
        return update_message(
            scope,
            submission.client_id,
            round_id,
            submission.update,
            sequence=submission.sequence,  # type: ignore[arg-type]
            num_examples=submission.num_examples,  # type: ignore[arg-type]
            meta=submission.meta,
        )
    except UsageError:
        return None


def is_signed(public_key: bytes, message: bytes, signature: object) -> bool:
    """Whether `signature` is one of `message` by the holder of `public_key`."""
    return isinstance(signature, bytes) and IdentityKeyPair.verify_with(public_key, message, signature)


def signed(
    batch: SubmissionBatch,
    round_id: object,
    keypairs: Mapping[str, IdentityKeyPair],
    scope: SigningScope,
    dimension: int,
    num_reported: int = 0,
) -> SubmissionBatch:
    """The batch with a signature for every update whose key is in `keypairs` and that has none yet.

    What is no update is left unsigned, so that its rejection costs its client no trust.

    Args:
        round_id: The round that the updates are made for; it is signed too.
        keypairs: By client.
        dimension: Length of an update.
        num_reported: Declared meta-parameters, which a row in the object store that has a report ends in.
    """
    batch = replace(batch, round_id=round_id)
    signatures = list(batch.signatures or [None] * len(batch))
    for index, client_id in enumerate(batch.client_ids):
        keypair = keypairs.get(client_id)
        if keypair is None or signatures[index] is not None or not isinstance(round_id, int | np.integer):
            continue
        submission = batch[index]
        if isinstance(submission.update, StoredRow):
            statement = UpdateStatement(
                scope=scope,
                round_id=int(round_id),
                client_id=client_id,
                digest=submission.update.digest,
                shape=(dimension,),
                num_examples=submission.num_examples,  # type: ignore[arg-type]
            )
            if batch.has_reports:
                statement = replace(statement, shape=(dimension + num_reported,), dtype=JOINED)
            signatures[index] = keypair.sign(statement.encode())
            continue
        row = read_row(submission.update, dimension)
        if isinstance(row, Rejection):
            continue
        message = message_as_sent(replace(submission, update=row), int(round_id), scope)
        signatures[index] = None if message is None else keypair.sign(message)
    return replace(batch, signatures=tuple(signatures))
