"""The rows of the ledger: canonical JSON in a hash chain, each with the hash of the row before it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from scarcity_ray.errors import LedgerCorrupted, LedgerError, UsageError
from scarcity_ray.privacy.ledger.events import Event, decode, encode, kind_of
from scarcity_ray_client.errors import shown

NO_HASH = "0" * 64
"""What the first row is chained to."""
NO_OLDER_COPY = (
    "bring back no copy but one that holds the newest head hash that anybody kept (scarcity-ray ledger "
    "verify LEDGER --head HASH): an older one would grant again what is spent"
)
"""The remedy of a damaged ledger."""


@dataclass(frozen=True)
class Row:
    """One row of the ledger.

    Attributes:
        seq: 0, 1, 2, ...
        charge_id: The charge's own name, or None for rows that are not charges.
        epoch: The writer's number.
        at: When, in seconds since 1970, as the writer said.
        record: All of the above as canonical JSON, the text that the hash covers.
        hash: The chain up to and including this row, as hexadecimal digits.
    """

    seq: int
    event: Event = field(compare=False)
    charge_id: str | None
    epoch: int
    at: float
    record: str
    payload: bytes
    hash: str

    @property
    def kind(self) -> str:
        """The kind of the event, e.g. ``genesis``, ``writer``, ``release``."""
        return kind_of(self.event)

    @property
    def body(self) -> dict[str, Any]:
        """The event as plain data, infinities as ``"inf"``."""
        return dict(json.loads(self.record)["body"])


def canonical(
    seq: int, kind: str, charge_id: str | None, epoch: int, at: float, body: Mapping[str, Any]
) -> str:
    """A row's content as canonical JSON: keys sorted, no spaces, numbers that read back exactly.

    Raises:
        UsageError: If `body` is not plain data.

    >>> canonical(0, "release", "r0", 1, 2.5, {"sigma": float("inf")})
    '{"at":2.5,"body":{"sigma":"inf"},"charge_id":"r0","epoch":1,"kind":"release","seq":0}'
    """
    content = {
        "at": at,
        "body": _finite(body),
        "charge_id": charge_id,
        "epoch": epoch,
        "kind": kind,
        "seq": seq,
    }
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_unboxed)
    except (TypeError, ValueError) as error:
        raise UsageError(f"details: only plain data can be recorded: {error}") from error


def sealed(previous: str, seq: int, event: Event, charge_id: str | None, epoch: int, at: float) -> Row:
    """The row that records `event` after a row with the hash `previous`.

    Raises:
        UsageError: If it would not be read back: the event's details are not plain data, the charge's name is
            no str, the time is none.
    """
    if not isinstance(charge_id, str | None):
        raise UsageError(f"charge_id: {shown(charge_id)} is not accepted; a str")
    body, payload = encode(event)
    record = canonical(seq, kind_of(event), charge_id, epoch, at, body)
    try:
        return parse(record, payload, bytes.fromhex(seal(previous, record, payload)))
    except ValueError as error:
        raise UsageError(f"{kind_of(event)}: this cannot be recorded: {error}") from None


def seal(previous: str, record: str, payload: bytes) -> str:
    """The hash of a row: over the hash before it, its payload and its record."""
    digest = hashlib.sha256(bytes.fromhex(previous))
    digest.update(hashlib.sha256(payload).digest())
    digest.update(record.encode())
    return digest.hexdigest()


@lru_cache(maxsize=16)
def parse(record: str, payload: bytes, hash_: bytes) -> Row:
    """Read a row back; the newest ones are remembered, since each look at a ledger reads its last row.

    Raises:
        ValueError: If it is not one, or does not state what its kind must; names the field.
    """
    try:
        content = json.loads(record, parse_float=_number, parse_constant=_number)
        return Row(
            seq=int(content["seq"]),
            event=decode(str(content["kind"]), dict(content["body"]), payload),
            charge_id=content["charge_id"],
            epoch=int(content["epoch"]),
            at=float(content["at"]),
            record=record,
            payload=payload,
            hash=hash_.hex(),
        )
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(str(error)) from error


def read_back(
    place: object,
    stored: tuple[int, str | None, str, bytes, bytes],
    spelt: Callable[[str | None], str | None] = lambda charge_id: charge_id,
) -> Row:
    """A row from a store's columns: number, charge's name, record, payload and hash.

    Args:
        place: The ledger, for the error.
        spelt: How the store spells a charge's name.

    Raises:
        LedgerCorrupted: If it is no row, or its columns are not its record's.
        LedgerError: If the ledger is of a newer format.
    """
    seq, charge_id, record, payload, digest = stored
    try:
        row = parse(record, payload, digest)
    except LedgerError as newer:
        raise LedgerError(f"{place}: {newer}") from None
    except ValueError as error:
        raise LedgerCorrupted(f"{place}: row {seq} cannot be read ({error}); {NO_OLDER_COPY}") from error
    if (row.seq, spelt(row.charge_id)) != (seq, charge_id):
        raise LedgerCorrupted(f"{place}: row {seq} is not the one that was written; {NO_OLDER_COPY}")
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(text: str) -> float:
    """A finite number; no row was ever written with another."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} stands for no finite number")
    return number


def _unboxed(value: Any) -> Any:
    """The plain number in a NumPy scalar."""
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not plain data")
