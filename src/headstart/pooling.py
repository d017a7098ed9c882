"""Max-pooling on a CPU, in the layout for which PyTorch is fast.

Of large images in PyTorch's usual layout it takes ten times as long as of images whose channels come last, far more
than copying them there and back (`docs/lab-log.md`). Only pooling itself sees the other layout: what follows may be
written for the usual one (`x.view(len(x), -1)`), and its derivatives are fast as they are.
"""

from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

WORTH_COPYING = 2**16
"""Values from which on the other layout is faster."""

Size = int | tuple[int, ...]

_aten = torch.ops.aten


def max_pool2d(
    images: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """What `torch.max_pool2d` computes from the same arguments, `[..., channels, height, width]`, and its derivatives.

    It is left to a compiler, or whatever records operations, as it is.
    """
    window = Window(kernel_size, stride or (), padding, dilation, ceil_mode)
    usual = images.device.type == "cpu" and images.is_floating_point() and images.is_contiguous()
    recorded = torch.compiler.is_compiling() or is_in_torch_dispatch_mode()
    if not usual or recorded or images.numel() < WORTH_COPYING:
        return torch.max_pool2d(images, *window.values())
    return MaxPool2d.apply(images, window)[0]


@dataclass(frozen=True)
class Window:
    """Arguments of `torch.max_pool2d`."""

    kernel_size: Size
    stride: Size
    padding: Size
    dilation: Size
    ceil_mode: bool

    def values(self) -> Any:
        """In the order in which PyTorch takes them."""
        return astuple(self)


class MaxPool2d(torch.autograd.Function):
    """Maxima and their indices, both in the usual layout."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Both, computed in the other."""
        last = images.movedim(-3, -1).contiguous().movedim(-1, -3)
        maxima, indices = _aten.max_pool2d_with_indices(last, *window.values())
        return maxima.contiguous(), indices.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Window], output: tuple[Tensor, Tensor]) -> None:
        """Keep the indices; of the images, which PyTorch's derivative is given, only the shape matters."""
        images, ctx.window = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(images, output[1])
        ctx.save_for_forward(images, output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The gradient of the images; PyTorch has its derivative."""
        images, indices = ctx.saved_tensors
        return _aten.max_pool2d_with_indices_backward(grad_outputs[0], images, *ctx.window.values(), indices), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, None]:
        """How the maxima change along a change of the images."""
        _, indices = ctx.saved_tensors
        return grad_inputs[0].flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape), None
