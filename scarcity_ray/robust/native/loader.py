"""Compiles LLVM assembly into functions of this process (the extra ``fast``), and common pieces of assembly.

The code is compiled in memory, for the processor at hand; nothing is written to disk and no compiler is
called. It takes some hundredths of a second, once, when a process first needs a kernel. No kernel has a
fast-math flag, so that every operation is the IEEE one, in the order written.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.robust.arrays.threads import workspace

K = TypeVar("K")

logger = logging.getLogger(__name__)

ARGUMENTS = {"p": ctypes.c_void_p, "i": ctypes.c_int64}

LINE_BYTES = 64
"""Bytes of a cache line, and of the widest vector."""


class UnsuitedProcessor(Exception):
    """A kernel is not made for this processor, where other code is at its best."""


class MachineCode:
    """The machine code of some functions for this processor.

    Args:
        assembly: Gives the LLVM assembly, told whether the processor has 512-bit vectors.
        signatures: The functions' names there, and of each a letter an argument: ``p`` for a pointer, ``i``
            for an int64.

    Raises:
        ImportError: If llvmlite is not installed.
        PermissionError: If this process may not make memory executable.
        RuntimeError: If LLVM has no compiler for this processor.
    """

    def __init__(self, assembly: Callable[[bool], str], signatures: Mapping[str, str]) -> None:
        _check_execution()
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = llvm.get_host_cpu_features()
        module = llvm.parse_assembly(assembly(bool(features.get("avx512f"))))
        module.verify()
        machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=2
        )
        self._engine: Any = llvm.create_mcjit_compiler(module, machine)
        self._engine.finalize_object()
        self._functions = {
            name: ctypes.CFUNCTYPE(None, *(ARGUMENTS[letter] for letter in letters))(
                self._engine.get_function_address(name)
            )
            for name, letters in signatures.items()
        }

    def __call__(self, function: str, *arguments: int | NDArray[Any]) -> None:
        """Run one of the functions; a pointer is given as an array, or as an address."""
        self._functions[function](*[a if isinstance(a, int) else a.ctypes.data for a in arguments])


def checked_kernel(make: Callable[[], K], is_right: Callable[[K], bool], otherwise: str) -> K | None:
    """The kernel that `make` compiles, unless it cannot be had here or `is_right`, which tries it, says no.

    `otherwise` says what is done without it, for the log.
    """
    try:
        kernel = make()
    except (ImportError, UnsuitedProcessor):
        return None
    except (OSError, RuntimeError) as error:
        logger.warning("%s, as LLVM cannot compile for this machine: %s", otherwise, error)
        return None
    if is_right(kernel):
        return kernel
    logger.error("%s, as LLVM's code for this machine gives other values", otherwise)
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


def splat(name: str, lanes: int, kind: str, value: str) -> str:
    """``%name``: a vector whose lanes all hold the value."""
    vector = f"<{lanes} x {kind}>"
    return f"""  %{name}.first = insertelement {vector} poison, {kind} {value}, i64 0
  %{name} = shufflevector {vector} %{name}.first, {vector} poison, <{lanes} x i32> zeroinitializer"""


def inside(column: str, lanes: int) -> str:
    """``%column.inside``: which columns from ``%column`` on are below those that ``%columns.all`` holds."""
    places, numbers = f"<{lanes} x i64>", ", ".join(f"i64 {lane}" for lane in range(lanes))
    return f"""{splat(f"{column}.all", lanes, "i64", f"%{column}")}
  %{column}.lanes = add {places} %{column}.all, <{numbers}>
  %{column}.inside = icmp ult {places} %{column}.lanes, %columns.all"""
