"""One client's update: what may arrive, what is kept, and what its sender is told."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

import numpy as np
import numpy.typing as npt

FloatRow = npt.NDArray[np.float32]


class Rejection(StrEnum):
    """Why an update was refused; receipts, metrics, logs and tests share these words."""

    UNKNOWN_CLIENT = "unknown_client"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    NOT_NUMERIC = "not_numeric"
    FUTURE_ROUND = "future_round"
    TOO_STALE = "too_stale"
    REPLAYED = "replayed"
    PARTICIPATION_CAP = "participation_cap"
    BAD_SIGNATURE = "bad_signature"
    READ_ONLY = "read_only"


@dataclass(frozen=True)
class Receipt:
    """What a client is told about its update; true if it was accepted.

    Attributes:
        accepted: Whether the update is now in its basket's buffer.
        reason: Why not; None if accepted.
        basket_id: The basket that judged it; None if the client is not known.
        round_id: The round that it was sent for.
    """

    accepted: bool
    reason: Rejection | None
    basket_id: str | None
    round_id: int

    def __bool__(self) -> bool:
        return self.accepted


@dataclass(frozen=True, eq=False)
class BufferedUpdate:
    """An accepted update.

    Attributes:
        client_id: Who sent it.
        basket_id: In which basket it waits.
        update: The buffer's own copy, float32 (d,), read-only.
        round_id: The round that it was sent for.
        timestamp: When it was accepted, in seconds.
        staleness: Rounds between `round_id` and the buffer's round when this was read.
    """

    client_id: str
    basket_id: str
    update: FloatRow
    round_id: int
    timestamp: float
    staleness: int


def content_digest(row: FloatRow) -> bytes:
    """BLAKE2b (32 bytes) of a float32 row's little-endian bytes: replays and signatures go by it."""
    return hashlib.blake2b(np.ascontiguousarray(row, dtype="<f4").tobytes(), digest_size=32).digest()


def read_row(message: object, dimension: int) -> FloatRow | Rejection:
    """Turn what a client sent into a row of our own, or say why it cannot be one. Never raises.

    Judged in this order: a type of real numbers (`not_numeric`), then the shape (`wrong_shape`), then the
    values (`not_finite`). Arrays of integers and floats are read, and flat lists or tuples of plain numbers;
    booleans, complex numbers, text and objects are not numbers here, nor are masked arrays, which would give
    away what they hide. A value that float32 cannot hold is not finite.

    Args:
        message: Anything at all.
        dimension: Length of a row.

    Returns:
        A new read-only float32 array (d,), or the reason.

    >>> read_row([1.0, 2.0], 2)
    array([1., 2.], dtype=float32)
    >>> read_row([1e39, 2.0], 2)
    <Rejection.NOT_FINITE: 'not_finite'>
    """
    if _is_plain_sequence(message):
        reason = _judge_sequence(message, dimension)
        if reason is not None:
            return reason
    elif isinstance(message, np.ndarray | np.generic):
        if message.dtype.kind not in "fiu" or isinstance(message, np.ma.MaskedArray):
            return Rejection.NOT_NUMERIC
        if message.shape != (dimension,):
            return Rejection.WRONG_SHAPE
    elif type(message) in (int, float):
        return Rejection.WRONG_SHAPE
    else:
        return Rejection.NOT_NUMERIC
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            source = np.array(message, dtype=np.float64) if _is_plain_sequence(message) else message
            row: FloatRow = np.array(source, dtype=np.float32, order="C")
    except OverflowError:
        return Rejection.NOT_FINITE
    if not np.isfinite(row).all():
        return Rejection.NOT_FINITE
    row.setflags(write=False)
    return row


def _is_plain_sequence(message: object) -> TypeGuard[Sequence[object]]:
    return type(message) in (list, tuple)


def _judge_sequence(message: Sequence[object], dimension: int) -> Rejection | None:
    kinds = {type(value) for value in message}
    nested = {kind for kind in kinds if issubclass(kind, list | tuple | np.ndarray)}
    scalar = {kind for kind in kinds if kind in (int, float) or issubclass(kind, np.floating | np.integer)}
    if kinds - nested - scalar:
        return Rejection.NOT_NUMERIC
    return Rejection.WRONG_SHAPE if nested or len(message) != dimension else None


__all__ = ["BufferedUpdate", "FloatRow", "Receipt", "Rejection", "content_digest", "read_row"]
