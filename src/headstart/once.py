"""What is differentiated once, and of large images: PyTorch has the fastest kernels for it, with channels last."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

LARGE_IMAGE = 2**8
"""Positions above which a compiled graph leaves convolutions of images to PyTorch's kernels. Larger ones outgrow the
caches where they are computed as matrices: 19 s instead of 4 on 84 x 84 (`docs/lab-log.md`)."""

_once: ContextVar[bool] = ContextVar("differentiated_once", default=False)


def is_large(size: Sequence[int]) -> bool:
    """Whether an image of `size`, height and width, has more positions than `LARGE_IMAGE`."""
    return math.prod(size) > LARGE_IMAGE


@contextmanager
def differentiated_once() -> Iterator[None]:
    """A context for recording what has a gradient but no second one, as have the queries of several inner steps.

    In it convolutions and batch norms of large images remain single operations, channels last. Gradients of any order
    are right in it too; their formulas are only slower.
    """
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


def large_and_once(images: Tensor) -> bool:
    """Whether `images`, `[examples, channels, height, width]` on a CPU, are large and in `differentiated_once`."""
    return _once.get() and images.device.type == "cpu" and images.dim() == 4 and is_large(images.shape[2:])
