"""A process's live memory, told from what is free between it; actors import this and nothing large."""

from __future__ import annotations

import ctypes
import gc
import sys


class _Heap(ctypes.Structure):
    """`struct mallinfo2`, of which three are asked for."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("a", "b", "c", "d", "hblkhd", "e", "f", "uordblks", "fordblks", "g")
    ]


def heap(role: object = None) -> tuple[int, int, int]:
    """What a process holds once its unreachable cycles are gone.

    Returns:
        Memory in use and free in glibc's arenas, KiB, and the blocks of Python's own allocator.
    """
    gc.collect()
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = _Heap
    found = ask()
    in_use = found.uordblks + found.hblkhd
    return in_use // 1024, found.fordblks // 1024, sys.getallocatedblocks()
