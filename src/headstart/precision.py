"""In which type a tensor is computed with: half precision widened for norms and losses, narrowed as autocast does."""

from typing import Any

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in at least single precision, in which the native kernels, too, compute their statistics."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def narrowed(*values: Any) -> tuple[Any, ...]:
    """`values` with tensors cast as autocast does, where it is on for the first one's device: all but double precision.

    Under `vmap` PyTorch takes convolutions and linear layers apart before its autocast on a CPU knows them: without a
    word they would be computed in single precision. What is given twice stays one tensor.
    """
    kind = next((value.device.type for value in values if isinstance(value, Tensor)), "cpu")
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return values
    dtype, distinct = torch.get_autocast_dtype(kind), {id(value): value for value in values}
    for key, value in distinct.items():
        if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
            distinct[key] = value.to(dtype)
    return tuple(distinct[id(value)] for value in values)
