"""Scratch memory for each thread, and BLAS on one thread.

Guarantees:
    One BLAS thread is used inside `one_blas_thread`, and the earlier number is back after it.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import threadpoolctl  # type: ignore[import-untyped]
from numpy.typing import NDArray

MOST_VIEWS = 256
"""Views kept a thread; making one again is cheap."""


def workspace(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """A C-contiguous scratch array of this thread with unspecified contents.

    It is valid until this thread asks for the same name again.
    """
    view = _scratch.views.get((name, shape, dtype))
    return _scratch.make(name, shape, dtype) if view is None else view


class _Scratch(threading.local):
    """Each thread's buffers by name, and the views of them that were asked for.

    Allocating a page of memory costs more than the arithmetic on it.
    """

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


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the body with one BLAS thread in this process: the number of threads changes last bits.

    It may be entered by several threads and more than once; the last one out restores the earlier number.
    """
    _guard.enter()
    try:
        yield
    finally:
        _guard.leave()


class _Guard:
    """Counts the bodies of `one_blas_thread` in this process: BLAS has one setting for all of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0
        self.earlier: list[tuple[Any, int]] = []

    def enter(self) -> None:
        with self.lock:
            if self.depth == 0:
                self.earlier = [(library, library.get_num_threads()) for library in _blas_libraries()]
                for library, _ in self.earlier:
                    library.set_num_threads(1)
            self.depth += 1

    def leave(self) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                for library, number in self.earlier:
                    _disown(library)
                    library.set_num_threads(number)
                    _disown(library)


_guard = _Guard()


@functools.cache
def _blas_libraries() -> list[Any]:
    libraries = threadpoolctl.ThreadpoolController().lib_controllers
    return [library for library in libraries if library.user_api == "blas"]


def _disown(library: Any) -> None:
    """Let any thread set the number: threadpoolctl keeps that right for the first thread that did."""
    clear = getattr(library, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)
