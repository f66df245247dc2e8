"""PyTorch's tensors, read and made. Nothing here imports PyTorch before somebody has a tensor of it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

Tensor = Any
"""A `torch.Tensor`: PyTorch's types are not read, since it is not always installed."""


def is_tensor(thing: object) -> bool:
    """Whether it is a tensor; without PyTorch in this process nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor)


def flaw_of(tensor: Tensor) -> str:
    """Why a tensor is not carried; "" if it is."""
    import torch

    if torch.nn.parameter.is_lazy(tensor):
        return "it has no shape yet; send one batch through the module first"
    if tensor.is_meta:
        return "it is a meta tensor, without numbers; make it on the CPU"
    if tensor.is_quantized:
        return "it is quantised; dequantise it"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"it is not dense ({tensor.layout}); give it as to_dense()"
    return ""


def memory(tensor: Tensor) -> tuple[str, int, int, tuple[int, ...]]:
    """Device, first byte, the byte behind the last, and the strides in bytes."""
    width = tensor.element_size()
    strides = tuple(step * width for step in tensor.stride())
    last = sum(step * (length - 1) for step, length in zip(strides, tensor.shape, strict=True))
    return str(tensor.device), tensor.data_ptr(), tensor.data_ptr() + last + width, strides


def read_tensor(tensor: Tensor) -> npt.NDArray[Any]:
    """The numbers of a tensor on any device, perhaps in its own memory; bfloat16 as float32."""
    import torch

    here = tensor.detach().cpu()
    read: npt.NDArray[Any] = (here.float() if here.dtype is torch.bfloat16 else here).numpy()
    return read


def tensor_like(tensor: Tensor, numbers: npt.NDArray[Any]) -> Tensor:
    """A new tensor on the CPU, of the same dtype and just as much a parameter."""
    import torch

    made = torch.from_numpy(np.array(numbers)).to(tensor.dtype)
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
    return made.requires_grad_(tensor.requires_grad) if made.is_floating_point() else made


__all__ = ["flaw_of", "is_tensor", "memory", "read_tensor", "tensor_like"]
