"""Max-pooling's gradient in compiled graphs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from headstart.training.tracing import Traced

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
