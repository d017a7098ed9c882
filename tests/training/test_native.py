"""Operations left to PyTorch in compiled graphs."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import error
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from headstart.exact import Exact
from headstart.once import differentiated_once
from headstart.training import native
from headstart.training.tracing import Traced

CASES = {
    "halving": {"kernel_size": 2},
    "overlapping and padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "wide apart": {"kernel_size": 2, "stride": 3, "dilation": 2},
    "rounded up": {"kernel_size": (3, 2), "ceil_mode": True},
    "all to one": {"kernel_size": (9, 8)},
}


WINDOW = [2, 2], [2, 2], [0, 0], [1, 1], False


def values(*shape: int, seed: int = 0) -> Tensor:
    """Of few different values, so that windows have several maxima."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def derivatives(window: dict, layout: torch.memory_format | None, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Of a function of what is pooled: the first, and the second along `weights`."""
    x = (x if layout is None else x.contiguous(memory_format=layout)).detach().requires_grad_()
    (first,) = torch.autograd.grad((F.max_pool2d(x.relu(), **window) ** 3).sum(), x, create_graph=True)
    return [first.detach(), *torch.autograd.grad(first, x, weights)]


def calls(fn: Callable[[], Any]) -> tuple[Any, dict[str, int]]:
    """What `fn` returns, and how often it calls each of the library's own operations."""
    with torch.profiler.profile() as profile:
        result = fn()
    own = {e.key: e.count for e in profile.key_averages() if e.key.startswith("headstart::")}
    return result, {name.removeprefix("headstart::"): count for name, count in own.items()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, None])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("recorded")
def test_recorded_it_is_pytorchs_own(case, layout):
    shape = (3, 9, 8) if layout is None else (2, 3, 9, 8)  # without an axis of examples
    x, weights = values(*shape), values(*shape, seed=1)
    traced = Traced(lambda x, weights: derivatives(CASES[case], layout, x, weights))
    traced(x, weights)
    found, counts = calls(lambda: traced(x, weights))
    assert counts["max_pool_gradient"] == 2  # of the first derivative and, through its factor, of the second
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
    found, counts = calls(lambda: traced(x, weights))
    assert counts["max_pool_gradient"] == 2  # of the first derivative and, through its factor, of the second
    assert_close(found, expected)


OWN = "batch_norm", "max_pool", "max_pool_gradient", "batch_norm_gradient"


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
    found, counts = calls(lambda: traced(x, *scale, bias))
    assert counts == dict.fromkeys(OWN, 1)
    assert [t.dtype for t in found] == [dtype, dtype, *(torch.float32 for _ in scale), torch.float32]
    expected = normed_and_pooled(x.double(), scale[0].double() if scaled else None, bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert all(error(ours.double(), exact) < tolerance for ours, exact in zip(found, expected, strict=True))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("size", "once", "count"), [(18, True, 1), (16, True, 0), (18, False, 0)])
def test_small_images_and_second_derivatives_are_left_to_the_compiler(size, once, count):
    def recorded(x: Tensor) -> Tensor:
        with Exact(), differentiated_once() if once else contextlib.nullcontext():
            return F.batch_norm(x, None, None, training=True)

    traced, x = Traced(recorded), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    traced(x)
    assert calls(lambda: traced(x))[1].get("batch_norm", 0) == count


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "examples inside": lambda x: x.movedim(0, 1).contiguous().movedim(1, 0),
    "sliced": lambda x: x.repeat(1, 1, 1, 2)[..., ::2],
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_large_images_of_any_type_are_pooled(dtype):
    x = values(2, 3, 20, 18).abs().to(dtype)
    assert_close(Traced(lambda x: F.max_pool2d(x, 3, 2))(x), F.max_pool2d(x, 3, 2))


@pytest.mark.parametrize("window", [(2, 2), (6, 8)])
@pytest.mark.parametrize("operation", OWN)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_compiler_foresees_layouts(layout, operation, window):
    x, channels = layout(torch.randn(2, 3, 6, 8)), torch.ones(3)
    indices = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[1]
    arguments = {
        "batch_norm": (x, channels, None, 0.1),
        "batch_norm_gradient": (torch.randn(2, 3, 6, 8), x, channels, channels, channels, 0.1),
        "max_pool": (x, window, window, *WINDOW[2:]),
        "max_pool_gradient": (layout(torch.randn(2, 3, 3, 4)), indices, x.shape, *WINDOW),
    }[operation]
    run = getattr(torch.ops.headstart, operation)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        foreseen = pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
        strides = [t.stride() for t in pytree.tree_leaves(run(*foreseen))]
    assert strides == [t.stride() for t in pytree.tree_leaves(run(*arguments))]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_of_many_values_far_from_zero_are_exact_in_single_precision(layout, monkeypatch):
    """One after the other they would be added up to 1e-3 of the deviation."""
    monkeypatch.setattr(native, "_IN_CACHE", 1000)  # several pieces, the last a smaller one
    x = 10 + torch.randn(50, 2, 64, 64, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=layout)
    scale, shift = torch.tensor([0.5, 2.0]), torch.tensor([1.0, -1.0])
    y, mean, invstd = torch.ops.headstart.batch_norm(x, scale, shift, 0.1)
    exact = x.double()
    variance, expected = torch.var_mean(exact, (0, 2, 3), correction=0)
    assert error(mean.double() - 10, expected - 10) < 1e-3
    assert error(invstd.double(), (variance + 0.1).rsqrt()) < 1e-6
    assert error(y.double(), F.batch_norm(exact, None, None, scale.double(), shift.double(), True, 0.0, 0.1)) < 2e-6


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_norm_of_transposed_images():
    """Compiled: what is recorded is right in any layout."""
    x = torch.randn(2, 3, 18, 20, generator=torch.Generator().manual_seed(0))

    def recorded(x: Tensor) -> list[Tensor]:
        with differentiated_once():
            return normed_and_pooled(x.mT.contiguous().mT, None, torch.ones(3))

    expected = normed_and_pooled(x, None, torch.ones(3))
    assert all(error(a, b) < 1e-5 for a, b in zip(Traced(recorded)(x), expected, strict=True))


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("training", [True, False])
def test_norms_with_running_statistics_are_left_alone(training):
    """Such as those that a learner calls by itself, outside of what replaces them."""
    x, layer = torch.randn(4, 3, 5, 5), torch.nn.BatchNorm2d(3).train(training)
    layer.running_mean.fill_(2.0)
    expected = copy.deepcopy(layer)

    def gradient(x: Tensor, layer: torch.nn.BatchNorm2d) -> Tensor:
        x = x.detach().requires_grad_()
        y = F.batch_norm(x, layer.running_mean, layer.running_var, training=training)
        return torch.autograd.grad((y**3).sum(), x)[0]

    def recorded(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        layer.running_mean, layer.running_var = mean, variance
        return gradient(x, layer)

    traced = Traced(recorded)
    given = x, layer.running_mean, layer.running_var
    assert_close(traced(*given), gradient(x, expected))
    assert_close(given[1:], (expected.running_mean, expected.running_var))
