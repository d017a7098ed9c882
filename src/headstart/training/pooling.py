"""Max-pooling's gradient in a compiled graph: by PyTorch's native code, instead of what its compiler generates.

Generated, it asks each position of an image which of the windows around it chose it, and finds out anew wherever the
answer is used. Vectorised, in bfloat16, in a network of four pooled blocks, that gave gradients several times too
large; the same without vector instructions, and PyTorch's native code, agree with eager mode (`docs/lab-log.md`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

_aten = torch.ops.aten


def use_native_gradient(graph: GraphModule) -> None:
    """Replace the gradient of max-pooling, in place, in a graph recorded on a CPU."""
    for node in graph.graph.find_nodes(op="call_function", target=_aten.max_pool2d_with_indices_backward.default):
        grad, image, *window, indices = node.args
        example = image.meta["val"]
        if example.device.type == "cpu":
            node.target = torch.ops.headstart.max_pool_gradient.default
            node.args = grad, indices, list(example.shape), *window


@torch.library.custom_op(
    "headstart::max_pool_gradient", mutates_args=(), device_types="cpu", tags=[torch.Tag.flexible_layout]
)
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
        grad, _like(indices, grad.dtype, size), window, stride, padding, dilation, ceil, indices
    )


@max_pool_gradient.register_fake
def _(grad: Tensor, indices: Tensor, size: Sequence[int], *_: object) -> Tensor:
    return _like(indices, grad.dtype, size)


def _like(tensor: Tensor, dtype: torch.dtype, size: Sequence[int]) -> Tensor:
    last = tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device=tensor.device, memory_format=layout)
