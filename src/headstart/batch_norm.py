"""Batch norm by the batch's own moments, in few passes over memory.

On large images, norms take most of the time that convolutions leave. PyTorch's own kernel needs the fewest passes, but
its second derivative is wrong under `vmap` where the scale adapts (`exact.py`). So it is used for the gradient where
nothing differentiates that again, as is so for all queries of an outer gradient.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class BatchNormalized(torch.autograd.Function):
    """`x` normalised by its moments over all axes but the second, scaled and shifted; and the moments.

    With `n` values for each channel, `c = x - mean` and `s = 1 / sqrt(variance + eps)`,

        d mean / dx = 1 / n     d variance / dx = 2 c / n     dy / dx = w s     dy / d mean = -w s     dy / ds = w c
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """What is normalised, mean and biased variance.

        Args:
            x: `[examples, channels, ...]`, of two axes at least.
            weight: `[channels]`, as all others here; None for one.
            bias: None for zero.
            eps: Added to the variance.
        """
        count, shape = _count(x), _along(x)
        mean = _sum(x) / count
        centred = x - mean.reshape(shape)
        variance = _sum_of_squares(centred) / count
        scale = (variance + eps).rsqrt()
        y = centred.mul_((scale if weight is None else scale * weight).reshape(shape))
        return y if bias is None else y.add_(bias.reshape(shape)), mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the values and their moments, not the outcome."""
        x, weight, _, ctx.eps = inputs
        ctx.set_materialize_grads(False)  # of what is not used
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.save_for_forward(x, weight, *output[1:])

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The channels of all tasks beside each other, as a convolution with weights of their own leaves them."""
        (x, weight, bias, eps), tasks = args, info.batch_size

        def beside(given: Tensor | None, at: int | None, to: int) -> Tensor | None:
            if given is None:
                return None
            shared = given.unsqueeze(to).expand(*given.shape[:to], tasks, *given.shape[to:])
            return (shared if at is None else given.movedim(at, to)).flatten(to, to + 1)

        of_all = beside(x, in_dims[0], 1), beside(weight, in_dims[1], 0), beside(bias, in_dims[2], 0)
        y, mean, variance = BatchNormalized.apply(*of_all, eps)
        each = y.unflatten(1, (tasks, -1)), mean.unflatten(0, (tasks, -1)), variance.unflatten(0, (tasks, -1))
        return each, (1, 0, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the first three."""
        (x, weight, mean, variance), (to_y, to_mean, to_variance) = ctx.saved_tensors, grad_outputs
        scale, asked = (variance + ctx.eps).rsqrt(), list(ctx.needs_input_grad[:3])
        if to_y is not None and to_mean is None and to_variance is None and not torch.is_grad_enabled():
            native = torch.ops.aten.native_batch_norm_backward
            return *native(to_y, x, weight, None, None, mean, scale, True, ctx.eps, asked), None
        count, shape = _count(x), _along(x)
        centred, strength = x - mean.reshape(shape), scale if weight is None else scale * weight
        along_1 = along_c = torch.zeros_like(mean)
        if to_y is not None:
            along_1, along_c = _sum(to_y), _sum(to_y * centred)
        of_mean = (0 if to_mean is None else to_mean) - strength * along_1
        of_variance = (0 if to_variance is None else to_variance) - 0.5 * strength * scale**2 * along_c
        of_x = torch.addcmul((of_mean / count).reshape(shape), centred, (of_variance * (2 / count)).reshape(shape))
        of_x = of_x if to_y is None else of_x + to_y * strength.reshape(shape)
        return of_x, along_c * scale if asked[1] else None, along_1 if asked[2] else None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, ...]:
        """How all three outcomes change along a change of the first three inputs."""
        x, weight, bias, _ = grad_inputs
        values, kept, mean, variance = ctx.saved_tensors
        count, shape = _count(values), _along(values)
        scale, centred = (variance + ctx.eps).rsqrt(), values - mean.reshape(shape)
        of_mean = of_variance = torch.zeros_like(mean)
        change = torch.zeros_like(values) if x is None else x
        if x is not None:
            of_mean, of_variance = _sum(x) / count, 2 * _sum(centred * x) / count
        relative = -0.5 * scale**2 * of_variance  # how the scale changes, over the scale
        of_y = (change - of_mean.reshape(shape) + centred * relative.reshape(shape)) * scale.reshape(shape)
        of_y = of_y if kept is None else of_y * kept.reshape(shape)
        if weight is not None:
            of_y = of_y + centred * (scale * weight).reshape(shape)
        return of_y if bias is None else of_y + bias.reshape(shape), of_mean, of_variance


def _count(x: Tensor) -> int:
    """Values per channel."""
    return x.numel() // x.shape[1]


def _along(x: Tensor) -> list[int]:
    """The shape in which a number per channel meets `x`."""
    return [-1] + [1] * (x.dim() - 2)


def _sum(x: Tensor) -> Tensor:
    """Of every channel: over positions, then over examples, which is faster than at once."""
    return (x if x.dim() == 2 else x.flatten(2).sum(2)).sum(0)


def _sum_of_squares(x: Tensor) -> Tensor:
    if x.dim() == 2:
        return x.square().sum(0)
    # One pass without a copy, which no other way to write it is.
    return torch.linalg.vector_norm(x, dim=list(range(2, x.dim()))).square().sum(0)
