"""Max-pooling on a CPU, in the layout for which PyTorch is fast.

Of large images in PyTorch's usual layout it takes ten times as long as of images whose channels come last, far more
than copying them there and back (`docs/lab-log.md`). Only pooling itself sees the other layout: what follows may be
written for the usual one (`x.view(len(x), -1)`), and its derivatives are fast as they are.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.worthwhile import worthwhile

Size = int | tuple[int, ...]

_aten = torch.ops.aten


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """What `torch.max_pool2d` computes from the same arguments, `[..., channels, height, width]`."""
    window = kernel_size, () if stride is None else stride, padding, dilation, ceil_mode
    usual = input.dim() == 4 and input.stride(-1) == 1  # with channels last it would be their number
    if input.device.type == "cpu" and input.is_floating_point() and usual and worthwhile(input):
        return MaxPool2d.apply(input, Window(window))[0]
    return torch.max_pool2d(input, *window)


@dataclass(frozen=True)
class Window:
    """Arguments of `torch.max_pool2d` after the first, as one thing: a tuple is taken apart by transforms."""

    arguments: tuple[Any, ...]


class MaxPool2d(torch.autograd.Function):
    """Maxima and their indices, both in the usual layout."""

    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Both, computed in the other."""
        last = images.movedim(-3, -1).contiguous().movedim(-1, -3)
        maxima, indices = _aten.max_pool2d_with_indices(last, *window.arguments)
        return maxima.contiguous(), indices.contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Window], output: tuple[Tensor, Tensor]) -> None:
        """Keep the indices; of the images, which PyTorch's derivative is given, only the shape matters."""
        images, ctx.window = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # of the indices it would be as large as they are
        ctx.save_for_backward(images, output[1])
        ctx.save_for_forward(images, output[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """The gradient of the images; PyTorch has its derivative."""
        images, indices = ctx.saved_tensors
        return _aten.max_pool2d_with_indices_backward(grad_outputs[0], images, *ctx.window.arguments, indices), None

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Any) -> tuple[Tensor, None]:
        """How the maxima change along a change of the images."""
        _, indices = ctx.saved_tensors
        return grad_inputs[0].flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape), None
