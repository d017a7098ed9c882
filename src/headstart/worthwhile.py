"""Where functions with derivatives written in Python, or PyTorch's own kernels, are faster than its operations."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

LARGE = 2**16
"""Values, of one task under `vmap`, from which on calling it costs less than it saves (`docs/lab-log.md`)."""
LARGE_IMAGE = 2**8
"""Positions above which a compiled graph leaves images to PyTorch's kernels. Larger ones outgrow the caches where they
are computed as matrices: 19 s instead of 4 on 84 x 84 (`docs/lab-log.md`)."""

_once: ContextVar[bool] = ContextVar("differentiated_once", default=False)


def worthwhile(x: Tensor) -> bool:
    """Whether `x` is large, and nothing records operations: what is compiled is as fast from PyTorch's own."""
    return x.numel() >= LARGE and not torch.compiler.is_compiling() and not _len_torch_dispatch_stack()


def is_large(size: Sequence[int]) -> bool:
    """Whether an image of `size`, height and width, has more positions than `LARGE_IMAGE`."""
    return math.prod(size) > LARGE_IMAGE


@contextmanager
def differentiated_once() -> Iterator[None]:
    """A context for recording what has a gradient, but no second: the queries of compiled inner steps.

    Of large images convolutions, batch norms and max-pooling then remain single operations, channels last, for which
    PyTorch has the fastest kernels. What is computed does not depend on it.
    """
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


def natively(images: Tensor) -> bool:
    """Whether `images` are better left to PyTorch's kernels: large, on a CPU, and inside `differentiated_once`."""
    return _once.get() and images.device.type == "cpu" and images.dim() == 4 and is_large(images.shape[2:])
