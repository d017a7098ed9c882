"""Max-pooling's derivative in a compiled graph: PyTorch's own kernel instead of what its compiler makes of it.

The compiler asks each input position which of the windows around it chose it, and computes those choices anew wherever
the answer is used. Vectorised, in bfloat16, in a network of four pooled blocks, it gave derivatives several times too
large; its scalar code and the kernel agree with eager mode. The kernel is faster too (`docs/lab-log.md`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

_aten = torch.ops.aten


def unpool(
    grad: Tensor,
    indices: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Tensor:
    """The gradient of max-pooling's input, in the layout of `indices`.

    Args:
        grad: Of the output, `[examples, channels, height, width]`.
        indices: Of the maxima, as `max_pool2d` returns them, of the same shape.
        size: Of the input.
        kernel: As for `max_pool2d`; likewise `stride`, `padding`, `dilation`, `ceil`.
    """
    last = indices.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    # Only the shape and layout of the input are looked at: unlike PyTorch's operation, this one need not be given it.
    image = torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=layout)
    return _aten.max_pool2d_with_indices_backward(grad, image, kernel, stride, padding, dilation, ceil, indices)


_library = torch.library.Library("headstart", "DEF")
_library.define(
    "unpool(Tensor grad, Tensor indices, int[] size, int[] kernel, int[] stride, int[] padding, int[] dilation, "
    "bool ceil) -> Tensor",
    tags=[torch.Tag.flexible_layout],
)
_library.impl("unpool", unpool, "CPU")
torch.library.register_fake("headstart::unpool", unpool, lib=_library)


def use_kernel(graph: GraphModule) -> None:
    """Replace max-pooling's derivative in a recorded graph, on a CPU."""
    for node in graph.graph.find_nodes(op="call_function", target=_aten.max_pool2d_with_indices_backward.default):
        grad, image, kernel, stride, padding, dilation, ceil, indices = node.args
        example = image.meta["val"]
        if example.device.type == "cpu" and example.dim() == 4:
            node.target = torch.ops.headstart.unpool.default
            node.args = grad, indices, list(example.shape), kernel, stride or kernel, padding, dilation, ceil
