"""State as JSON and arrays, or as bytes, and back: plain values, and the data classes that the reader names.

Nothing that is read chooses what is made of it: an unknown class is refused, and no code is ever loaded, as a
pickle would. Floats, bytes and arrays come back bit by bit.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_KINDS = "biuf"
_HEADER_BYTES = 8
_PLAIN = frozenset({type(None), bool, int, float, str})


class Codec:
    """Encodes values that hold only plain data, arrays of numbers, and objects of `classes`.

    Guarantees:
        what_is_decoded_is_what_was_encoded
        an_unknown_class_is_refused

    Args:
        classes: Data classes, named tuples and enumerations, whose names differ.
    """

    def __init__(self, *classes: type) -> None:
        self._classes = {cls.__name__: cls for cls in classes}

    def encode(self, value: object) -> tuple[Any, list[Array]]:
        """The value as JSON can hold it, and the arrays that stand in it by number.

        Raises:
            TypeError: If it holds something else.
        """
        arrays: list[Array] = []
        return self._plain(value, arrays), arrays

    def decode(self, plain: Any, arrays: list[Array]) -> Any:
        """The value that was encoded.

        Raises:
            ValueError: If it is nothing that `encode` gives.
        """
        try:
            return self._value(plain, arrays)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}"[:200]) from error

    def pack(self, value: object) -> bytes:
        """The value as bytes: a JSON header with its length before it, then the arrays.

        Raises:
            TypeError: If it holds something else.
        """
        plain, arrays = self.encode(value)
        header = json.dumps([plain, shapes_of(arrays)], separators=(",", ":")).encode()
        return b"".join([len(header).to_bytes(_HEADER_BYTES, "big"), header, *map(bytes_of, arrays)])

    def unpack(self, packed: bytes) -> Any:
        """The value of which `pack` made these bytes.

        Raises:
            ValueError: If it is nothing that `pack` gives.
        """
        start = _HEADER_BYTES + int.from_bytes(packed[:_HEADER_BYTES], "big")
        plain, shapes = json.loads(packed[_HEADER_BYTES:start])
        return self.decode(plain, arrays_in(packed, start, shapes))

    def _plain(self, value: Any, arrays: list[Array]) -> Any:
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is list:
            return self._many(value, arrays)
        if kind in (tuple, set, frozenset):
            ordered = value if kind is tuple else sorted(value, key=repr)
            return {"is": kind.__name__, "of": self._many(ordered, arrays)}
        if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
            arrays.append(value)
            return {"is": "array", "of": len(arrays) - 1}
        if kind is bytes:
            return {"is": "bytes", "of": value.hex()}
        if isinstance(value, np.generic):
            return self._plain(value.item(), arrays)
        if self._classes.get(kind.__name__) is kind:
            if isinstance(value, Enum):
                return {"is": kind.__name__, "of": value.value}
            names = _fields_of(kind)
            held = self._many([getattr(value, name) for name in names], arrays)
            return {"is": kind.__name__, "of": held, "names": names}
        if isinstance(value, Mapping):
            return {"is": "dict", "of": [self._many([*half], arrays) for half in (value, value.values())]}
        raise TypeError(f"{kind.__name__} is nothing that is kept")

    def _many(self, values: Sequence[Any], arrays: list[Array]) -> list[Any]:
        """Each value; of many objects of one class, a list of each field's values."""
        kinds = set(map(type, values))
        if kinds <= _PLAIN:
            return [*values]
        kind = next(iter(kinds))
        if len(kinds) > 1 or len(values) < 2 or kind is not self._classes.get(kind.__name__):
            return [self._plain(one, arrays) for one in values]
        if issubclass(kind, Enum):
            return [self._plain(one, arrays) for one in values]
        names = _fields_of(kind)
        columns = [self._many([getattr(one, name) for one in values], arrays) for name in names]
        return [{"is": "rows", "of": columns, "class": kind.__name__, "names": names}]

    def _values(self, plain: list[Any], arrays: list[Array]) -> list[Any]:
        """What `_many` gave again."""
        first = plain[0] if len(plain) == 1 else None
        if not (isinstance(first, dict) and first["is"] == "rows"):
            return [self._value(one, arrays) for one in plain]
        cls, names = self._classes[first["class"]], first["names"]
        columns = [self._values(column, arrays) for column in first["of"]]
        return [cls(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]

    def _value(self, plain: Any, arrays: list[Array]) -> Any:
        if isinstance(plain, list):
            return self._values(plain, arrays)
        if not isinstance(plain, dict):
            return plain
        name, held = plain["is"], plain["of"]
        if name == "array":
            return arrays[held]
        if name == "bytes":
            return bytes.fromhex(held)
        if name == "dict":
            return dict(zip(*(self._values(half, arrays) for half in held), strict=True))
        if name in _SEQUENCES:
            return _SEQUENCES[name](self._values(held, arrays))
        cls = self._classes[name]
        if issubclass(cls, Enum):
            return cls(held)
        return cls(**dict(zip(plain["names"], self._values(held, arrays), strict=True)))


def shapes_of(arrays: Sequence[Array]) -> list[tuple[str, tuple[int, ...]]]:
    """Type and shape of each array, for `arrays_in`."""
    return [(array.dtype.str, array.shape) for array in arrays]


def bytes_of(array: Array) -> memoryview:
    """An array's numbers as they lie in memory."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def arrays_in(content: bytes, start: int, shapes: Sequence[tuple[str, Sequence[int]]]) -> list[Array]:
    """The arrays of which the bytes lie in `content` from `start` on; private copies, read-only."""
    arrays: list[Array] = []
    for dtype, shape in shapes:
        array: Array = np.frombuffer(content, dtype, math.prod(shape), start).reshape(shape).copy()
        array.setflags(write=False)
        start += array.nbytes
        arrays.append(array)
    return arrays


def _fields_of(kind: Any) -> list[str]:
    """The names of a data class's fields, or a named tuple's."""
    if issubclass(kind, tuple):
        return [*kind._fields]
    return [field.name for field in dataclasses.fields(kind)]


_SEQUENCES: Mapping[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
