"""Batch norm of large images by the batch's own moments, in few passes over memory.

PyTorch's own kernel needs the fewest passes, but its second derivative is wrong under `vmap` where the scale adapts
(`exact.py`). So it gives the gradient where nothing differentiates that again: autograd says so in `.backward()`, to
which the norms of an outer gradient's queries belong, and `differentiable.py` of inner steps. What the kernel gives has
no forward-mode derivative either: PyTorch refuses one of a gradient taken without a graph.
Against moments and scaling one after the other (`standardize.py`) a meta-gradient of `mini 5-way 1-shot` takes 1.39 s
instead of 1.6 (`docs/lab-log.md`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headstart.differentiable import constant_gradient
from headstart.precision import widened


class BatchNormalized(torch.autograd.Function):
    """`x` normalised by its moments over all axes but the second, scaled and shifted; and the moments.

    With `n` values for each channel, `c = x - mean`, `s = 1 / sqrt(variance + eps)`, `y = w s c` and its gradient `g`:

        of mean, variance: 1 / n, 2 c / n       of y: w s (g - sum(g) / n - c s^2 sum(g c) / n)
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, native: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is normalised, mean and biased variance.

        Args:
            x: `[examples, channels, ...]`, of two axes at least; of half precision only if `native`.
            weight: `[channels]`, as all others here; None for one.
            bias: None for zero.
            eps: Added to the variance.
            native: By PyTorch's kernel, which is the faster one where channels come last.
        """
        if native:
            one = x.new_ones(x.shape[1], dtype=widened(x).dtype) if weight is None else weight  # which sets the type
            y, mean, invstd = torch.ops.aten.native_batch_norm(x, one, bias, None, None, True, 0.0, eps)
            return y, mean, (invstd.pow(-2) - eps).clamp_min(0)
        count, shape = _count(x), _along(x)
        mean = _sum(x) / count
        centred = x - mean.reshape(shape)
        variance = _sum_of_squares(centred) / count
        invstd = (variance + eps).rsqrt()
        y = centred.mul_((invstd if weight is None else invstd * weight).reshape(shape))
        return y if bias is None else y.add_(bias.reshape(shape)), mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep the values and their moments, not the outcome."""
        x, weight, _, ctx.eps, _ = inputs
        ctx.set_materialize_grads(False)  # of what is not used
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.save_for_forward(x, weight, *output[1:])

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """The channels of all tasks beside each other.

        That is how a convolution with weights of their own leaves them; with shared weights it is a copy.
        """
        (x, weight, bias, *rest), tasks = args, info.batch_size

        def beside(given: Tensor | None, at: int | None, to: int) -> Tensor | None:
            if given is None:
                return None
            shared = given.unsqueeze(to).expand(*given.shape[:to], tasks, *given.shape[to:])
            return (shared if at is None else given.movedim(at, to)).flatten(to, to + 1)

        of_all = beside(x, in_dims[0], 1), beside(weight, in_dims[1], 0), beside(bias, in_dims[2], 0)
        y, mean, variance = BatchNormalized.apply(*of_all, *rest)
        each = y.unflatten(1, (tasks, -1)), mean.unflatten(0, (tasks, -1)), variance.unflatten(0, (tasks, -1))
        return each, (1, 0, 0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the first three."""
        (x, weight, mean, variance), (to_y, to_mean, to_variance) = ctx.saved_tensors, grad_outputs
        invstd, asked = (variance + ctx.eps).rsqrt(), list(ctx.needs_input_grad[:3])
        count, shape, dtype = _count(x), _along(x), x.dtype
        grads: list[Tensor | None] = [None, None, None]
        if to_y is not None and x.device.type == "cpu" and constant_gradient():
            native = torch.ops.aten.native_batch_norm_backward  # on CUDA it wants a weight, as in half precision
            one = mean.new_ones(len(mean)) if weight is None and x.dtype != mean.dtype else weight
            grads = [*native(to_y, x, one, None, None, mean, invstd, True, ctx.eps, asked)]
        elif to_y is not None:
            x, to_y = widened(x), widened(to_y)
            centred, gain = x - mean.reshape(shape), invstd if weight is None else invstd * weight
            along_1, along_c = _sum(to_y), _sum(to_y * centred)
            by_moments = torch.addcmul(
                (-gain * along_1 / count).reshape(shape), centred, (-gain * invstd**2 * along_c / count).reshape(shape)
            )
            of_x = torch.addcmul(by_moments, to_y, gain.reshape(shape))
            grads = [of_x, along_c * invstd if asked[1] else None, along_1 if asked[2] else None]
        if to_mean is not None:
            grads[0] = _added(grads[0], (to_mean / count).reshape(shape).expand_as(x))
        if to_variance is not None:
            of_variance = (to_variance * (2 / count)).reshape(shape)
            grads[0] = _added(grads[0], (x - mean.reshape(shape)) * of_variance)
        grads[0] = None if grads[0] is None else grads[0].to(dtype)
        return *grads, None, None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, ...]:
        """How all three outcomes change along changes of the first three inputs."""
        (x, weight, mean, variance), (x_t, weight_t, bias_t, *_) = ctx.saved_tensors, grad_inputs
        count, shape = _count(x), _along(x)
        invstd, centred = (variance + ctx.eps).rsqrt(), x - mean.reshape(shape)
        mean_t = variance_t = torch.zeros_like(mean)
        if x_t is None:
            x_t = torch.zeros_like(x)
        else:
            mean_t, variance_t = _sum(x_t) / count, 2 * _sum(centred * x_t) / count
        relative = -0.5 * invstd**2 * variance_t  # how invstd changes, over itself
        y_t = (x_t - mean_t.reshape(shape) + centred * relative.reshape(shape)) * invstd.reshape(shape)
        y_t = y_t if weight is None else y_t * weight.reshape(shape)
        if weight_t is not None:
            y_t = y_t + centred * (invstd * weight_t).reshape(shape)
        y_t = y_t if bias_t is None else y_t + bias_t.reshape(shape)
        return y_t.to(x.dtype), mean_t, variance_t


def _added(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term


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
    """Of every channel; of contiguous images in one pass without a copy, which is vectorised for these alone."""
    if x.dim() == 2 or not x.is_contiguous():
        return _sum(x.square())
    return torch.linalg.vector_norm(x.flatten(2), dim=2).square().sum(0)
