"""Max-pooling's derivative in compiled graphs, and the layout in which eager mode pools."""

import pytest
import torch
import torch.nn.functional as F
from reference import flat, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.training.engine import Engine
from headstart.training.tracing import Traced

CASES = {
    "halving": {"kernel_size": 2},
    "overlapping and padded": {"kernel_size": 3, "stride": 2, "padding": 1},
    "wide apart": {"kernel_size": 2, "stride": 3, "dilation": 2},
    "rounded up": {"kernel_size": (3, 2), "ceil_mode": True},
}


def values(*shape: int, seed: int = 0) -> Tensor:
    """Of few different values, so that windows have several maxima."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def derivatives(pool: dict, x: Tensor, weights: Tensor) -> list[Tensor]:
    """Of a function of what is pooled: the first, and the second along `weights`."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad((F.max_pool2d(x.relu(), **pool) ** 3).sum(), x, create_graph=True)
    return [first.detach(), *torch.autograd.grad(first, x, weights)]


class TestKernel:
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("case", CASES)
    @pytest.mark.usefixtures("recorded")
    def test_gives_the_derivatives_of_eager_mode(self, case, layout):
        x, weights = (values(2, 3, 9, 8, seed=seed).contiguous(memory_format=layout) for seed in (0, 1))
        traced = Traced(lambda x, weights: derivatives(CASES[case], x, weights))
        assert_close(traced(x, weights), derivatives(CASES[case], x, weights))

    @pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
    def test_is_what_compiled_code_calls(self):
        """By value the two can hardly be told apart: only in large networks is the compiler's own derivative wrong."""
        x, weights, pool = values(2, 3, 9, 8), values(2, 3, 9, 8, seed=1), CASES["halving"]
        traced = Traced(lambda x, weights: derivatives(pool, x, weights))
        traced(x, weights)
        with torch.profiler.profile() as profile:
            found = traced(x, weights)
        assert_close(found, derivatives(pool, x, weights))
        assert "headstart::unpool" in {event.key for event in profile.key_averages()}


class Pool(nn.MaxPool2d):
    """Remembers the layouts that it met."""

    def __init__(self) -> None:
        super().__init__(2)
        self.met = []

    def forward(self, x: Tensor) -> Tensor:
        self.met.append(x.is_contiguous(memory_format=torch.channels_last))
        return super().forward(x)


class TestLayout:
    def learner(self) -> MAML:
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Pool()),
            *(nn.Conv2d(4, 4, 2), nn.ReLU(), Pool()),
            *(nn.Flatten(), nn.Linear(4, 2)),
        )
        return MAML(model.double(), F.cross_entropy, inner=SGD(lr=0.1), steps=2)

    def tasks(self) -> Task:
        images = values(3, 8, 3, 8, 8)
        labels = torch.arange(8).remainder(2).expand(3, 8)
        return Task(Batch(images[:, :4], labels[:, :4]), Batch(images[:, 4:], labels[:, 4:]))

    @pytest.mark.parametrize("listed", [False, True])
    def test_of_tasks_one_by_one_is_channels_last_and_changes_nothing(self, listed):
        together, alone, tasks = self.learner(), self.learner(), self.tasks()
        losses = Engine(together).gradient(tasks)
        assert_close(Engine(alone, chunk_size=1).gradient(unstack(tasks) if listed else tasks), losses)
        assert_close(flat([p.grad for p in alone.parameters()]), flat([p.grad for p in together.parameters()]))
        for p in alone.parameters():
            assert p.grad.stride() == p.stride() == p.contiguous().stride()
        met = [layer.met for layer in alone.modules() if isinstance(layer, Pool)]
        assert all(all(each) for each in met)
        assert not any(layer.met[0] for layer in together.modules() if isinstance(layer, Pool))
