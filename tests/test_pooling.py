"""Max-pooling in the other layout against PyTorch's."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reference import flat, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task, worthwhile
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


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.relu": F.relu,
    "torch.relu": lambda x: torch.relu(input=x),
    "Tensor.relu": Tensor.relu,
    "aten.relu": torch.ops.aten.relu,
    "nn.ReLU": nn.ReLU(),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.5),
    "nn.LeakyReLU": nn.LeakyReLU(0.0),
}


class TestActivations:
    @pytest.mark.parametrize("pool", [F.max_pool2d, torch.max_pool2d, torch.ops.aten.max_pool2d, nn.MaxPool2d(3, 2, 1)])
    @pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
    def test_what_they_would_be_applied_to_is_pooled_first(self, activation, pool, calls):
        x = values(2, 3, 8, 8)
        pool_by = pool if isinstance(pool, nn.Module) else lambda x: pool(x, 3, 2, 1)
        expected = pool_by(activation(x))
        with Exact():
            found = pool_by(activation(x))
        assert torch.equal(found, expected)
        assert torch.equal(calls[0], x)

    @pytest.mark.parametrize("activation", [F.relu, partial(F.leaky_relu, negative_slope=0.5)])
    def test_derivatives_are_the_same(self, activation):
        x, along = values(3, 2, 3, 8, 8), values(3, 2, 3, 8, 8, seed=1)

        def first(x: Tensor) -> Tensor:
            return torch.func.grad(lambda x: (F.max_pool2d(activation(x), 3, 2) ** 3).sum())(x)

        def both(x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(first, (x,), (along,))

        expected = torch.vmap(both)(x, along)
        with Exact():
            found = torch.vmap(both)(x, along)
        assert_close(found, expected, rtol=0, atol=0)

    @pytest.mark.parametrize("change", ["output", "input"])
    def test_what_is_changed_before_pooling_stays_changed(self, change):
        def pooled() -> Tensor:
            x = values(2, 3, 8, 8)
            y = torch.relu(x)
            (y if change == "output" else x).sub_(2)
            return torch.max_pool2d(y, 2)

        expected = pooled()
        with Exact():
            assert torch.equal(pooled(), expected)

    @pytest.mark.parametrize(
        "activation", [partial(F.relu, inplace=True), partial(F.leaky_relu, negative_slope=-0.5), torch.sin]
    )
    def test_others_come_first(self, activation, calls):
        x = values(2, 3, 8, 8)
        activated = activation(x.clone())
        with Exact():
            found = F.max_pool2d(activation(x), 2)
        assert torch.equal(found, torch.max_pool2d(activated, 2))
        assert torch.equal(calls[0], activated)


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
