"""When a function with derivatives of its own, written in Python, is faster than PyTorch's operations."""

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

LARGE = 2**16
"""Values, of one task under `vmap`, from which on calling it costs less than it saves (`docs/lab-log.md`)."""


def is_large(x: Tensor) -> bool:
    """Whether `x` has that many values."""
    return x.numel() >= LARGE


def worthwhile(x: Tensor) -> bool:
    """Whether `x` is large, and nothing records operations: what is compiled is as fast from PyTorch's own."""
    return is_large(x) and not torch.compiler.is_compiling() and not _len_torch_dispatch_stack()
