"""The codec between a model and the one float32 vector that is aggregated.

=====================================  ==============================================================
part of the model                      what becomes of it
=====================================  ==============================================================
floats                                 in the vector, as float32; back in their own dtype, nearest
integers and booleans                  kept as they were in the model that the codec was made of
parameters with ``requires_grad``      kept likewise (frozen)
off, and names given as ``keep``
tied weights                           in the vector once
BatchNorm's ``running_mean``,          in the vector, with a `ModelWarning`; a decoded variance is
``running_var``                        never below zero
all else                               refused by name
=====================================  ==============================================================
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.errors import ModelRefused, ModelWarning, UsageError
from scarcity_ray_client.models.forms import form_of, is_estimator, is_module
from scarcity_ray_client.models.parts import Numbers, Part, copied, describe, memory, read, write
from scarcity_ray_client.models.trees import ROOT, named_leaves

Model = TypeVar("Model")
FloatVector = npt.NDArray[np.float32]


class ModelCodec(Generic[Model]):
    """Turns models of one structure into vectors and back; made of one such model, which it copies.

    Parts go into the vector in the order in which the model has them. Float32 and the narrower floats survive
    the way there and back exactly; float64 becomes the nearest float32. Decoded models lie in the CPU's
    memory.

    Guarantees:
        Float32 survives exactly and other floats to the nearest.
        Names, shapes and dtypes are kept.
        Integers are never averaged.
        Tied weights are counted once and stay tied.
        What cannot be carried is refused by name.
        Decoded models share no memory.
        A model of another structure is refused by name.

    Attributes:
        parts: Every part of the model, in order.
        trained: Those that are in the vector.
        dimension: Length d of the vector.

    Args:
        model: Any model of the structure, for example `Workload.initial_model`'s.
        keep: Patterns (`fnmatch`) of names that stay out of the vector, such as ``"embedding.*"``.

    Raises:
        ModelRefused: If a part cannot be carried, or none is left to train.
        UsageError: If a pattern fits no part.

    >>> codec = ModelCodec({"w": np.zeros((2, 2), np.float16), "steps": 3})
    >>> codec.dimension
    4
    >>> codec.decode(np.arange(4, dtype=np.float32))["w"]
    array([[0., 1.],
           [2., 3.]], dtype=float16)
    """

    def __init__(self, model: Model, keep: Sequence[str] = ()) -> None:
        self._form = form_of(model)
        self.parts = tuple(describe(named_leaves(self._form.tree(model))))
        try:
            self._template: Model = self._form.template(model)
        except (RuntimeError, TypeError) as error:
            raise ModelRefused("model", "unsupported", f"it cannot be copied: {error}") from None
        for pattern in keep:
            if not any(fnmatchcase(part.name, pattern) for part in self.parts):
                raise UsageError(
                    f"keep: {pattern!r} fits none of {', '.join(part.name for part in self.parts)}"
                )
        frozen = self._form.frozen(model)
        self.trained = tuple(
            part
            for part in self.parts
            if part.is_float
            and not part.tied_to
            and part.name not in frozen
            and not any(fnmatchcase(part.name, pattern) for pattern in keep)
        )
        if not self.trained:
            held = ", ".join(f"{part.name} ({part.dtype})" for part in self.parts) or "nothing"
            raise ModelRefused("model", "unsupported", f"no part of it is trained; it holds {held:.300}")
        ends = list(itertools.accumulate(part.size for part in self.trained))
        self.dimension = ends[-1]
        self._spans = tuple(
            (part, slice(end - part.size, end)) for part, end in zip(self.trained, ends, strict=True)
        )
        statistics = [
            part.name for part in self.trained if _last(part.name) in ("running_mean", "running_var")
        ]
        if statistics:
            warnings.warn(
                f"{statistics[0]}: BatchNorm's running statistics ({len(statistics)} parts) are averaged "
                "like weights, and noise falls on them likewise; GroupNorm (torch.nn.GroupNorm) has none",
                ModelWarning,
                stacklevel=2,
            )

    def encode(self, model: Model) -> FloatVector:
        """The model's trained parts in one new vector (d,).

        Raises:
            ModelRefused: If the model has another structure, or a number is not finite in float32.
        """
        vector = np.empty(self.dimension, np.float32)
        for part, span, numbers in self._read(model, "model"):
            _put(vector[span], numbers, part.name)
        return vector

    def decode(self, vector: npt.ArrayLike) -> Model:
        """A new model with the vector's numbers in its trained parts.

        Raises:
            UsageError: If it is no vector (d,) of finite numbers.
            ModelRefused: If a number is too great for a part's dtype.
        """
        with np.errstate(over="ignore"):
            row = np.asarray(vector, np.float32)
        if row.shape != (self.dimension,) or not np.isfinite(row).all():
            raise UsageError(
                f"vector: shape {row.shape} is not accepted; finite numbers of shape ({self.dimension},)"
            )
        template = dict(named_leaves(self._form.tree(self._template)))
        made: dict[str, object] = {}
        for part, span in self._spans:
            numbers = np.maximum(row[span], 0.0) if _last(part.name) == "running_var" else row[span]
            made[part.name] = write(part.name, template[part.name], numbers)
        for part in self.parts:
            if part.name not in made:
                made[part.name] = made[part.tied_to] if part.tied_to else copied(template[part.name])
        assembled: Model = self._form.assemble(self._template, made)
        return assembled

    def delta(self, before: Model, after: Model) -> FloatVector:
        """What training changed, after - before, in one new vector (d,): subtracted in float64, then rounded.

        Raises:
            ModelRefused: As `encode` does.
        """
        vector = np.empty(self.dimension, np.float32)
        both = zip(self._read(before, "model"), self._read(after, "model"), strict=True)
        for (part, span, old), (_, _, new) in both:
            if not np.isfinite(new).all():
                raise ModelRefused(part.name, "not_finite", _not_finite(new))
            _put(vector[span], np.subtract(new, old, dtype=np.float64), part.name)
        return vector

    def delta_from(self, start: FloatVector, after: Model) -> FloatVector:
        """As `delta`, from the model that `encode` made `start` of: quicker where many start from one.

        Raises:
            ModelRefused: As `encode` does.
        """
        vector = np.empty(self.dimension, np.float32)
        for part, span, new in self._read(after, "model"):
            if not np.isfinite(new).all():
                raise ModelRefused(part.name, "not_finite", _not_finite(new))
            _put(vector[span], np.subtract(new.reshape(-1), start[span], dtype=np.float64), part.name)
        return vector

    def read_delta(self, delta: object) -> FloatVector:
        """A delta made by the workload as one new vector (d,): in the model's structure, or a vector already.

        Of a delta in the model's structure, parts that are not trained may be left out.

        Raises:
            ModelRefused: As `encode` does, and for a module or estimator: that is a model and no delta.
        """
        if is_module(delta) or is_estimator(delta):
            raise ModelRefused(
                type(delta).__name__, "different", "a delta is due and this is a model; give model="
            )
        vector = np.empty(self.dimension, np.float32)
        if isinstance(delta, np.ndarray) and delta.shape == vector.shape and delta.dtype.kind == "f":
            _put(vector, delta, "delta")
            return vector
        for part, span, numbers in self._read(delta, "delta"):
            _put(vector[span], numbers, part.name)
        return vector

    def share_memory(self, one: object, other: object) -> bool:
        """Whether any trained part of one lies where the same part of the other does."""
        if type(one) is np.ndarray and all(part.name != ROOT for part in self.parts):
            return False  # a vector, which is no part of the model
        others = dict(named_leaves(self._form.tree(other)))
        both = [(leaf, others[name]) for name, leaf in named_leaves(self._form.tree(one)) if name in others]
        places = [(memory(leaf), memory(same)) for leaf, same in both]
        return any(a is not None and b is not None and a[:2] == b[:2] for a, b in places)

    def narrow(self, delta: object) -> tuple[str, ...]:
        """Names of a delta's parts that were rounded to less than float32, whose rounding may be large."""
        parts = describe(named_leaves(self._form.tree(delta)))
        return tuple(part.name for part in parts if part.dtype in ("float16", "bfloat16"))

    def differing(self, model: Model) -> tuple[str, ...]:
        """Names of a model's parts that are not trained and differ from those that `decode` gives."""
        trained = {part.name for part in self.trained}
        own = dict(named_leaves(self._form.tree(self._template)))
        return tuple(
            name
            for name, leaf in named_leaves(self._form.tree(model))
            if name in own and name not in trained and not _same(leaf, own[name])
        )

    def _read(self, model: object, what: str) -> Iterator[tuple[Part, slice, Numbers]]:
        """The trained parts of a model that must have this codec's structure."""
        if what == "model" and (facts := self._form.facts(self._template)):
            own = self._form.facts(model)
            for name, due in facts.items():
                if own.get(name, due) != due:
                    raise ModelRefused(name, "different", f"it is {own[name]!r:.200}; {due!r:.200} is due")
        leaves = dict(named_leaves(self._form.tree(model)))
        known = {part.name for part in self.parts}
        if extra := [name for name in leaves if name not in known]:
            raise ModelRefused(extra[0], "different", f"the model has no part of this name, the {what} has")
        tied = {part.name: part.tied_to for part in self.parts if part.tied_to}
        for part, span in self._spans:
            if part.name not in leaves:
                raise ModelRefused(part.name, "different", f"the {what} lacks it")
            leaf = leaves[part.name]
            if type(leaf) is np.ndarray and leaf.shape == part.shape and leaf.dtype.char in "efd":
                yield part, span, leaf
                continue
            given = describe([(part.name, leaf)])[0]
            if not given.is_float or given.shape != part.shape:
                raise ModelRefused(
                    part.name,
                    "different",
                    f"it is {given.dtype} of shape {given.shape}; {part.dtype} of shape {part.shape} is due",
                )
            yield part, span, read(leaf)
        for name, first in tied.items():
            if first in leaves and name in leaves and not _same(leaves[name], leaves[first]):
                raise ModelRefused(name, "different", f"it was tied to {first} and now differs from it")


def _same(one: object, other: object) -> bool:
    if memory(one) == memory(other) is not None or one is other:
        return True
    first, second = read(one), read(other)
    return np.array_equal(first, second, equal_nan=first.dtype.kind == second.dtype.kind == "f")


def _put(target: FloatVector, numbers: Numbers, name: str) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        target[:] = numbers.reshape(-1)
    if not np.isfinite(target).all():
        raise ModelRefused(name, "not_finite", _not_finite(numbers))


def _not_finite(numbers: Numbers) -> str:
    bad = int(np.count_nonzero(~np.isfinite(numbers)))
    return (
        f"{bad} of {numbers.size} numbers are NaN or infinite" if bad else "a number is too great for float32"
    )


def _last(name: str) -> str:
    return name.rpartition(".")[2]


__all__ = ["FloatVector", "ModelCodec"]
