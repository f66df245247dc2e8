"""Which rows are tensors: decided without importing torch, which a plain installation does not have.

Guarantees:
    What NumPy reads is left to NumPy; a tensor of torch never is.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from scarcity_ray.errors import UsageError
from scarcity_ray.robust.arrays.blocks import Rows

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
    several = updates if isinstance(updates, list | tuple) else [updates]
    if not any(map(_is_tensor, several)):
        return None
    rows: TensorRows = _kernels("rows on a device").TensorRows.given(updates)
    return rows


def copied_to(rows: Rows, device: str) -> TensorRows:
    """NumPy's float32 rows copied to a device.

    Raises:
        UsageError: Without torch.
    """
    copied: TensorRows = _kernels("rows on a device").TensorRows.copied(rows, device)
    return copied


def own_gpu() -> str:
    """The GPU of this process, as torch names it: of those that Ray lets a role see, the first.

    Raises:
        UsageError: Without torch, or if that finds no GPU.
    """
    torch = _imported("torch", "rows on a GPU")
    if not torch.cuda.is_available():
        raise UsageError(
            "runtime.gpus_per_actor asks for a GPU, and PyTorch finds none in this process (torch "
            f"{torch.__version__}): install a PyTorch with CUDA and the driver of the card, or set it to 0"
        )
    return "cuda"


def _kernels(what: str) -> ModuleType:
    """The module `kernels`, which imports torch."""
    return _imported("scarcity_ray.robust.tensors.kernels", what)


def _imported(module: str, what: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{what} need {error.name}; install it with: pip install 'scarcity-ray[torch]'"
        ) from None


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
