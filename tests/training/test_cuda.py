import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import Batch, Task
from headstart.training.cuda import Replayed


class Captures:
    """What a CUDA graph does, on any machine: outputs and gradients of a replay go where those of the capture went."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters, self.count = parameters, 0

    def __call__(self, compute):
        self.count += 1
        outputs = compute()
        grads = [p.grad for p in self.parameters]

        def replay() -> None:
            before = [p.grad for p in self.parameters]
            again = compute()
            for kept, new in zip([*outputs, *grads], [*again, *(p.grad for p in self.parameters)], strict=True):
                if kept is not None:
                    kept.copy_(new)
            for p, grad in zip(self.parameters, before, strict=True):
                p.grad = grad

        return replay, outputs


def tasks_of(value: float, count: int = 3) -> Task:
    return Task(Batch(torch.full((count, 2), value), torch.ones(count)), Batch(torch.ones(count, 4), torch.ones(count)))


class Learner(nn.Module):
    """The derivative of its loss is the mean of the support inputs, times a factor."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(1.0))
        self.factor, self.settings = 1.0, object()
        self.captures = Captures([self.used, self.unused])
        self.replayed = Replayed(self.accumulate, self, lambda: (self.settings,), self.captures)

    def accumulate(self, tasks: Task) -> tuple[Tensor, ...]:
        losses = self.used * tasks.support.inputs.mean(1) * self.factor
        losses.mean().backward()
        return (losses.detach(),)


def test_inputs_are_copied_and_outputs_refreshed():
    learner = Learner()
    for value in (1.0, 5.0, -3.0):
        tasks = tasks_of(value)
        (losses,) = learner.replayed(tasks)
        assert losses.tolist() == [2 * value] * 3
        assert tasks.support.inputs.unique().item() == value  # the caller's own are not written to
    assert learner.captures.count == 1


def test_gradients_are_deposited_and_added():
    learner = Learner()
    learner.replayed(tasks_of(1.0))
    assert learner.used.grad == 1.0
    assert learner.unused.grad is None
    learner.replayed(tasks_of(5.0))
    assert learner.used.grad == 6.0
    learner.replayed(tasks_of(0.5))
    assert learner.used.grad == 6.5
    learner.used.grad = torch.tensor(100.0)
    learner.replayed(tasks_of(7.0))
    assert learner.used.grad == 107.0


def test_what_was_there_before_a_capture_is_added_to():
    learner = Learner()
    learner.used.grad, learner.unused.grad = torch.tensor(10.0), torch.tensor(3.0)
    learner.replayed(tasks_of(1.0))
    assert learner.used.grad == 11.0
    assert learner.unused.grad == 3.0


def test_parameters_may_change_and_move():
    learner = Learner()
    learner.replayed(tasks_of(1.0))
    with torch.no_grad():
        learner.used.fill_(7.0)
    assert_close(learner.replayed(tasks_of(1.0))[0], torch.full((3,), 7.0))
    assert learner.captures.count == 1
    kept = learner.used.data  # held, so that no memory is used twice
    learner.used.data = torch.tensor(9.0)
    assert_close(learner.replayed(tasks_of(1.0))[0], torch.full((3,), 9.0))
    assert learner.captures.count == 2
    del kept


def test_losses_stay_as_they_are():
    learner = Learner()
    history = [learner.replayed(tasks_of(value))[0] for value in (1.0, 2.0)]
    assert [losses[0].item() for losses in history] == [2.0, 4.0]


def test_another_shape_or_type_is_captured_anew():
    learner = Learner()
    learner.replayed(tasks_of(1.0, count=3))
    assert learner.replayed(tasks_of(2.0, count=4))[0].tolist() == [4.0] * 4
    assert learner.captures.count == 2
    assert learner.replayed(tasks_of(3.0, count=3))[0].tolist() == [6.0] * 3
    assert learner.captures.count == 2
    double = Task(*(Batch(*(t.double() for t in part)) for part in tasks_of(1.0)))
    assert learner.replayed(double)[0].dtype == torch.float64
    assert learner.captures.count == 3


@pytest.mark.parametrize("setting", [object, lambda: [1], lambda: {"rates": [1]}], ids=["object", "list", "dict"])
def test_another_setting_is_captured_anew(setting):
    learner = Learner()
    for factor in (1.0, 2.0):
        learner.factor, learner.settings = factor, setting()
        for _ in range(2):
            assert learner.replayed(tasks_of(1.0))[0].tolist() == [2 * factor] * 3
    assert learner.captures.count == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="captures on a GPU")
def test_a_real_capture():
    from headstart import MAML, SGD
    from headstart.training.engine import Engine

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1)).cuda()
    learner = MAML(model, nn.functional.mse_loss, inner=SGD(0.1), steps=2)
    graphed, eager = Engine(learner, mode="graphed"), Engine(learner)
    for seed in range(3):
        batch = [torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(seed)).cuda() for _ in range(2)]
        tasks = Task(Batch(*batch), Batch(*batch))
        learner.zero_grad()
        expected, _ = eager.compute(tasks)
        gradients = [p.grad for p in learner.parameters()]
        learner.zero_grad()
        losses, _ = graphed.compute(tasks)
        assert_close(losses, expected)
        assert_close([p.grad for p in learner.parameters()], gradients)
        graphed.compute(tasks)
        assert_close([p.grad for p in learner.parameters()], [2 * g for g in gradients])
