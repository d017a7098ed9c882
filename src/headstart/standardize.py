"""Moments, and normalising by them, with derivatives written out: what every norm here is made of.

PyTorch differentiates the same formulas by itself, to the same values, but one operation at a time: on images most of
an eager meta-gradient went into norms. With `y = (x - mean) r`, `r = 1 / sqrt(variance + eps)` and `n` values,

    d mean / dx = 1 / n         d variance / dx = 2 (x - mean) / n
    dy / dx = r                 dy / d mean = -r                      dy / dr = y / r

Derivatives are ordinary differentiable operations again, so that any order is right, under `vmap` and forward mode too.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Moments(torch.autograd.Function):
    """Mean and biased variance over `dims`, which stay as axes of length 1.

    In two passes, as accurate as `torch.var_mean`, whose one pass no compiler or kernel vectorises: on 75 images
    of 32 x 84 x 84 that took ten times as long (`docs/lab-log.md`).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Both, by their definitions."""
        mean = _mean(x, dims)
        return mean, _mean((x - mean).square(), dims)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: tuple[Tensor, Tensor]) -> None:
        """Keep the values and their mean."""
        x, ctx.dims = inputs
        ctx.save_for_backward(x, output[0])
        ctx.save_for_forward(x, output[0])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """One multiplication and one addition for each value."""
        (x, mean), (to_mean, to_variance) = ctx.saved_tensors, grad_outputs
        count = x.numel() // mean.numel()
        slope = to_variance * (2 / count)
        return torch.addcmul(to_mean / count - mean * slope, x, slope), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, Tensor]:
        """The same forwards."""
        (x, mean), tangent = ctx.saved_tensors, grad_inputs[0]
        return _mean(tangent, ctx.dims), 2 * _mean((x - mean) * tangent, ctx.dims)


class Scaled(torch.autograd.Function):
    """`(x - mean) * r`, where `mean` and `r` have an axis of length 1 for each that they are shared along."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, mean: Tensor, r: Tensor) -> Tensor:
        """The product."""
        return (x - mean) * r

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keep the scale and the outcome."""
        ctx.save_for_backward(inputs[2], output)
        ctx.save_for_forward(inputs[2], output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two products and two sums."""
        (r, y), (g,) = ctx.saved_tensors, grad_outputs
        return g * r, -r * _summed(g, r), _summed(g * y, r) / r

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor) -> Tensor:
        """The same forwards."""
        (r, y), (x, mean, scale) = ctx.saved_tensors, grad_inputs
        return (x - mean) * r + y * (scale / r)


def _summed(values: Tensor, like: Tensor) -> Tensor:
    """The sums of `values` over the axes along which `like` is shared."""
    return _sum(values, [i for i, size in enumerate(like.shape) if size != values.shape[i]])


def _mean(x: Tensor, dims: Iterable[int]) -> Tensor:
    total = _sum(x, list(dims))
    return total / (x.numel() // total.numel())


def _sum(x: Tensor, dims: list[int]) -> Tensor:
    """Over the last axes first, then over examples: as fast, and for channels-last images twice as fast."""
    if 0 in dims and len(dims) > 1:
        x, dims = x.sum([i for i in dims if i > 0], keepdim=True), [0]
    return x.sum(dims, keepdim=True) if dims else x  # of no axes it would be the sum of all


def moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over `dims`, which stay as axes of length 1."""
    return _called(Moments, x, tuple(dims))


def normalized(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """`x` less `mean`, in units of the standard deviation; both have one shape, with as many axes as `x`."""
    return _called(Scaled, x, mean, (variance + eps).rsqrt())


def standardized(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """`x` normalised by its own moments over `dims`."""
    return normalized(x, *moments(x, dims), eps)


def _called(function: type[torch.autograd.Function], *args: Any) -> Any:
    # `torch.compile` and `torch.export` trace no function with a `jvp`, and differentiate the formulas as well.
    return function.forward(*args) if torch.compiler.is_compiling() else function.apply(*args)
