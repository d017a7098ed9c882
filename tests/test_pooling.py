"""Max-pooling in the other layout against PyTorch's."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reference import flat, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task, exact, worthwhile
from headstart.exact import Exact
from headstart.pooling import MaxPool2d, Window, max_pool2d

CASES = {
    "halving": Window((2, (), 0, 1, False)),
    "overlapping and padded": Window((3, 2, 1, 1, False)),
    "wide apart": Window(((2, 2), (3, 2), 0, (2, 1), False)),
    "rounded up": Window(((3, 2), (), 0, 1, True)),
}

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _small_images_too(monkeypatch):
    monkeypatch.setattr(worthwhile, "LARGE", 0)


def values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of few different values, so that windows have several maxima."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def native(images: Tensor, window: Window) -> Tensor:
    return torch.max_pool2d(images, *window.arguments)


def ours(images: Tensor, window: Window) -> Tensor:
    return MaxPool2d.apply(images, window)[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (2, 1, 9, 8), (3, 9, 8)])
def test_derivatives_are_pytorchs(case, shape):
    x, weights = values(2, *shape), [values(*shape, seed=seed) for seed in (1, 2)]

    def derivatives(pool) -> list[Tensor]:
        def scalar(x: Tensor) -> Tensor:
            return (pool(x * x, CASES[case]) ** 2).sum()

        def second(x: Tensor) -> Tensor:
            return (torch.func.grad(scalar)(x) * weights[0]).sum()

        def forward(f):
            return torch.func.jvp(torch.vmap(f), (x,), (weights[1].expand_as(x),))[1]

        reverse = [scalar, torch.func.grad(scalar), torch.func.grad(second)]
        return [pool(x[0], CASES[case]), *(torch.vmap(f)(x) for f in reverse), *(forward(f) for f in reverse[:2])]

    for found, expected in zip(derivatives(ours), derivatives(native), strict=True):
        assert_close(found, expected)
        assert found.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_is_a_maximum(dtype):
    x = values(2, 3, 4, 4, dtype=dtype)
    x[0, 1, 2, 2], x[1, 2, 0, 0] = float("nan"), float("inf")
    assert_close(max_pool2d(x, 2), torch.max_pool2d(x, 2), equal_nan=True)


@pytest.fixture
def calls(monkeypatch) -> list[Tensor]:
    """What was pooled in the other layout."""
    seen, apply = [], MaxPool2d.apply
    monkeypatch.setattr(MaxPool2d, "apply", lambda images, window: (seen.append(images), apply(images, window))[1])
    return seen


class TestWhere:
    @pytest.mark.parametrize("pool", [F.max_pool2d, torch.max_pool2d, torch.ops.aten.max_pool2d, nn.MaxPool2d(2)])
    def test_all_ways_to_call_it_lead_there(self, pool, calls):
        x = values(2, 3, 8, 8)
        with Exact():
            found = pool(x) if isinstance(pool, nn.Module) else pool(x, 2)
            torch.max_pool2d(input=x, kernel_size=2, stride=1)
        assert len(calls) == 2
        assert_close(found, torch.max_pool2d(x, 2))

    def test_indices_are_pytorchs(self):
        x = values(2, 3, 8, 8)
        with Exact():
            found = F.max_pool2d(x, 2, return_indices=True)
        assert_close(found, F.max_pool2d(x, 2, return_indices=True))

    def test_not_for_small_images_channels_last_ones_integers_or_a_recorder(self, calls, monkeypatch):
        x = values(2, 3, 8, 8)
        max_pool2d(x.contiguous(memory_format=torch.channels_last), 2)
        max_pool2d(x.int(), 2)
        torch.fx.experimental.proxy_tensor.make_fx(lambda x: max_pool2d(x, 2))(x)
        monkeypatch.setattr(worthwhile, "LARGE", x.numel() + 1)
        max_pool2d(x, 2)
        assert not calls


RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": Tensor.relu,
    "nn.ReLU": nn.ReLU(),
    "aten.relu": torch.ops.aten.relu,
    "aten.relu.default": torch.ops.aten.relu.default,
}
POOLS = [F.max_pool2d, torch.max_pool2d, torch.ops.aten.max_pool2d, nn.MaxPool2d(3, 2, 1)]


def by(pool: Callable[..., Tensor], x: Tensor) -> Tensor:
    return pool(x) if isinstance(pool, nn.Module) else pool(x, 3, 2, 1)


class TestReLU:
    """Large images, inside transforms, are pooled before it."""

    @pytest.mark.parametrize("pool", POOLS)
    @pytest.mark.parametrize("relu", RELUS.values(), ids=RELUS)
    def test_what_it_would_be_applied_to_is_pooled_first(self, relu, pool, monkeypatch):
        x, pooled = values(2, 3, 8, 8), []
        monkeypatch.setattr(exact, "max_pool2d", lambda x, *args: (pooled.append(x), max_pool2d(x, *args))[1])
        expected = by(pool, relu(x))
        with Exact():
            found = torch.vmap(lambda x: by(pool, relu(x)))(x.unsqueeze(0))[0]
        assert torch.equal(found, expected)
        assert torch.equal(unwrapped(pooled[0])[0], x)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(3, 2, 3, 8, 8), (3, 3, 8, 8)])
    def test_derivatives_are_the_same(self, shape, dtype):
        x, along = values(*shape, dtype=dtype), values(*shape, seed=1, dtype=dtype)
        x[0, 0, 0, 0], x[1, 1, 1, 1] = float("nan"), float("-inf")

        def pooled(x: Tensor) -> Tensor:
            return F.max_pool2d(x.relu(), 3, 2)

        def derivatives(x: Tensor, along: Tensor) -> list[Tensor]:
            first = torch.func.grad(lambda x: (pooled(x) ** 3).sum())
            second = torch.func.grad(lambda x: (first(x) * along).sum())
            third = torch.func.grad(lambda x: (second(x) * along).sum())
            return [pooled(x), first(x), torch.func.jvp(first, (x,), (along,))[1], second(x), third(x)]

        expected = torch.vmap(derivatives)(x, along)
        with Exact():
            found = torch.vmap(derivatives)(x, along)
        assert_close(found, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("change", ["output", "input"])
    def test_what_is_changed_before_pooling_stays_changed(self, change):
        def pooled(x: Tensor) -> Tensor:
            y = torch.relu(x)
            (y if change == "output" else x).sub_(2)
            return torch.max_pool2d(y, 2)

        x = values(2, 3, 8, 8)
        expected = torch.vmap(pooled)(x.clone())
        with Exact():
            assert torch.equal(torch.vmap(pooled)(x), expected)

    @pytest.mark.parametrize("relu", [partial(F.relu, inplace=True), lambda x: torch.relu(input=x)])
    @pytest.mark.parametrize("window", [{}, {"padding": 1, "stride": 1, "dilation": 9}])
    def test_called_otherwise_it_comes_first(self, relu, window):
        """A window of padding alone has no maximum, not zero."""

        def pooled(x: Tensor) -> Tensor:
            return F.max_pool2d(relu(x), 2, **window)

        x = values(2, 3, 8, 8)
        expected = torch.vmap(pooled)(x.clone())
        with Exact():
            assert torch.equal(torch.vmap(pooled)(x), expected)

    def test_what_it_gave_can_be_differentiated_by(self):
        """As feature visualisation does, outside of transforms."""
        with Exact():
            y = torch.relu(values(2, 3, 8, 8).requires_grad_())
            score = F.max_pool2d(y, 2).sum()
        assert torch.autograd.grad(score, y)[0].sum() == 2 * 3 * 4 * 4

    def test_an_own_derivative_is_kept(self):
        class StraightThrough(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return torch.relu(x)

            @staticmethod
            def backward(ctx, grad):
                return grad

        x = torch.full((1, 1, 8, 8), -1.0, requires_grad=True)
        with Exact():
            F.max_pool2d(StraightThrough.apply(x), 2).sum().backward()
        assert x.grad.sum() == 16


def unwrapped(x: Tensor) -> Tensor:
    return torch._C._functorch.get_unwrapped(x)


class Viewing(nn.Module):
    """Flattens as many networks do, which only the usual layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 3 * 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x).relu(), 2)
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("vectorize", ["vmap", "loop"])
@pytest.mark.parametrize("listed", [False, True])
def test_any_network_adapts_with_it(listed, vectorize, calls, monkeypatch):
    images, labels = values(3, 8, 3, 8, 8), torch.arange(8).remainder(2).expand(3, 8)
    tasks = Task(Batch(images[:, :4], labels[:, :4]), Batch(images[:, 4:], labels[:, 4:]))

    def gradient() -> Tensor:
        torch.manual_seed(0)
        learner = MAML(Viewing().double(), F.cross_entropy, inner=SGD(lr=0.1), steps=2, vectorize=vectorize)
        learner(unstack(tasks) if listed else tasks).backward()
        return flat([p.grad for p in learner.parameters()])

    found = gradient()
    assert len(calls) >= 3  # in each inner step and on the query set, also with parameters of each task's own
    monkeypatch.setattr(worthwhile, "LARGE", 10**9)
    assert_close(found, gradient())
