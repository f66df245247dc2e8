"""Known plain data types as bytes, for sealed boxes and journals; nothing in them is executed when read.

The bytes are a JSON header, and the arrays behind it as they lie in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER_BYTES = 8


class Packer:
    """Packs values of the given data classes and named tuples, and of plain types.

    Args:
        parts: The classes, by whose names they are known.
    """

    def __init__(self, *parts: Callable[..., Any]) -> None:
        self._parts = {part.__name__: part for part in parts}

    def pack(self, value: Any) -> bytes:
        """A value as bytes.

        Raises:
            TypeError: For any other type.
        """
        arrays: list[NDArray[Any]] = []
        header = json.dumps(self._written(value, arrays), separators=(",", ":")).encode()
        return b"".join([len(header).to_bytes(_HEADER_BYTES, "big"), header, *(a.tobytes() for a in arrays)])

    def unpack(self, plain: bytes) -> Any:
        """The value of which `pack` made these bytes; its arrays are private copies, read-only."""
        start = _HEADER_BYTES + int.from_bytes(plain[:_HEADER_BYTES], "big")
        reader = _Reader(self._parts, memoryview(plain)[start:])
        return reader.read(json.loads(plain[_HEADER_BYTES:start]))

    def _written(self, value: Any, arrays: list[NDArray[Any]]) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
            arrays.append(array)
            return {"array": array.dtype.str, "shape": value.shape}
        if hasattr(value, "_fields") or is_dataclass(value):
            name = type(value).__name__
            if self._parts.get(name) is not type(value):
                raise TypeError(f"a {name} cannot be packed")
            names = value._fields if hasattr(value, "_fields") else [f.name for f in fields(value)]
            return {"is": name, "of": {part: self._written(getattr(value, part), arrays) for part in names}}
        if type(value) is dict:
            return {
                "dict": [
                    [self._written(key, arrays), self._written(item, arrays)] for key, item in value.items()
                ]
            }
        for kind in (tuple, list, set, frozenset):
            if type(value) is kind:
                items = sorted(value) if kind in (set, frozenset) else value
                return {kind.__name__: [self._written(item, arrays) for item in items]}
        raise TypeError(f"a {type(value).__name__} cannot be packed")


class _Reader:
    """Reads what `Packer` wrote."""

    def __init__(self, parts: dict[str, Callable[..., Any]], data: memoryview) -> None:
        self._parts = parts
        self._data = data

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "is" in value:
            return self._parts[value["is"]](**{name: self.read(part) for name, part in value["of"].items()})
        if "bytes" in value:
            return bytes.fromhex(value["bytes"])
        if "array" in value:
            dtype, shape = np.dtype(value["array"]), tuple(value["shape"])
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            array: NDArray[Any] = np.ndarray(shape, dtype, self._data[:size]).copy()
            self._data = self._data[size:]
            array.setflags(write=False)
            return array
        ((kind, items),) = value.items()
        if kind == "dict":
            return {self.read(key): self.read(item) for key, item in items}
        kinds = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}
        return kinds[kind](self.read(item) for item in items)
