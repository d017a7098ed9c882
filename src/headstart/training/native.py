"""Operations of a compiled graph that are left to PyTorch's native code, instead of what its compiler generates.

Max-pooling's gradient always: generated, it asks each position of an image which of the windows around it chose it, and
finds out anew wherever the answer is used. Vectorised, in bfloat16, in a network of four pooled blocks, that gave
gradients several times too large; without vector instructions, and by PyTorch's native code, they agree with eager
mode's (`docs/lab-log.md`).

Max-pooling of large images: generated it takes twice to five times as long as copying them to channels last and back,
for which PyTorch's kernel is fast. And batch norm by PyTorch's kernel, as `batch_norm.py` records it, for large images
with channels last: generated it is slow in that layout.

All ask for the layouts in which they were recorded: the compiler would choose others for what is between them, and
PyTorch's kernels copy there and back.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from headstart.once import is_large

_aten = torch.ops.aten


def keep_native(graph: GraphModule) -> None:
    """Replace these operations, in place, in a graph recorded on a CPU, by ones that the compiler does not know."""
    own = torch.ops.headstart
    for node in graph.graph.find_nodes(op="call_function", target=_aten.max_pool2d_with_indices_backward.default):
        grad, images, *window, indices = node.args
        if _on_cpu(images):
            node.target = own.max_pool_gradient.default
            node.args = grad, indices, list(images.meta["val"].shape), *window
    for node in graph.graph.find_nodes(op="call_function", target=_aten.max_pool2d_with_indices.default):
        images, *window = node.args
        x = images.meta["val"]
        if _on_cpu(images) and x.dim() == 4 and x.is_floating_point() and is_large(x.shape[-2:]):
            node.target = own.max_pool.default
            node.args = images, *window, *_DEFAULTS[len(window) - 1 :]
    for node in graph.graph.find_nodes(op="call_function", target=_aten.native_batch_norm.default):
        images, weight, bias, running_mean, running_var, training, _, eps = node.args
        if _on_cpu(images) and training and weight is not None and running_mean is running_var is None:
            node.target, node.args = own.batch_norm.default, (images, weight, bias, eps)
    for node in graph.graph.find_nodes(op="call_function", target=_aten.native_batch_norm_backward.default):
        grad, images, weight, running_mean, running_var, mean, invstd, training, eps, _ = node.args
        if _on_cpu(images) and training and running_mean is running_var is None:
            node.target, node.args = own.batch_norm_gradient.default, (grad, images, weight, mean, invstd, eps)


_DEFAULTS: tuple[Any, ...] = (), (0, 0), (1, 1), False
"""Of the arguments of `max_pool2d` after the image and the window."""


def _on_cpu(node: Node) -> bool:
    return node.meta["val"].device.type == "cpu"


def _layout(images: Tensor) -> torch.memory_format:
    """Contiguous where it may be either."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _operation(name: str) -> Any:
    tags = [torch.Tag.needs_exact_strides]
    return torch.library.custom_op(f"headstart::{name}", mutates_args=(), device_types="cpu", tags=tags)


@_operation("max_pool")
def max_pool(
    images: Tensor,
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> tuple[Tensor, Tensor]:
    """Maxima and their indices, in the layout of `images`; the arguments are those of `max_pool2d`."""
    last, layout = images.contiguous(memory_format=torch.channels_last), _layout(images)
    maxima, indices = _aten.max_pool2d_with_indices(last, window, stride, padding, dilation, ceil)
    if layout == torch.channels_last:
        return maxima, indices
    return _usual(maxima), _usual(indices)


@max_pool.register_fake
def _(images: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    maxima = _aten.max_pool2d_with_indices(images, *args)[0]
    return _empty(images, images.dtype, maxima.shape), _empty(images, torch.int64, maxima.shape)


@_operation("max_pool_gradient")
def max_pool_gradient(
    grad: Tensor,
    indices: Tensor,
    size: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Tensor:
    """The gradient of what was pooled, in the layout of `indices`; contiguous where they may have either.

    PyTorch's operation wants to be given what was pooled, of which it uses shape and layout only: this one does
    without, so that a graph need not keep it.

    Args:
        grad: Of the maxima, `[..., channels, height, width]`.
        indices: Of the maxima, as `max_pool2d` returns them, of the same shape.
        size: Shape of what was pooled.
        window: `kernel_size` of `max_pool2d`; `stride`, `padding`, `dilation` and `ceil` are its arguments too.
    """
    return _aten.max_pool2d_with_indices_backward(
        grad, _empty(indices, grad.dtype, size), window, stride, padding, dilation, ceil, indices
    )


@max_pool_gradient.register_fake
def _(grad: Tensor, indices: Tensor, size: Sequence[int], *_: object) -> Tensor:
    return _empty(indices, grad.dtype, size)


def _usual(x: Tensor) -> Tensor:
    """In the usual layout, with its strides also along axes of length 1, as foreseen."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)


def _empty(like: Tensor, dtype: torch.dtype, size: Sequence[int]) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device, memory_format=_layout(like))


@_operation("batch_norm")
def batch_norm(images: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """What is normalised, channels last where `images` are, else contiguous; mean and `1 / sqrt(variance + eps)`.

    Moments by PyTorch's kernel where they are as exact as the values: in the usual layout, or in half precision.
    """
    images = images.contiguous(memory_format=_layout(images))
    if _layout(images) != torch.channels_last or images.dtype in (torch.bfloat16, torch.float16):
        return _aten.native_batch_norm(images, weight, bias, None, None, True, 0.0, eps)
    mean, variance = _moments_of_channels_last(images)
    y = _aten.native_batch_norm(images, weight, bias, mean, variance, False, 0.0, eps)[0]
    return y, mean, (variance + eps).rsqrt()


def _moments_of_channels_last(images: Tensor) -> tuple[Tensor, Tensor]:
    """As exact as their type, in two passes; PyTorch's kernel adds them up one by one.

    On 75 images of 84 x 84 that was an error of 1e-4, in no less time (`docs/lab-log.md`).
    """
    positions = images.movedim(1, -1).flatten(0, 2)
    mean = positions.mean(0)
    squares = [(some - mean).square_().sum(0) for some in positions.split(max(1, _IN_CACHE // len(mean)))]
    return mean, torch.stack(squares).sum(0) / len(positions)


_IN_CACHE = 2**20
"""Values that are squared at once."""


@batch_norm.register_fake
def _(images: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(images, images.dtype, images.shape), torch.empty_like(weight), torch.empty_like(weight)


@_operation("batch_norm_gradient")
def batch_norm_gradient(
    grad: Tensor, images: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `images`, in the layout of `batch_norm`, of scale and of shift."""
    layout, asked = _layout(images), [True, True, True]
    # Of different layouts PyTorch's takes ten times as long (`docs/lab-log.md`).
    grad, images = grad.contiguous(memory_format=layout), images.contiguous(memory_format=layout)
    return _aten.native_batch_norm_backward(grad, images, weight, None, None, mean, invstd, True, eps, asked)


@batch_norm_gradient.register_fake
def _(grad: Tensor, images: Tensor, weight: Tensor | None, mean: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(images, images.dtype, images.shape), torch.empty_like(mean), torch.empty_like(mean)
