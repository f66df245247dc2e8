"""Parts: what a codec knows of each named array of a model, and how numbers get in and out of one.

A leaf is a NumPy array or number, a Python number, or a PyTorch tensor. bfloat16 is read as float32, which
holds it exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.errors import ModelRefused
from scarcity_ray_client.models import tensors

Numbers = npt.NDArray[Any]
FLOATS = ("float64", "float32", "float16", "bfloat16")


class Memory(NamedTuple):
    """Where an array lies: device, first byte, the byte behind the last, and each axis's step in bytes."""

    device: str
    start: int
    stop: int
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One named array of a model.

    Attributes:
        name: Its path in the model, such as ``layers.0.weight``.
        shape: Its shape.
        dtype: ``float32``, ``bfloat16``, ``int64`` and so on.
        tied_to: The part in whose memory it lies (tied weights), which alone is counted; "" for most.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    tied_to: str = ""

    @property
    def is_float(self) -> bool:
        """Whether it can be averaged."""
        return self.dtype in FLOATS

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def describe(leaves: Iterable[tuple[str, object]]) -> list[Part]:
    """What each leaf is; of leaves in the same memory all but the first are tied to it.

    Raises:
        ModelRefused: For a leaf that no codec carries, two of one name, and two that overlap in memory.
    """
    parts: dict[str, Part] = {}
    seen: dict[tuple[Memory, tuple[int, ...]], str] = {}
    for name, leaf in leaves:
        if name in parts:
            raise ModelRefused(name, "unsupported", "two parts of the model have this name")
        shape, dtype = _shape_and_dtype(name, leaf)
        place = memory(leaf)
        first = name if place is None else seen.setdefault((place, shape), name)
        parts[name] = Part(name, shape, dtype, first if first != name else "")
    places = sorted((place, name) for (place, _), name in seen.items())
    for (before, first), (after, second) in itertools.pairwise(places):
        if before.device == after.device and after.start < before.stop and parts[first].is_float:
            raise ModelRefused(
                second, "unsupported", f"it shares part of its memory with {first}; give it a copy of its own"
            )
    return list(parts.values())


def memory(leaf: object) -> Memory | None:
    """Where a leaf lies; None for a number, which lies nowhere that another could be."""
    if tensors.is_tensor(leaf):
        return Memory(*tensors.memory(leaf))
    if not isinstance(leaf, np.ndarray):
        return None
    return Memory("cpu", *np.lib.array_utils.byte_bounds(leaf), tuple(leaf.strides))


def read(leaf: Any) -> Numbers:
    """The numbers of a leaf, perhaps its own memory; bfloat16 as float32."""
    if tensors.is_tensor(leaf):
        return tensors.read_tensor(leaf)
    array = np.asarray(leaf)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def copied(leaf: Any) -> Any:
    """A copy of a leaf, a tensor's on the CPU."""
    if tensors.is_tensor(leaf):
        return tensors.tensor_like(leaf, tensors.read_tensor(leaf))
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf


def write(name: str, leaf: Any, numbers: Numbers) -> Any:
    """A new leaf of the kind, shape and dtype of `leaf`, with the nearest numbers that it can hold.

    Raises:
        ModelRefused: If a number is too great for the dtype.
    """
    numbers = numbers.reshape(np.shape(leaf))
    with np.errstate(over="ignore"):
        if tensors.is_tensor(leaf):
            made = tensors.tensor_like(leaf, numbers)
            fits = made.itemsize >= numbers.itemsize or bool(made.isfinite().all())
        elif isinstance(leaf, np.ndarray):
            made = np.array(numbers, dtype=leaf.dtype)
            fits = made.itemsize >= numbers.itemsize or bool(np.isfinite(made).all())
        else:
            made = type(leaf)(numbers.item())
            fits = bool(np.isfinite(made))
    if not fits:
        most = np.abs(numbers).max()
        raise ModelRefused(
            name, "not_finite", f"{most:.6g} is too great for its {_shape_and_dtype(name, leaf)[1]}"
        )
    return made


def _shape_and_dtype(name: str, leaf: Any) -> tuple[tuple[int, ...], str]:
    if tensors.is_tensor(leaf):
        flaw = tensors.flaw_of(leaf)
        if flaw:
            raise ModelRefused(name, "unsupported", flaw)
        shape, dtype = tuple(leaf.shape), str(leaf.dtype).removeprefix("torch.")
    elif isinstance(leaf, np.ndarray | np.generic | bool | int | float) and not isinstance(
        leaf, np.ma.MaskedArray
    ):
        try:
            array = np.asarray(leaf)
        except OverflowError:
            raise ModelRefused(name, "unsupported", "the integer has more than 64 bits") from None
        shape, dtype = array.shape, array.dtype.name
    else:
        raise ModelRefused(
            name, "unsupported", f"{_kind(leaf)} is not carried; give a NumPy array or a tensor"
        )
    if dtype not in FLOATS and not dtype.startswith(("int", "uint", "bool")):
        raise ModelRefused(name, "unsupported", f"its numbers are {dtype}; carried are {', '.join(FLOATS)}")
    if 0 in shape:
        raise ModelRefused(name, "unsupported", f"it is empty, of shape {shape}; leave it out")
    return shape, dtype


def _kind(leaf: object) -> str:
    kind = f"{type(leaf).__module__.removeprefix('builtins')}.{type(leaf).__qualname__}".removeprefix(".")
    return f"a sparse array ({kind})" if "sparse" in kind else f"a {kind}"


__all__ = ["FLOATS", "Memory", "Numbers", "Part", "copied", "describe", "memory", "read", "write"]
