"""Compiles the kernels that are written in Numba (the extra ``fast``), or reads them from the cache.

Compiling takes some seconds, once for a processor and version; after that a process needs half a second, when
it first meets a block that is worth it (`worth_a_kernel`). No compiler is needed. No kernel has a fast-math
flag, so that every operation is the IEEE one, in the order written.

Guarantees:
    What is kept is keyed by the processor, the versions and the kernels' sources.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import mmap
import platform
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.threads import workspace
from scarcity_ray.robust.native.cache_folder import kernel_folder, one_at_a_time

K = TypeVar("K")

logger = logging.getLogger(__name__)

FEWEST_ENTRIES = 65_536
"""Entries of a block below which no kernel is loaded: NumPy takes 0.2 ms for them, loading half a second."""

LINE_BYTES = 64
"""Bytes of a cache line, and of the widest vector."""

TYPES = {
    "i": "int64",
    "f": "float32[::1]",
    "d": "float64[::1]",
    "h": "int16[::1]",
    "n": "int64[::1]",
    "m": "int64[:,::1]",
}
"""Numba's names of arguments' types by a letter: an integer, flat arrays, and a matrix of integers."""

SOURCES = sorted([*Path(__file__).parent.glob("*.py"), *Path(__file__).parents[1].glob("arrays/*.py")])
"""The kernels and all that they take constants from."""

_loading = threading.Lock()


class UnsuitedProcessor(Exception):
    """Kernels cannot be had here, and need not be: other code does the same."""


def worth_a_kernel(num_rows: int, num_columns: int) -> bool:
    """Whether a kernel takes a block of this shape, if there is one."""
    return num_rows * num_columns >= FEWEST_ENTRIES


def compiled(module: str, signatures: Mapping[str, str]) -> dict[str, Callable[..., None]]:
    """Functions of a module of this folder as machine code for this processor.

    Args:
        module: The module's name, such as ``columns``.
        signatures: The functions' names there, and of each a letter an argument, of `TYPES`.

    Raises:
        ImportError: If Numba is not installed.
        UnsuitedProcessor: If Numba is told not to compile (``NUMBA_DISABLE_JIT``).
        OSError: If this process may not make memory executable, or no folder is safe to keep kernels in.
        RuntimeError: If Numba cannot compile for this processor, or read what it kept.
    """
    _check_execution()
    with _loading:
        import numba

        if numba.config.DISABLE_JIT:
            raise UnsuitedProcessor("NUMBA_DISABLE_JIT is set")
        try:
            from scarcity_ray.robust.native.vectors import PROCESSOR

            functions = importlib.import_module(f"scarcity_ray.robust.native.{module}")
        except Exception as error:
            raise RuntimeError(f"the kernels are not made for this version of Numba: {error}") from error
        folder = kernel_folder(key_of(PROCESSOR))
        with one_at_a_time(folder):
            return {
                name: _load(getattr(functions, name), letters, folder) for name, letters in signatures.items()
            }


def key_of(processor: tuple[str, str, str]) -> str:
    """Names what machine code depends on: the processor, the versions and the sources."""
    versions = [platform.python_version(), *(version(name) for name in ("numba", "llvmlite", "numpy"))]
    digest = hashlib.sha256(repr((processor, versions)).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:32]


def _load(function: Any, letters: str, folder: Path) -> Callable[..., None]:
    """The function with the one signature, from the folder or compiled into it."""
    import numba

    earlier, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        function.enable_caching()
    finally:
        numba.config.CACHE_DIR = earlier
    if not Path(function.stats.cache_path).is_relative_to(folder):
        raise RuntimeError(f"Numba keeps kernels in {function.stats.cache_path}, not in {folder}")
    function.disable_compile(False)
    try:
        function.compile(f"void({', '.join(TYPES[letter] for letter in letters)})")
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__} for the kernel kept in {folder}: {error}") from error
    function.disable_compile()
    return function  # type: ignore[no-any-return]


def checked_kernel(make: Callable[[], K], is_right: Callable[[K], bool], otherwise: str) -> K | None:
    """The kernel that `make` compiles, unless it cannot be had here or `is_right`, which tries it, says no.

    `otherwise` says what is done without it, for the log.
    """
    try:
        kernel = make()
    except (ImportError, UnsuitedProcessor):
        return None
    except (OSError, RuntimeError) as error:
        logger.warning("%s, as kernels cannot be compiled and kept here: %s", otherwise, error)
        return None
    if is_right(kernel):
        return kernel
    logger.error("%s, as the code that Numba makes for this machine gives other values", otherwise)
    return None


def aligned(name: str, shape: tuple[int, int], dtype: type[np.generic]) -> NDArray[Any]:
    """What `workspace` gives, beginning on a cache line."""
    extra = LINE_BYTES // np.dtype(dtype).itemsize
    size = shape[0] * shape[1]
    raw = workspace(name, (size + extra,), dtype)
    shift = -(raw.ctypes.data // raw.itemsize) % extra
    return raw[shift : shift + size].reshape(shape)


def _check_execution() -> None:
    """Raise PermissionError where a hardened Linux refuses executable memory, on which LLVM would crash."""
    if sys.platform == "linux":
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        executable = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        mmap.mmap(-1, mmap.PAGESIZE, flags=private, prot=executable).close()
