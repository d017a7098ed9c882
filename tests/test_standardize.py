"""Norms' parts against the formulas that PyTorch differentiates by itself, and against finite differences."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from headstart import worthwhile
from headstart.standardize import Moments, Scaled, moments, normalized, standardized

# PyTorch's own forward-mode rules are scripted, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(worthwhile, "LARGE", 0)


CASES = {
    "batch of images": ((3, 2, 2, 3), [0, 2, 3]),
    "each image's channels": ((2, 3, 2, 2), [2, 3]),
    "features": ((4, 3), [1]),
    "one example": ((1, 2, 3), [0, 2]),
}


def values(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(x: Tensor, dims: list[int], eps: float) -> Tensor:
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean(dims, keepdim=True) + eps) ** 0.5


@pytest.mark.parametrize("case", CASES)
class TestDerivatives:
    def test_of_moments(self, case):
        shape, dims = CASES[case]
        x = values(shape).requires_grad_()
        assert gradcheck(lambda x: Moments.apply(x, *dims), (x,), check_forward_ad=True)
        assert gradgradcheck(lambda x: Moments.apply(x, *dims), (x,))

    def test_of_scaling(self, case):
        shape, dims = CASES[case]
        small = [1 if i in dims else size for i, size in enumerate(shape)]
        inputs = values(shape), values(small, 1), 0.5 + values(small, 2).abs()
        inputs = tuple(each.requires_grad_() for each in inputs)
        assert gradcheck(Scaled.apply, inputs, check_forward_ad=True)
        assert gradgradcheck(Scaled.apply, inputs)

    def test_up_to_the_third_and_under_vmap(self, case):
        shape, dims = CASES[case]
        x, weights = values((2, *shape)), [values(shape, seed) for seed in (3, 4, 5)]

        def derivatives(function):
            def scalar(x: Tensor) -> Tensor:
                return (function(x, dims, 0.1) ** 2 * weights[0]).sum()

            def second(x: Tensor) -> Tensor:
                return (torch.func.grad(scalar)(x) * weights[1]).sum()

            def third(x: Tensor) -> Tensor:
                return (torch.func.grad(second)(x) * weights[2]).sum()

            def forward(f):
                return torch.func.jvp(torch.vmap(f), (x,), (weights[2].expand_as(x),))[1]

            reverse = [scalar, *map(torch.func.grad, (scalar, second, third))]
            return [torch.vmap(f)(x) for f in reverse] + [forward(f) for f in reverse[:2]]

        for ours, expected in zip(derivatives(standardized), derivatives(by_hand), strict=True):
            assert_close(ours, expected)


def test_moments_are_those_of_torch():
    x = values((5, 3, 4, 4))
    variance, mean = torch.var_mean(x, [0, 2, 3], correction=0, keepdim=True)
    for ours, theirs in zip(moments(x, [0, 2, 3]), (mean, variance), strict=True):
        assert_close(ours, theirs)


def test_moments_of_a_single_value_for_each():
    """Every value its own mean: nothing is shared, so nothing may be summed."""
    inputs = [values((3, 2), seed).requires_grad_() for seed in (0, 1)]
    variance = (0.5 + values((3, 2), 2).abs()).requires_grad_()
    assert gradcheck(lambda x, mean, variance: normalized(x, mean, variance, 0.1), (*inputs, variance))


@pytest.mark.parametrize("dims", [[0, -1], [-1, 0]])
def test_negative_axes(dims):
    x = values((3, 2, 4))
    assert_close(moments(x, dims), moments(x, [0, 2]))
    with pytest.raises(IndexError):
        moments(x, [-4])


def test_of_nothing():
    x = torch.empty(0, 5, requires_grad=True)
    standardized(x, [1], 0.1).sum().backward()
    assert x.grad.shape == (0, 5)


def test_far_from_zero_in_single_precision():
    x = 1000 + values((4, 3, 5)).float()
    weights = values((4, 3, 5), 1).float()

    def gradient(function, *inputs: Tensor) -> Tensor:
        return torch.func.grad(lambda x: (function(x, [0, 2], 0.1) * inputs[1]).sum())(inputs[0])

    expected = gradient(by_hand, x.double(), weights.double())
    for function in (standardized, by_hand):
        assert_close(gradient(function, x, weights).double(), expected, rtol=0, atol=3e-4 * expected.abs().max().item())


def test_only_large_ones_that_are_not_recorded(monkeypatch):
    applied, apply = [], Moments.apply
    monkeypatch.setattr(Moments, "apply", lambda *args: (applied.append(args), apply(*args))[1])
    x = values((2, 3))
    moments(x, [1])
    assert len(applied) == 1
    torch.fx.experimental.proxy_tensor.make_fx(lambda x: moments(x, [1]))(x)
    monkeypatch.setattr(worthwhile, "LARGE", x.numel() + 1)
    moments(x, [1])
    assert len(applied) == 1
