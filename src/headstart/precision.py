"""In which type a tensor is computed with: half precision widened for norms and losses, narrowed as autocast does."""

from typing import Any

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in at least single precision, in which the native kernels, too, compute their statistics."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def narrowed(*values: Any) -> tuple[Any, ...]:
    """Single-precision tensors among `values` in autocast's type, where it is on for the first tensor's device.

    Under `vmap` PyTorch takes convolutions and linear layers apart before its autocast on a CPU knows them: without a
    word they would be computed in single precision.
    """
    kind = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
    if not torch.is_autocast_enabled(kind):
        return values
    dtype = torch.get_autocast_dtype(kind)
    return tuple(v.to(dtype) if isinstance(v, Tensor) and v.dtype == torch.float32 else v for v in values)
