"""What counts as an update, and its one conversion to float32; the same for one update and for many.

Numbers are accepted in whatever array they lie: NumPy's integers and floats and those that a package adds to
NumPy (bfloat16 and float8 of ml_dtypes), whatever gives itself as an array (``__array__``: pandas, PyTorch,
JAX, TensorFlow) or by DLPack, and lists, tuples and object arrays of numbers. Booleans, complex numbers, text
and objects are not numbers here, nor are masked arrays, which would give away what they hide.

Guarantees:
    No message raises and what is read is finite.
    Many rows are read as each of them alone.
    One row that waits does not keep the others in memory.
"""

from __future__ import annotations

from array import array as packed_array
from collections.abc import Sequence
from enum import StrEnum
from pickle import PickleBuffer
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

FloatRow = npt.NDArray[np.float32]
Numbers = npt.NDArray[Any]
MOST_BESIDE_BYTES = 4096
"""Of a message around its row (and an eighth of the row), for it to be kept as it lies."""


class Rejection(StrEnum):
    """Why an update was refused; receipts, metrics, logs and tests share these words."""

    UNKNOWN_CLIENT = "unknown_client"
    WRONG_SHAPE = "wrong_shape"
    NOT_FINITE = "not_finite"
    NOT_NUMERIC = "not_numeric"
    FUTURE_ROUND = "future_round"
    TOO_STALE = "too_stale"
    REPLAYED = "replayed"
    SEQUENCE_USED = "sequence_used"
    PARTICIPATION_CAP = "participation_cap"
    BAD_SIGNATURE = "bad_signature"
    READ_ONLY = "read_only"
    TOO_FEW_PERSONS = "too_few_persons"
    AT_CEILING = "at_ceiling"
    NOT_STORED = "not_stored"
    BUSY = "busy"
    BUDGET_SPENT = "budget_spent"


def read_array(message: object) -> Numbers | Rejection:
    """The numbers in what a client sent, of whatever shape and value, or why there are none. Never raises.

    Returns:
        An array of NumPy's own integers or floats, perhaps the sender's memory; or `not_numeric`; for a list
        also `wrong_shape` (it is nested), or `not_finite` (a number beyond all floats).

    >>> read_array([1, 2.5])
    array([1. , 2.5])
    >>> read_array("1, 2.5")
    <Rejection.NOT_NUMERIC: 'not_numeric'>
    """
    if isinstance(message, np.ndarray | np.generic):
        return _numbers(message)
    if _is_plain_sequence(message):
        return _listed(message)
    if type(message) in (int, float):
        return np.asarray(0.0)
    given = given_array(message)
    return Rejection.NOT_NUMERIC if given is None else _numbers(given)


def read_row(message: object, dimension: int) -> FloatRow | Rejection:
    """Turn what a client sent into a row of our own, or say why it cannot be one. Never raises.

    Judged in this order: numbers (`not_numeric`, see `read_array`), then the shape (`wrong_shape`), then the
    values (`not_finite`). A value that float32 cannot hold is not finite.

    Returns:
        A read-only float32 array (d,), or the reason. It is a copy, unless the message is such a row already,
        in memory that nobody can write to (`_is_fixed`).

    >>> read_row([1.0, 2.0], 2)
    array([1., 2.], dtype=float32)
    >>> read_row([1e39, 2.0], 2)
    <Rejection.NOT_FINITE: 'not_finite'>
    """
    numbers = read_array(message)
    if isinstance(numbers, Rejection):
        return numbers
    if numbers.shape != (dimension,):
        return Rejection.WRONG_SHAPE
    if _is_fixed(numbers):
        return numbers if _is_finite(numbers) else Rejection.NOT_FINITE
    with np.errstate(over="ignore", invalid="ignore"):
        row: FloatRow = np.array(numbers, dtype=np.float32, order="C")
    return _own(row) if _is_finite(row) else Rejection.NOT_FINITE


def read_rows(messages: Numbers | Sequence[object], dimension: int) -> list[FloatRow | Rejection]:
    """`read_row` of each of many; those of one array of numbers (n, d) are converted and judged together.

    What was no array of numbers when it was sent, and came as the reason instead, stays refused for that.
    Each row is a copy of its own, so that one that waits does not keep the others in memory.
    """
    if not is_matrix(messages) or messages.shape[1] != dimension:
        return [one if isinstance(one, Rejection) else read_row(one, dimension) for one in messages]
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.asarray(messages).astype(np.float32, copy=False)
        squares = np.einsum("ij,ij->i", rows, rows)
    read: list[FloatRow | Rejection] = [_own(row.copy()) for row in rows]
    for index in np.flatnonzero(~np.isfinite(squares)).tolist():  # or only their squares are too great
        if not np.isfinite(rows[index]).all():
            read[index] = Rejection.NOT_FINITE
    return read


def is_matrix(messages: object) -> TypeGuard[Numbers]:
    """Whether these are many rows in one array of NumPy's own numbers."""
    return isinstance(messages, np.ndarray) and messages.ndim == 2 and _is_numbers(messages)


def _is_fixed(array: Numbers) -> bool:
    """Whether a row lies in bytes, or in read-only memory handed over as a buffer, that hold little else.

    An array that is merely set to read-only may be written to again by whoever has set it.
    """
    flags = array.flags
    if array.dtype != np.float32 or flags.writeable or not (flags.c_contiguous and flags.aligned):
        return False
    owner: object = array
    is_buffer = False
    while True:
        if isinstance(owner, PickleBuffer):
            owner = owner.raw()
        elif isinstance(owner, memoryview):
            owner, is_buffer = owner.obj, True
        elif isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        else:
            break
    if isinstance(owner, bytes):
        num_bytes = len(owner)
    elif is_buffer and isinstance(owner, np.ndarray) and owner.flags.owndata and not owner.flags.writeable:
        num_bytes = owner.nbytes
    else:
        return False
    return num_bytes - array.nbytes <= MOST_BESIDE_BYTES + array.nbytes // 8


def _is_finite(row: FloatRow) -> bool:
    """Whether all entries are, read once unless the squares of great ones are beyond float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("i,i->", row, row)
    return bool(np.isfinite(squares)) or bool(np.isfinite(row).all())


def _own(row: FloatRow) -> FloatRow:
    row.setflags(write=False)
    return row


def _is_numbers(array: Numbers | np.generic) -> bool:
    own = array.dtype.kind in "fiu" and array.dtype.isbuiltin != _ADDED
    return own and not isinstance(array, np.ma.MaskedArray)


def _numbers(array: Numbers | np.generic) -> Numbers | Rejection:
    if _is_numbers(array):
        return np.asarray(array)
    if array.dtype.isbuiltin == _ADDED and np.can_cast(array.dtype, np.float32):
        return np.asarray(array).astype(np.float32)
    if array.dtype.kind == "O" and array.ndim == 1 and not isinstance(array, np.ma.MaskedArray):
        return _listed(array.tolist())
    return Rejection.NOT_NUMERIC


_ADDED = 2
"""What `numpy.dtype.isbuiltin` says of a type that a package has added."""


def given_array(message: object) -> Numbers | None:
    """The array that an object is or gives itself as; None if none.

    What the object's own code raises says that it is none.
    """
    if isinstance(message, np.ndarray):
        return message
    try:
        if isinstance(message, packed_array):
            return np.asarray(message)
        if hasattr(message, "__array__"):
            return np.asarray(message)
        if hasattr(message, "__dlpack__"):
            return np.from_dlpack(message)
    except Exception:
        return None
    return None


def _is_plain_sequence(message: object) -> TypeGuard[Sequence[object]]:
    return type(message) in (list, tuple)


def _listed(message: Sequence[object]) -> Numbers | Rejection:
    kinds = {type(value) for value in message}
    if not all(kind in (int, float) or issubclass(kind, np.floating | np.integer) for kind in kinds):
        entries = [_entry(value) for value in message]
        if any(entry is Rejection.NOT_NUMERIC for entry in entries):
            return Rejection.NOT_NUMERIC
        if any(entry is Rejection.WRONG_SHAPE for entry in entries):
            return Rejection.WRONG_SHAPE
        message = entries
    try:
        return np.array(message, dtype=np.float64)
    except OverflowError:
        return Rejection.NOT_FINITE


def _entry(value: object) -> object:
    """One entry of a list as a plain number; what is nested is not looked into."""
    if type(value) in (int, float):
        return value
    if isinstance(value, list | tuple):
        return Rejection.WRONG_SHAPE
    given = value if isinstance(value, np.ndarray | np.generic) else given_array(value)
    if given is None:
        return Rejection.NOT_NUMERIC
    if given.ndim:
        return Rejection.WRONG_SHAPE
    numbers = _numbers(given)
    return numbers if isinstance(numbers, Rejection) else numbers.item()
