"""State as JSON and arrays, and back: plain values, and the data classes that the reader names.

Nothing that is read chooses what is made of it: an unknown class is refused, and no code is ever loaded, as a
pickle would. Floats, bytes and arrays come back bit by bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_KINDS = "biuf"


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

    def _plain(self, value: Any, arrays: list[Array]) -> Any:
        def many(values: Iterable[Any]) -> list[Any]:
            return [self._plain(one, arrays) for one in values]

        kind = type(value)
        if value is None or kind in (bool, int, float, str):
            return value
        if kind in (tuple, list, set, frozenset):
            ordered = value if kind in (tuple, list) else sorted(value, key=repr)
            return many(ordered) if kind is list else {"is": kind.__name__, "of": many(ordered)}
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
            is_tuple = hasattr(kind, "_fields")
            names = kind._fields if is_tuple else [field.name for field in dataclasses.fields(value)]
            return {
                "is": kind.__name__,
                "of": many(getattr(value, name) for name in names),
                "names": [*names],
            }
        if isinstance(value, Mapping):
            return {"is": "dict", "of": [many(pair) for pair in value.items()]}
        raise TypeError(f"{kind.__name__} is nothing that is kept")

    def _value(self, plain: Any, arrays: list[Array]) -> Any:
        if isinstance(plain, list):
            return [self._value(one, arrays) for one in plain]
        if not isinstance(plain, dict):
            return plain
        name, held = plain["is"], plain["of"]
        if name == "array":
            return arrays[held]
        if name == "bytes":
            return bytes.fromhex(held)
        if name == "dict":
            return {self._value(key, arrays): self._value(one, arrays) for key, one in held}
        if name in _SEQUENCES:
            return _SEQUENCES[name](self._value(one, arrays) for one in held)
        cls = self._classes[name]
        if issubclass(cls, Enum):
            return cls(held)
        values = [self._value(one, arrays) for one in held]
        return cls(**dict(zip(plain["names"], values, strict=True)))


_SEQUENCES: Mapping[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
