"""What a client signs when it sends an update, byte by byte.

This module needs NumPy and the standard library alone, so that a client signs without Ray and without the
rest of this package. The message is written in one way only. Integers are big-endian; *text* is a u32 length
and that many bytes of UTF-8; *maybe* is a byte 0, or a byte 1 and what follows::

    magic          20 bytes    b"scarcity_ray/update" and a zero byte
    version        u16         1
    federation id  text        made at random when the ledger was made
    budget period  u64         0, and one more at each renewal
    run            u64         63 random bits, made whenever a federation is begun on the ledger
    round          u64
    client id      text
    sequence       maybe u64   the client's own number for this update, within the round
    digest         32 bytes    SHA-256 of the vector's bytes
    dtype, shape   text, u8 count and that many u64
    examples       maybe u64   how many examples the client says are behind the update
    report         maybe u32 count, then name (text) and value (float64) each, in the order of the names

The vector is the one that is aggregated: little-endian float32 of shape (d,), whatever it was converted from.

Guarantees:
    Two statements that differ in any field have different messages.
    A message is decoded to the statement that it was made of.
    Nothing else is decoded: a torn message is refused as torn, a foreign or newer message is refused as such.
    A vector that is float32 already is hashed where it lies.
"""

from __future__ import annotations

import hashlib
import math
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray_client.errors import MessageRefused, UsageError
from scarcity_ray_client.updates.reading import Rejection, read_array

MAGIC = b"scarcity_ray/update\0"
VERSION = 1
DIGEST_BYTES = 32
DTYPE = "<f4"
GREATEST = 2**64 - 1
"""The greatest integer in a message."""
MOST_AXES = 255

Report = tuple[tuple[str, float], ...]
"""Names and finite values, in the order of the names."""


@dataclass(frozen=True)
class SigningScope:
    """Where and when a signature is worth something: in one period of one run of one federation.

    Attributes:
        federation_id: Random, of the ledger.
        budget_period: 0, and one more at each renewal of the budget.
        run: Random, made as the federation was begun: a count would recur with a ledger's backup.
    """

    federation_id: str
    budget_period: int = 0
    run: int = 0


@dataclass(frozen=True)
class UpdateStatement:
    """All that a client says by signing an update; `encode` gives the bytes that it signs.

    Attributes:
        scope: Where and when it says so.
        round_id: The round that the update was made for.
        client_id: Who says so.
        digest: `content_digest` of the vector.
        shape: Of the vector.
        dtype: Of the vector.
        sequence: The client's own number for this update, unique within the round; None: it does not count.
        num_examples: Examples behind the update; None: it does not say.
        report: Its values of meta-parameters, see `canonical_report`; None: no new report.

    Raises:
        UsageError: For a value that no message can hold.
    """

    scope: SigningScope
    round_id: int
    client_id: str
    digest: bytes
    shape: tuple[int, ...]
    dtype: str = DTYPE
    sequence: int | None = None
    num_examples: int | None = None
    report: Report | None = None

    def __post_init__(self) -> None:
        for name, number in (
            ("budget_period", self.scope.budget_period),
            ("run", self.scope.run),
            ("round_id", self.round_id),
            *(("shape", length) for length in self.shape),
            ("sequence", 0 if self.sequence is None else self.sequence),
            ("num_examples", 0 if self.num_examples is None else self.num_examples),
        ):
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= GREATEST:
                raise UsageError(f"{name}: {number!r:.80} is not accepted; an int from 0 to 2^64 - 1")
        for name, text in (
            ("federation_id", self.scope.federation_id),
            ("client_id", self.client_id),
            ("dtype", self.dtype),
        ):
            if not is_text(text):
                raise UsageError(f"{name}: {text!r:.80} is not accepted; a str that UTF-8 can hold")
        if len(self.digest) != DIGEST_BYTES:
            raise UsageError(f"digest: {len(self.digest)} bytes are not accepted; {DIGEST_BYTES}")
        if len(self.shape) > MOST_AXES:
            raise UsageError(f"shape: {len(self.shape)} axes are not accepted; {MOST_AXES} at most")
        if self.report is not None:
            object.__setattr__(self, "report", canonical_report(dict(self.report)))

    def encode(self) -> bytes:
        """The bytes that are signed."""
        report = b"\0"
        if self.report is not None:
            pairs = b"".join(_text(name) + struct.pack(">d", value) for name, value in self.report)
            report = b"\1" + struct.pack(">I", len(self.report)) + pairs
        return b"".join(
            (
                MAGIC,
                struct.pack(">H", VERSION),
                _text(self.scope.federation_id),
                struct.pack(">QQQ", self.scope.budget_period, self.scope.run, self.round_id),
                _text(self.client_id),
                _maybe(self.sequence),
                self.digest,
                _text(self.dtype),
                struct.pack(f">B{len(self.shape)}Q", len(self.shape), *self.shape),
                _maybe(self.num_examples),
                report,
            )
        )

    @classmethod
    def decode(cls, message: bytes) -> UpdateStatement:
        """The statement that `message` was made of.

        Raises:
            MessageRefused: If it is none: torn, foreign, newer, or not written as `encode` writes.
        """
        reader = _Reader(message)
        if reader.take(len(MAGIC), "magic") != MAGIC:
            raise MessageRefused("foreign", "it does not begin as an update's message does")
        version = reader.number("version", ">H")
        if version > VERSION:
            raise MessageRefused("newer", f"it is of version {version}, and this is {VERSION}")
        if version != VERSION:
            raise MessageRefused("foreign", f"there is no version {version}")
        federation_id = reader.text("federation id")
        scope = SigningScope(federation_id, reader.number("budget period"), reader.number("run"))
        statement = cls(
            scope=scope,
            round_id=reader.number("round"),
            client_id=reader.text("client id"),
            sequence=reader.number("sequence") if reader.follows("sequence") else None,
            digest=reader.take(DIGEST_BYTES, "digest"),
            dtype=reader.text("dtype"),
            shape=tuple(reader.number("shape") for _ in range(reader.number("shape", ">B"))),
            num_examples=reader.number("examples") if reader.follows("examples") else None,
            report=reader.report() if reader.follows("report") else None,
        )
        if reader.left:
            raise MessageRefused("torn", f"{reader.left} bytes lie behind its end")
        return statement


def content_digest(row: NDArray[np.float32]) -> bytes:
    """SHA-256 of a float32 row's little-endian bytes, 32 bytes: replays and signatures go by it.

    Where it lies: nothing is copied of a contiguous row. With SHA instructions SHA-256 takes 4 ns an entry
    where BLAKE2b takes 9.5; for short rows they are alike.
    """
    return hashlib.sha256(np.ascontiguousarray(row, dtype=DTYPE).reshape(-1).data).digest()


def canonical_report(report: Mapping[str, Any]) -> Report:
    """The names of a report with their finite values, by name; what is not a finite number is not reported.

    Raises:
        UsageError: For a name that is none.

    >>> canonical_report({"rate": 1, "decay": -0.0, "other": float("nan")})
    (('decay', 0.0), ('rate', 1.0))
    """
    pairs = []
    for name, value in report.items():
        if not is_text(name):
            raise UsageError(f"meta: the name {name!r:.80} is not accepted; a str that UTF-8 can hold")
        number = _number(value)
        if number is not None:
            pairs.append((name, number))
    return tuple(sorted(pairs))


def update_statement(
    scope: SigningScope,
    client_id: str,
    round_id: int,
    update: object,
    *,
    sequence: int | None = None,
    num_examples: int | None = None,
    meta: Mapping[str, float] | None = None,
) -> UpdateStatement:
    """The statement about an update, which is converted to float32 as the basket will convert it.

    Args:
        scope: As `HierarchicalFederation.signing_scope` tells it.
        round_id: The round that the update was made for.
        update: Anything that `read_array` reads, shape (d,).
        sequence: The client's own number for it, unique within the round, if it counts.
        num_examples: Examples behind it, if it says.
        meta: Values of meta-parameters, if it reports.

    Raises:
        UsageError: For a value that no message can hold.

    >>> len(update_statement(SigningScope("f"), "hospital_1", 3, [0.0, 0.0]).encode())
    116
    """
    row = _float32(update)
    return UpdateStatement(
        scope=scope,
        round_id=_plain(round_id),
        client_id=client_id,
        digest=content_digest(row),
        shape=row.shape,
        sequence=None if sequence is None else _plain(sequence),
        num_examples=None if num_examples is None else _plain(num_examples),
        report=None if meta is None else canonical_report(meta),
    )


def update_message(
    scope: SigningScope,
    client_id: str,
    round_id: int,
    update: object,
    *,
    sequence: int | None = None,
    num_examples: int | None = None,
    meta: Mapping[str, float] | None = None,
) -> bytes:
    """The bytes that a client's Ed25519 key signs; arguments as in `update_statement`."""
    return update_statement(
        scope, client_id, round_id, update, sequence=sequence, num_examples=num_examples, meta=meta
    ).encode()


def sign_update(
    sign: Callable[[bytes], bytes],
    scope: SigningScope,
    client_id: str,
    round_id: int,
    update: object,
    *,
    sequence: int | None = None,
    num_examples: int | None = None,
    meta: Mapping[str, float] | None = None,
) -> bytes:
    """A client's signature of its update, as ``offer_update(..., signature=)`` takes it.

    `sign` signs bytes with the client's Ed25519 key: `IdentityKeyPair.sign`, or any other. The others are
    those of `update_statement`, and the same that the update is sent with.
    """
    return sign(
        update_message(
            scope, client_id, round_id, update, sequence=sequence, num_examples=num_examples, meta=meta
        )
    )


def is_text(value: object) -> bool:
    """Whether it is a str that UTF-8 can hold."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


class _Reader:
    """Reads a message from its beginning."""

    def __init__(self, message: bytes) -> None:
        self._message = bytes(message)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._message) - self._at

    def take(self, count: int, what: str) -> bytes:
        if count > self.left:
            raise MessageRefused("torn", f"it ends within its {what}")
        self._at += count
        return self._message[self._at - count : self._at]

    def number(self, what: str, form: str = ">Q") -> int:
        (number,) = struct.unpack(form, self.take(struct.calcsize(form), what))
        return int(number)

    def text(self, what: str) -> str:
        try:
            return self.take(self.number(what, ">I"), what).decode()
        except UnicodeDecodeError:
            raise MessageRefused("foreign", f"its {what} is no text") from None

    def follows(self, what: str) -> bool:
        flag = self.take(1, what)
        if flag not in (b"\0", b"\1"):
            raise MessageRefused("foreign", f"whether it has a {what} is told by {flag!r}")
        return flag == b"\1"

    def report(self) -> Report:
        pairs: list[tuple[str, float]] = []
        for _ in range(self.number("report", ">I")):
            name = self.text("report")
            (value,) = struct.unpack(">d", self.take(8, "report"))
            if not math.isfinite(value) or (value == 0.0 and math.copysign(1.0, value) < 0.0):
                raise MessageRefused("foreign", f"its report has the value {value!r}")
            if pairs and pairs[-1][0] >= name:
                raise MessageRefused("foreign", "its report is not in the order of the names")
            pairs.append((name, value))
        return tuple(pairs)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">I", len(data)) + data


def _maybe(number: int | None) -> bytes:
    return b"\0" if number is None else b"\1" + struct.pack(">Q", number)


def _plain(number: int) -> int:
    return int(number) if isinstance(number, np.integer) else number


def _number(value: object) -> float | None:
    if not isinstance(value, int | float | np.integer | np.floating):
        return None
    try:
        number = float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -sys.float_info.max
    return number + 0.0 if math.isfinite(number) else None


def _float32(update: object) -> NDArray[np.float32]:
    numbers = read_array(update)
    if isinstance(numbers, Rejection):
        raise UsageError(f"update: {update!r:.80} is not accepted; an array of numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(numbers, np.float32)
