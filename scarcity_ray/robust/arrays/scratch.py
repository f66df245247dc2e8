"""Scratch memory that is used again: a fresh page costs more than the work on it."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


def workspace(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """A C-contiguous scratch array of this thread with unspecified contents.

    It is valid until this thread asks for the same name again; a fresh page costs more than the work on it.
    """
    view = _scratch.views.get((name, shape, dtype))
    return _scratch.make(name, shape, dtype) if view is None else view


MOST_VIEWS = 256
"""Views kept a thread; making one again is cheap."""


class _Scratch(threading.local):
    """Each thread's buffers by name, and the views of them that were asked for."""

    def __init__(self) -> None:
        self.buffers: dict[str, NDArray[np.uint8]] = {}
        self.views: dict[tuple[str, tuple[int, ...], type[np.generic]], NDArray[Any]] = {}

    def make(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name not in self.buffers or self.buffers[name].size < size:
            self.buffers[name] = np.empty(size, np.uint8)
            self.views = {key: view for key, view in self.views.items() if key[0] != name}
        if len(self.views) >= MOST_VIEWS:
            self.views.clear()
        view: NDArray[Any] = self.buffers[name][:size].view(dtype).reshape(shape)
        self.views[name, shape, dtype] = view
        return view


_scratch = _Scratch()
