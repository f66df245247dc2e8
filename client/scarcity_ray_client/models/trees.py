"""Trees: dicts, lists, tuples and dataclasses of leaves, each leaf with a name such as ``layers.0.weight``.

A tree that is taken apart and put together again has the same classes; the order of a dict's keys is no
matter.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from scarcity_ray_client.errors import ModelRefused, shown

MOST_LEVELS = 64
ROOT = "array"
"""The name of a model that is one array."""


def named_leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Each leaf with its name; None is no leaf.

    Raises:
        ModelRefused: For a key that is no name, and for a tree that is nested too deep, such as in itself.

    >>> dict(named_leaves({"layers": [{"w": 1.0}, {"w": 2.0}], "bias": None}))
    {'layers.0.w': 1.0, 'layers.1.w': 2.0}
    """
    inner = children(tree)
    if inner is None:
        if tree is not None:
            yield ".".join(path) or ROOT, tree
        return
    if len(path) > MOST_LEVELS:
        raise ModelRefused(".".join(path[:4]) + "...", "unsupported", "it is nested too deep, or in itself")
    for key, child in inner:
        if not isinstance(key, str | int):
            raise ModelRefused(
                ".".join(path) or ROOT, "unsupported", f"the key {shown(key)} is no str or int"
            )
        yield from named_leaves(child, (*path, str(key)))


def with_leaves(tree: object, leaves: Mapping[str, object], path: tuple[str, ...] = ()) -> Any:
    """A tree like `tree`, with the leaf of each name in its place.

    >>> with_leaves({"w": 1.0, "b": [0.0]}, {"w": 2.0, "b.0": 3.0})
    {'w': 2.0, 'b': [3.0]}
    """
    inner = children(tree)
    if inner is None:
        return None if tree is None else leaves[".".join(path) or ROOT]
    return _like(tree, [(key, with_leaves(child, leaves, (*path, str(key)))) for key, child in inner])


def children(tree: Any) -> Iterable[tuple[object, object]] | None:
    """The keys and subtrees of a container; None for a leaf."""
    if isinstance(tree, dict):
        return tree.items()
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return zip(tree._fields, tree, strict=True)
    if isinstance(tree, list | tuple):
        return enumerate(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return ((field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree))
    return None


def _like(tree: Any, inner: list[tuple[Any, object]]) -> Any:
    values: list[Any] = [value for _, value in inner]
    if isinstance(tree, list | tuple):
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    made = copy.copy(tree)
    for key, value in inner:
        if isinstance(tree, dict):
            made[key] = value
        else:
            object.__setattr__(made, key, value)  # also in a frozen dataclass
    return made


__all__ = ["ROOT", "children", "named_leaves", "with_leaves"]
