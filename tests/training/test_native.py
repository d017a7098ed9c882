"""Operations left to PyTorch in compiled graphs."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from reference import error
from torch import Tensor
from torch.testing import assert_close

from headstart.exact import Exact
from headstart.training.tracing import Traced
from headstart.worthwhile import differentiated_once

CASES = {
    "halving": {"kernel_size": 2},
    "overlapping and padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "wide apart": {"kernel_size": 2, "stride": 3, "dilation": 2},
    "rounded up": {"kernel_size": (3, 2), "ceil_mode": True},
    "all to one": {"kernel_size": (9, 8)},
}


def values(*shape: int, seed: int = 0) -> Tensor:
    """Of few different values, so that windows have several maxima."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def derivatives(window: dict, layout: torch.memory_format | None, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Of a function of what is pooled: the first, and the second along `weights`."""
    x = (x if layout is None else x.contiguous(memory_format=layout)).detach().requires_grad_()
    (first,) = torch.autograd.grad((F.max_pool2d(x.relu(), **window) ** 3).sum(), x, create_graph=True)
    return [first.detach(), *torch.autograd.grad(first, x, weights)]


class Counted:
    """Counts calls of the operation while it is entered."""

    def __enter__(self) -> "Counted":
        self.profile = torch.profiler.profile().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.profile.__exit__(None, None, None)
        self.calls = sum(e.count for e in self.profile.key_averages() if e.key == "headstart::max_pool_gradient")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, None])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("recorded")
def test_recorded_it_is_pytorchs_own(case, layout):
    shape = (3, 9, 8) if layout is None else (2, 3, 9, 8)  # without an axis of examples
    x, weights = values(*shape), values(*shape, seed=1)
    traced = Traced(lambda x, weights: derivatives(CASES[case], layout, x, weights))
    traced(x, weights)
    with Counted() as counted:
        found = traced(x, weights)
    assert counted.calls == 2  # of the first derivative and, through its factor, of the second
    assert_close(found, derivatives(CASES[case], layout, x, weights))
    assert [t.stride() for t in found] == [t.stride() for t in derivatives(CASES[case], layout, x, weights)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_is_pytorchs_own(dtype):
    """By value it can hardly be told apart: what the compiler generates was wrong in one large network only."""
    x, weights = values(2, 3, 9, 8).to(dtype), values(2, 3, 9, 8, seed=1).to(dtype)
    expected = derivatives(CASES["halving"], torch.channels_last, x, weights)
    traced = Traced(lambda x, weights: derivatives(CASES["halving"], torch.channels_last, x, weights))
    traced(x, weights)
    with Counted() as counted:
        found = traced(x, weights)
    assert counted.calls == 2  # of the first derivative and, through its factor, of the second
    assert_close(found, expected)


OWN = [f"headstart::{name}" for name in ("batch_norm", "max_pool", "max_pool_gradient", "batch_norm_gradient")]


def normed_and_pooled(x: Tensor, weight: Tensor | None, bias: Tensor) -> list[Tensor]:
    """What comes out of a norm, ReLU and pooling, and the gradients of a function of it."""
    inputs = [p.detach().requires_grad_() for p in (x, weight, bias) if p is not None]
    with Exact():
        y = F.batch_norm(inputs[0], None, None, None if weight is None else inputs[1], inputs[-1], training=True)
        y = F.max_pool2d(y.relu(), 2)
    return [y.detach(), *torch.autograd.grad((y.to(bias.dtype) ** 3).sum(), inputs)]


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scaled", [True, False])
def test_norm_and_pooling_of_large_images_are_pytorchs_own(request, scaled, dtype, layout, compiled):
    if not compiled:
        request.getfixturevalue("recorded")
    random = torch.Generator().manual_seed(0)
    x, bias = torch.randn(2, 3, 18, 18, generator=random).to(dtype), torch.randn(3, generator=random)
    scale = [torch.rand(3, generator=random)] if scaled else []

    def recorded(x: Tensor, *affine: Tensor) -> list[Tensor]:
        with differentiated_once():
            return normed_and_pooled(x.contiguous(memory_format=layout), *(affine if scaled else (None, *affine)))

    traced = Traced(recorded)
    traced(x, *scale, bias)
    with torch.profiler.profile() as profile:
        found = traced(x, *scale, bias)
    calls = {e.key: e.count for e in profile.key_averages() if e.key.startswith("headstart::")}
    pooled_too = layout == torch.channels_last
    assert calls == {name: 1 for name in OWN if pooled_too or name != "headstart::max_pool"}
    assert [t.dtype for t in found] == [dtype, dtype, *(torch.float32 for _ in scale), torch.float32]
    expected = normed_and_pooled(x.double(), scale[0].double() if scaled else None, bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert all(error(ours.double(), exact) < tolerance for ours, exact in zip(found, expected, strict=True))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("size", "once", "calls"), [(18, True, 1), (16, True, 0), (18, False, 0)])
def test_small_images_and_second_derivatives_are_left_to_the_compiler(size, once, calls):
    def recorded(x: Tensor) -> Tensor:
        with Exact(), differentiated_once() if once else contextlib.nullcontext():
            return F.batch_norm(x, None, None, training=True)

    traced, x = Traced(recorded), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    traced(x)
    with torch.profiler.profile() as profile:
        traced(x)
    assert sum(e.count for e in profile.key_averages() if e.key == "headstart::batch_norm") == calls
