"""The compiled column kernel, where LLVM is installed (the extra ``fast``).

It is compiled in memory when a process first needs it (about 0.05 s), for the processor at hand; nothing is
written to disk and no compiler is called. A process without it gets the same bits from NumPy, so that nodes
that differ in the extra agree.

*Guarantees*
    - The kernel's bits are those of NumPy's.
    - Rows are never written to.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.blocks import workspace
from scarcity_ray.robust.kernel_code import TILE, UNIT_FIELDS, kernel_code
from scarcity_ray.robust.units import unit_network

LINE = 16
"""float32 entries of a cache line: rows begin on one, and blocks are filled up to whole ones."""

_ARGUMENTS = [ctypes.c_void_p if letter == "p" else ctypes.c_int64 for letter in "piiippiiiip"]


class ColumnKernel:
    """The kernel's machine code for this processor.

    Raises:
        ImportError: If llvmlite is not installed.
        PermissionError: If this process may not make memory executable.
        RuntimeError: If LLVM has no compiler for this processor.
    """

    def __init__(self) -> None:
        _check_execution()
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        module = llvm.parse_assembly(kernel_code(16 if features.get("avx512f") else 8))
        module.verify()
        machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=2
        )
        self._engine: Any = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self._columns = ctypes.CFUNCTYPE(None, *_ARGUMENTS)(self._engine.get_function_address("columns"))

    def __call__(
        self, rows: Sequence[NDArray[np.float32]], start: int, stop: int, *, around_median: bool
    ) -> NDArray[np.float32]:
        """Mean, least and largest of a window of each sorted column; see `columns.window_summary`.

        Args:
            rows: m float32 rows of length b without NaN.
            start: First rank, from 0.
            stop: One past the last, at most m.
            around_median: Whether it is the stop - start values closest to the median instead; start is 0.

        Returns:
            (3, b) float32 in scratch memory of this thread that is valid until the next call.
        """
        num_rows, length = len(rows), len(rows[0])
        filled = -(-length // LINE) * LINE
        block = _aligned("kernel rows", num_rows, filled + LINE)
        for row, copied in zip(rows, block, strict=True):
            np.copyto(copied[:length], row)
        block[:, length:filled] = 0.0
        tile = _aligned("kernel tile", num_rows + 1, TILE)
        tile[num_rows] = np.inf
        units = _encoded(num_rows, *((0, num_rows) if around_median else (start, stop)))
        out = workspace("kernel out", (3, filled), np.float32)
        self._columns(
            block.ctypes.data,
            filled + LINE,
            num_rows,
            filled,
            tile.ctypes.data,
            units.ctypes.data,
            len(units),
            start,
            stop,
            num_rows if around_median else stop,
            out.ctypes.data,
        )
        summary: NDArray[np.float32] = out[:, :length]
        return summary


def _check_execution() -> None:
    """Raises PermissionError where a hardened Linux refuses executable memory: LLVM would crash then."""
    if sys.platform == "linux":
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        executable = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        mmap.mmap(-1, mmap.PAGESIZE, flags=private, prot=executable).close()


def _aligned(name: str, num_rows: int, width: int) -> NDArray[np.float32]:
    """Scratch memory of (num_rows, width) entries that begins on a cache line."""
    raw = workspace(name, (num_rows * width + LINE,), np.float32)
    shift = -(raw.ctypes.data // raw.itemsize) % LINE
    aligned: NDArray[np.float32] = raw[shift : shift + num_rows * width].reshape(num_rows, width)
    return aligned


@functools.lru_cache(maxsize=256)
def _encoded(num_wires: int, start: int, stop: int) -> NDArray[np.int64]:
    units = [(kind, *(wire * TILE for wire in wires)) for kind, wires in unit_network(num_wires, start, stop)]
    return np.array(units, np.int64).reshape(-1, UNIT_FIELDS)
