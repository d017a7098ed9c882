"""Operations that runtimes lack, gradients of layers above all, written as such that every runtime has.

    code      of an ordinary convolution              shape
    x         what it was given                       [examples, channels, ...]
    weight    its kernel                              [filters, channels / groups, ...]
    grad      gradient at its output                  [examples, filters, ...]

The gradient at `x` is the transposed convolution of `grad` with the kernel. The gradient at the kernel is a convolution
too, in which examples and channels change places: each channel of `x` is slid over by `grad`, whose values stand
`stride` apart, in strides of `dilation`. A transposed convolution is the same with `x` and `grad` exchanged.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of a convolution at its input, kernel and bias, each where `output_mask` asks for it."""
    at_x = at_weight = at_bias = None
    stride, padding, dilation = (_each(values, x.dim() - 2) for values in (stride, padding, dilation))
    none = [0] * len(stride)
    if output_mask[0] and transposed:
        at_x = aten.convolution(grad, weight, None, stride, padding, dilation, False, none, groups)
    elif output_mask[0]:
        reached = [
            (size - 1) * s - 2 * p + d * (k - 1) + 1
            for size, s, p, d, k in zip(grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
        ]
        rest = [size - end for size, end in zip(x.shape[2:], reached, strict=True)]
        at_x = aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, groups)
    if output_mask[1]:
        slid, over = (x, grad) if transposed else (grad, x)
        at_weight = aten.convolution(
            _by_channel(over, groups), slid.transpose(0, 1), None, dilation, padding, stride, False, none, groups
        ).transpose(0, 1)
        for axis, size in enumerate(weight.shape[2:], 2):  # what no stride reached is not of the kernel
            at_weight = at_weight.narrow(axis, 0, size)
    if output_mask[2]:
        at_bias = grad.sum([0, *range(2, grad.dim())])
    return at_x, at_weight, at_bias


def max_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """The gradient at the input of a max-pooling: each window's goes to where its largest value is."""
    places = x.new_zeros(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    return places.scatter_add(-1, indices.flatten(-2), grad.flatten(-2)).reshape(x.shape)


def avg_pool2d_backward(
    grad: Tensor,
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Any:
    """The gradient at the input of an average-pooling: a transposed convolution of each channel with a constant."""
    size, step, pad = (_each(values, 2) for values in (kernel_size, stride or kernel_size, padding))
    if ceil_mode or (any(pad) and not count_include_pad):
        return NotImplemented  # windows of several sizes
    weight = grad.new_full((1, 1, *size), 1 / (divisor_override or size[0] * size[1]))
    channels = x.reshape(-1, 1, *x.shape[-2:])
    at_each, _, _ = convolution_backward(
        grad.reshape(-1, 1, *grad.shape[-2:]),
        channels,
        weight,
        None,
        step,
        pad,
        [1, 1],
        False,
        [0, 0],
        1,
        [True, False, False],
    )
    assert at_each is not None
    return at_each.reshape(x.shape)


def adaptive_avg_pool2d_backward(grad: Tensor, x: Tensor) -> Any:
    """The same, where the input's size is a multiple of the output's."""
    size = [inside // outside for inside, outside in zip(x.shape[-2:], grad.shape[-2:], strict=True)]
    if any(inside % outside for inside, outside in zip(x.shape[-2:], grad.shape[-2:], strict=True)):
        return NotImplemented  # windows of several sizes
    return avg_pool2d_backward(grad, x, size, size, [0, 0], False, True, None)


def empty_permuted(size: Sequence[int], physical_layout: Sequence[int], **kwargs: Any) -> Tensor:
    """What some gradients are written into: zeros, whose layout in memory is no runtime's concern."""
    return torch.zeros(size, dtype=kwargs.get("dtype"), device=kwargs.get("device"))


def power(x: Tensor, exponent: float) -> Any:
    """Small powers as products: ONNX Runtime's power took a sixth of an adaptation's time, for the variances."""
    products: dict[float, Callable[[], Tensor]] = {1: lambda: x.clone(), 2: lambda: x * x, 3: lambda: x * x * x}
    return products[exponent]() if exponent in products else NotImplemented


SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    aten.convolution_backward.default: convolution_backward,
    aten.avg_pool2d_backward.default: avg_pool2d_backward,
    aten._adaptive_avg_pool2d_backward.default: adaptive_avg_pool2d_backward,
    aten.empty_permuted.default: empty_permuted,
    aten.pow.Tensor_Scalar: power,
    aten.max_pool2d_with_indices_backward.default: max_pool2d_backward,
}
"""What is written instead, by operation."""


def _each(values: Sequence[int], axes: int) -> list[int]:
    return list(values) * axes if len(values) == 1 else list(values)


def _by_channel(x: Tensor, groups: int) -> Tensor:
    """`[examples, groups * channels, ...]` as `[channels, groups * examples, ...]`."""
    if groups == 1:
        return x.transpose(0, 1)
    apart = x.unflatten(1, (groups, -1))  # [examples, groups, channels, ...]
    return apart.permute(2, 1, 0, *range(3, apart.dim())).flatten(1, 2)
