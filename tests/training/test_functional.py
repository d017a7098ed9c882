import pytest
import torch
import torch.nn.functional as F
from reference import network, task_of, tasks_of
from torch import nn
from torch.testing import assert_close

from headstart import MAML, SGD
from headstart.training.functional import added, call, chunks, gradients, joined, settings
from headstart.vectorize import count_tasks, stack


@pytest.mark.parametrize("size", [None, 1, 2, 3, 5, 9])
@pytest.mark.parametrize("together", [True, False], ids=["stacked", "list"])
def test_chunks_are_the_whole(together, size):
    tasks = tasks_of(5) if together else [task_of(seed) for seed in range(5)]
    parts = list(chunks(tasks, size))
    assert [count_tasks(part) for part in parts] == {None: [5], 1: [1] * 5, 2: [2, 2, 1], 3: [3, 2], 5: [5], 9: [5]}[
        size
    ]
    rejoined = joined(parts) if together else stack([task for part in parts for task in part])
    assert_close(rejoined, tasks_of(5), rtol=0, atol=0)


def test_added_takes_either_alone():
    one, two = {"w": torch.ones(2), "v": torch.ones(1)}, {"w": torch.full((2,), 3.0), "u": torch.zeros(1)}
    expected = {"w": torch.full((2,), 4.0), "v": torch.ones(1), "u": torch.zeros(1)}
    assert_close(dict(sorted(added(one, two).items())), dict(sorted(expected.items())))
    assert added({}, one) == one
    assert added(one, {}) == one


def test_gradients_by_name():
    w, v, unused = (torch.tensor(x, requires_grad=True) for x in (2.0, 3.0, 1.0))
    inputs = {"w": w, "v": v, "unused": unused}
    assert gradients([w * v, w**2], None, inputs) == {"w": torch.tensor(7.0), "v": torch.tensor(2.0)}
    weighted = gradients(
        [w * v, torch.tensor(5), w**2], [torch.tensor(10.0), torch.tensor(0), torch.tensor(1.0)], inputs
    )
    assert weighted == {"w": torch.tensor(34.0), "v": torch.tensor(20.0)}
    assert gradients([torch.tensor(1.0)], None, inputs) == {}


def test_a_method_is_called_with_other_values():
    learner, tasks = MAML(network(), F.mse_loss, inner=SGD(0.1)), tasks_of()
    other = MAML(network(), F.mse_loss, inner=SGD(0.1))
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    before = {name: p.clone() for name, p in learner.named_parameters()}
    losses, _ = call(learner, "outcomes", dict(other.named_parameters()), tasks)
    assert_close(losses, other.task_losses(tasks))
    assert_close(dict(learner.named_parameters()), before, rtol=0, atol=0)
    assert all(isinstance(p, nn.Parameter) for p in learner.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda learner: setattr(learner, "inner", SGD(0.1)),
        lambda learner: setattr(learner, "norm", "batch"),
        lambda learner: learner.eval(),
        lambda learner: learner.model[0].eval(),
        lambda learner: setattr(learner.model[0], "in_features", 3),
        lambda learner: learner.model.__setitem__(1, nn.Sigmoid()),
    ],
    ids=["inner", "norm", "mode", "mode of a layer", "setting of a layer", "another layer"],
)
def test_settings_show_every_change(change):
    learner = MAML(network(), F.mse_loss, inner=SGD(0.1))
    before = settings(learner)
    assert settings(learner) == before
    change(learner)
    assert not _same(settings(learner), before)


def test_settings_may_leave_out():
    learner = MAML(network(), F.mse_loss, inner=SGD(0.1))
    before, all_before = settings(learner, but=("steps",)), settings(learner)
    learner.steps = 7
    assert _same(settings(learner, but=("steps",)), before)
    assert not _same(settings(learner), all_before)


def _same(one, two) -> bool:
    return all(a is b for a, b in zip(one, two, strict=True))
