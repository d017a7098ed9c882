"""Moments, and normalising by them, with derivatives written out: what norms are made of in the inner loop.

Except batch norm of large images by the moments of the batch itself, see `batch_norm.py`.

PyTorch differentiates the same formulas by itself, but one operation at a time; on large images that takes twice as
long (`docs/lab-log.md`). With `y = (x - mean) scale`, `scale = 1 / sqrt(variance + eps)`, and `n` values for each mean,

    d mean / dx = 1 / n         d variance / dx = 2 (x - mean) / n
    dy / dx = scale             dy / d mean = -scale                    dy / d scale = y / scale

Derivatives are ordinary differentiable operations again, so that any order is right, under `vmap` and forward mode too.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.worthwhile import worthwhile


def moments(x: Tensor, dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` over `dims`, which stay as axes of length 1.

    In two passes, as accurate as `torch.var_mean`, whose one pass no compiler or kernel vectorises: on 75 images
    of 32 x 84 x 84 that took ten times as long (`docs/lab-log.md`).
    """
    axes = range(x.dim())
    return _apply(Moments, x, *[axes[i] for i in dims])  # which must not be negative any more


def normalized(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """`(x - mean) / sqrt(variance + eps)`.

    Args:
        x: Of any shape.
        mean: With as many axes as `x`, of length 1 where values share it. `variance` is of the same shape.
        eps: Added to the variance.
    """
    return _apply(Scaled, x, mean, (variance + eps).rsqrt())


def standardized(x: Tensor, dims: Sequence[int], eps: float) -> Tensor:
    """`x` normalised by its own moments over `dims`."""
    return normalized(x, *moments(x, dims), eps)


def _apply(function: type[torch.autograd.Function], x: Tensor, *args: Any) -> Any:
    """What `function` computes, with its derivatives where that is faster, else with PyTorch's of its formula."""
    return function.apply(x, *args) if worthwhile(x) else function.forward(x, *args)


class Moments(torch.autograd.Function):
    """Mean and biased variance over axes, none negative, which stay as axes of length 1."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, *dims: int) -> tuple[Tensor, Tensor]:
        """Both, by their definitions."""
        mean = _mean(x, dims)
        return mean, _mean((x - mean).square(), dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the values and their mean."""
        x, *ctx.dims = inputs
        ctx.save_for_backward(x, output[0])
        ctx.save_for_forward(x, output[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `x`."""
        (x, mean), (to_mean, to_variance) = ctx.saved_tensors, grad_outputs
        count = _count(x, ctx.dims)
        grad = torch.addcmul(to_mean / count, x - mean, to_variance * (2 / count))
        return grad, *(None for _ in ctx.dims)

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, Tensor]:
        """How both change along a change of `x`."""
        (x, mean), change = ctx.saved_tensors, grad_inputs[0]
        return _mean(change, ctx.dims), 2 * _mean((x - mean) * change, ctx.dims)


class Scaled(torch.autograd.Function):
    """`(x - mean) * scale`, where `mean` and `scale` have one shape, of length 1 along each axis where it is shared."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """The product."""
        return (x - mean) * scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep the scale and the outcome."""
        ctx.save_for_backward(inputs[2], output)
        ctx.save_for_forward(inputs[2], output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of all three."""
        (scale, y), (grad,) = ctx.saved_tensors, grad_outputs
        shared = [i for i, size in enumerate(scale.shape) if size != y.shape[i]]
        return grad * scale, -scale * _sum(grad, shared), _sum(grad * y, shared) / scale

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        """How the product changes along changes of all three."""
        (scale, y), (x, mean, of_scale) = ctx.saved_tensors, grad_inputs
        return (x - mean) * scale + y * (of_scale / scale)


def _count(x: Tensor, dims: Sequence[int]) -> int:
    return math.prod([x.shape[i] for i in dims])


def _mean(x: Tensor, dims: Sequence[int]) -> Tensor:
    return _sum(x, dims) / _count(x, dims)


def _sum(x: Tensor, dims: Sequence[int]) -> Tensor:
    """Over the last axes first, then over examples: as fast, and faster for channels-last images."""
    if 0 in dims and len(dims) > 1:
        x, dims = x.sum([i for i in dims if i > 0], keepdim=True), [0]
    return x.sum(list(dims), keepdim=True) if dims else x  # of no axes it would be the sum of all
