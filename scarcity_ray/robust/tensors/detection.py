"""Which rows are tensors: decided without importing torch, which a plain installation does not have.

Guarantees:
    What NumPy reads is left to NumPy; a tensor of torch never is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from scarcity_ray.errors import UsageError

if TYPE_CHECKING:
    from scarcity_ray.robust.tensors.kernels import TensorRows

CPU = 1
"""DLPack's number of the CPU."""

REMEDY = "give NumPy arrays, for example [row.cpu().float().numpy() for row in updates]"


def tensor_rows(updates: object) -> TensorRows | None:
    """The rows, if they are tensors of torch or arrays that only a device can read; else None.

    Args:
        updates: (n, d) tensor, or a list or tuple of n rows of length d.

    Raises:
        UsageError: For a wrong shape, type or device, or without torch.
    """
    first = updates[0] if isinstance(updates, list | tuple) and updates else updates
    if not _is_tensor(first):
        return None
    try:
        from scarcity_ray.robust.tensors.kernels import TensorRows
    except ModuleNotFoundError as error:
        raise UsageError(
            f"rows on a device need {error.name}; install it with: pip install 'scarcity-ray[torch]'"
        ) from None
    return TensorRows.given(updates)


def _is_tensor(value: object) -> bool:
    """Whether it is a tensor of torch, or lies where NumPy cannot read it."""
    if isinstance(value, np.ndarray | np.generic):
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return True
    if hasattr(value, "__cuda_array_interface__"):
        return True
    if not (hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")):
        return False
    return not hasattr(value, "__array__") or value.__dlpack_device__()[0] != CPU
