"""Convolutions and linear layers as matrix products, for the compiled meta-gradient.

A second-order meta-gradient is mostly convolutions with a weight of its own for each task: forward, backward,
and backward through the backward. Native kernels take these as grouped convolutions with small groups, and the
last kind as convolutions with strange shapes. As `windows @ weight` all of them are batched products of
ordinary shapes; around them there is only copying, which a compiler fuses with norm and activation.

Two things make that fast (`docs/speed.md` has the numbers). `Product` writes every derivative, of any order, in
the layout in which it is used: PyTorch's own derivative of a product comes out transposed at second order, and
the next kernel then reads it at a stride. `Windows` and `Overlap` are each other's derivative, and `Overlap` is
written as sums of shifted blocks, one for each remainder of the position by the stride, instead of as many
additions into a strided slice.

`AsProducts` is the context in which it happens. Outside a compiler it is slower than the native kernels.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from headstart.once import is_large, large_and_once
from headstart.precision import narrowed

Kind = Literal["ab", "abT", "aTb"]
Pair = tuple[int, int]


class Product(torch.autograd.Function):
    """`a @ b`, `a @ b.T` or `a.T @ b` of matrices; the three are closed under differentiation.

    No derivative is the transpose of a product: each is computed in the layout of what it is the derivative of.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, b: Tensor, kind: Kind) -> Tensor:
        """The product."""
        return (a.mT if kind == "aTb" else a) @ (b.mT if kind == "abT" else b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Kind], output: Tensor) -> None:
        """Keep both factors."""
        a, b, ctx.kind = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        """Two more products."""
        (a, b), (g,), product = ctx.saved_tensors, grad_outputs, Product.apply
        match ctx.kind:
            case "ab":
                return product(g, b, "abT"), product(a, g, "aTb"), None
            case "abT":
                return product(g, b, "ab"), product(g, a, "aTb"), None
        return product(b, g, "abT"), product(a, g, "ab"), None


class Windows(torch.autograd.Function):
    """What a kernel sees at each of its positions: `[n, height, width, c]` to `[n, rows, columns, kh, kw, c]`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, kernel: Pair, stride: Pair) -> Tensor:
        """Strided slices, one for each place in the kernel."""
        (kh, kw), (sh, sw) = kernel, stride
        rows, columns = _positions(x.shape[1], kh, sh), _positions(x.shape[2], kw, sw)
        seen = [
            x[:, i : i + sh * (rows - 1) + 1 : sh, j : j + sw * (columns - 1) + 1 : sw]
            for i in range(kh)
            for j in range(kw)
        ]
        return torch.stack(seen, 3).unflatten(3, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Pair, Pair], output: Tensor) -> None:
        """Keep the shape."""
        x, ctx.kernel, ctx.stride = inputs
        ctx.size = x.shape[1], x.shape[2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The adjoint."""
        return Overlap.apply(grad_outputs[0], ctx.stride, ctx.size), None, None


class Overlap(torch.autograd.Function):
    """The adjoint of `Windows`: each position's window added where it was taken from."""

    generate_vmap_rule = True

    @staticmethod
    def forward(windows: Tensor, stride: Pair, size: Pair) -> Tensor:
        """Along the width, then along the height."""
        columns = _overlap(windows, along=2, taps=4, stride=stride[1], size=size[1])
        return _overlap(columns, along=1, taps=3, stride=stride[0], size=size[0])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Pair, Pair], output: Tensor) -> None:
        """Keep the shape."""
        windows, ctx.stride, _ = inputs
        ctx.kernel = windows.shape[3], windows.shape[4]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """The adjoint's adjoint."""
        return Windows.apply(grad_outputs[0], ctx.kernel, ctx.stride), None, None


def _overlap(x: Tensor, along: int, taps: int, stride: int, size: int) -> Tensor:
    """Sum over the axis `taps` of `x` with tap `t` of position `p` put at `stride * p + t` of the axis `along`.

    Written by blocks of `stride` places: tap `t` falls on place `t % stride` of block `p + t // stride`.
    """
    positions, kernel = x.shape[along], x.shape[taps]
    blocks = positions + (kernel - 1) // stride

    def shifted(tap: int) -> Tensor:
        one, before = x.select(taps, tap), tap // stride
        return _padded(one, along, before, blocks - positions - before)

    places = []
    for place in range(stride):
        terms = [shifted(tap) for tap in range(place, kernel, stride)]
        total = terms[0] if terms else torch.zeros_like(shifted(0))
        for term in terms[1:]:
            total = total + term
        places.append(total)
    out = torch.stack(places, along + 1).flatten(along, along + 1)
    missing = size - out.shape[along]
    return _padded(out, along, 0, missing) if missing > 0 else out.narrow(along, 0, size)


def _padded(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    return F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [before, after])


def _positions(size: int, kernel: int, stride: int) -> int:
    return (size - kernel) // stride + 1


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear` as a `Product`: `[..., features]` to `[..., outputs]`."""
    flat, weight = narrowed(x.reshape(-1, x.shape[-1]), weight)
    out = Product.apply(flat, weight, "abT").reshape(*x.shape[:-1], weight.shape[0])
    return out if bias is None else out + bias.to(out.dtype)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair) -> Tensor:
    """`torch.nn.functional.conv2d` as a `Product`, its output in channels-last layout.

    Args:
        x: `[n, channels, height, width]`.
        weight: `[outputs, channels, kh, kw]`.
        bias: `[outputs]`, or None.
        stride: Down and across.
        padding: Zeros above and below, left and right.
    """
    x, weight = narrowed(x, weight)
    kernel = weight.shape[2], weight.shape[3]
    padded = F.pad(x.permute(0, 2, 3, 1), [0, 0, padding[1], padding[1], padding[0], padding[0]])
    windows = Windows.apply(padded, kernel, stride)
    flat = windows.reshape(-1, kernel[0] * kernel[1] * x.shape[1])
    out = Product.apply(flat, weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1), "abT")
    out = out if bias is None else out + bias.to(out.dtype)
    return out.reshape(*windows.shape[:3], weight.shape[0]).permute(0, 3, 1, 2)


class AsProducts(TorchFunctionMode):
    """A context in which convolutions and linear layers are computed as products, where that can be.

    Dilated and grouped convolutions, padding given by name, and large images are left as they are. Images come out with
    channels last, which not every view can be taken of (`x.view(len(x), -1)`): then it is a copy, see `tracing.py`.
    """

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Call `func`, or its equivalent here."""
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear_or_native(func, *args, **kwargs)
        if func in (F.conv2d, torch.conv2d):
            return _conv2d_or_native(func, *args, **kwargs)
        if func in (torch.Tensor.view, torch.ops.aten.view.default):
            return _view_or_copy(*args, **kwargs)
        if func is torch.Tensor.view_as:
            return _view_or_copy(args[0], args[1].shape)
        return func(*args, **kwargs)


def _view_or_copy(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    try:
        return x.view(*args, **kwargs)
    except RuntimeError:
        copy = torch.ops.aten.alias(x.contiguous())  # by which the copy is known in the recorded graph
        return copy.view(*args, **kwargs)  # which says so if that was not why


def _linear_or_native(func: Callable, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return func(input, weight, bias) if weight.dim() != 2 else linear(input, weight, bias)


def _conv2d_or_native(
    func: Callable,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    plain = groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str) and input.dim() == 4
    positions = [
        _positions(size + 2 * pad, kernel, step)
        for size, pad, kernel, step in zip(
            input.shape[2:], _pair(padding) if plain else (0, 0), weight.shape[2:], _pair(stride), strict=False
        )
    ]
    # Where the kernel is larger than the image, the native function says so.
    if not plain or min(positions) < 1 or is_large(positions):
        images = _channels_last(input) if large_and_once(input) else input
        return func(images, weight, bias, stride, padding, dilation, groups)
    return conv2d(input, weight, bias, _pair(stride), _pair(padding))


def _channels_last(images: Tensor) -> Tensor:
    return images.movedim(1, -1).contiguous().movedim(-1, 1)


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    first, *rest = value
    return int(first), int(rest[0] if rest else first)
