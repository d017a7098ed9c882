"""Heads made for each task: each against a hand-written loop, and all for any number of classes in any order."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from contracts.learners import tasks_of
from reference import call, error, meta_gradient, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import SGD, Batch, ProtoMAML, ProtoNet, SharedHead, Task, ZeroHead
from headstart.algorithms.heads import TaskHead
from headstart.vectorize import stack

LR, WAYS = 0.3, 3
ALL = pytest.mark.parametrize("cls", [SharedHead, ZeroHead, ProtoNet, ProtoMAML])


def model(outputs: int = WAYS) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


def one_against_all(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = targets.unsqueeze(-1) == torch.arange(WAYS)  # `one_hot` cannot be vectorised within a gradient
    return F.binary_cross_entropy_with_logits(outputs, wanted.to(outputs))


def learner_of(cls: type[TaskHead], outputs: int = WAYS, loss: Callable = F.cross_entropy, **settings) -> TaskHead:
    steps = {} if cls is ProtoNet else {"steps": 2}
    return cls(model(outputs), loss, inner=SGD(LR), **steps, **settings)


def prototypes(model: nn.Module, support: Batch) -> Tensor:
    features = model[:2](support.inputs)
    return torch.stack([features[support.targets == label].mean(0) for label in range(WAYS)])


def squared_distances(points: Tensor, centres: Tensor) -> Tensor:
    return (points[:, None] - centres[None]).square().sum(-1)


def shared(model: nn.Module, support: Batch) -> tuple[Tensor, Tensor]:
    row = model[2].weight.sum(0) / len(model[2].weight)
    return torch.stack([row] * WAYS), torch.zeros(WAYS, dtype=torch.float64, requires_grad=True)


def zero(model: nn.Module, support: Batch) -> tuple[Tensor, Tensor]:
    return tuple(torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((WAYS, 6), (WAYS,)))


def by_distance(model: nn.Module, support: Batch) -> tuple[Tensor, Tensor]:
    centres = prototypes(model, support)
    return 2 * centres, -(centres * centres).sum(1)


def by_hand(model: nn.Module, make_head: Callable, criterion: Callable) -> Tensor:
    losses = []
    for support, query in unstack(tasks_of()):
        made = dict(zip(("2.weight", "2.bias"), make_head(model, support), strict=True))
        # Copies: an inner gradient is partial, the head's way from the body is for the outer one alone.
        params = {n: p.clone() for n, p in (dict(model.named_parameters()) | made).items()}
        for _ in range(2):
            loss = criterion(call(model, params, support.inputs), support.targets)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            params = {n: p - LR * g for (n, p), g in zip(params.items(), grads, strict=True)}
        losses.append(criterion(call(model, params, query.inputs), query.targets))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("loss", [F.cross_entropy, one_against_all], ids=["softmax", "one against all"])
@pytest.mark.parametrize(("cls", "make_head"), [(SharedHead, shared), (ZeroHead, zero), (ProtoMAML, by_distance)])
def test_equals_a_hand_written_loop(cls, make_head, loss, how):
    learner = learner_of(cls, loss=loss, ways=WAYS, vectorize=how)
    given, expected = learner(tasks_of()), by_hand(learner.model, make_head, loss)
    assert_close(given, expected)
    assert error(meta_gradient(given, learner), meta_gradient(expected, learner)) < 1e-10


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_protonet_is_a_softmax_over_squared_distances(how):
    learner, losses = learner_of(ProtoNet, ways=WAYS, vectorize=how), []
    for task, outputs in zip(unstack(tasks_of()), learner.predict(tasks_of()), strict=True):
        distances = squared_distances(learner.model[:2](task.query.inputs), prototypes(learner.model, task.support))
        probabilities = torch.exp(-distances) / torch.exp(-distances).sum(1, keepdim=True)
        assert_close(outputs[-1].softmax(-1), probabilities.detach())
        losses.append(-probabilities[range(len(distances)), task.query.targets].log().mean())
    given, expected = learner(tasks_of()), torch.stack(losses).mean()
    assert_close(given, expected)
    assert error(meta_gradient(given, learner), meta_gradient(expected, learner)) < 1e-10


def test_proto_maml_begins_as_protonet():
    given, expected = (learner_of(cls).predict(tasks_of(), steps=0) for cls in (ProtoMAML, ProtoNet))
    assert_close(given, expected, rtol=0, atol=0)


def test_in_a_softmax_a_shared_row_cancels():
    """It adds the same to the output of every class: nothing moves it, and the head could as well start at zero."""
    both = [learner_of(cls) for cls in (SharedHead, ZeroHead)]
    assert_close(*(learner.task_losses(tasks_of()) for learner in both))
    assert error(*(meta_gradient(learner(tasks_of()), learner) for learner in both)) < 1e-12
    others = [learner_of(cls, loss=one_against_all)(tasks_of()) for cls in (SharedHead, ZeroHead)]
    assert not torch.allclose(*others)


def test_the_first_step_from_zero_moves_the_head_alone():
    learner = learner_of(ZeroHead)
    adapted = learner.adapt(unstack(tasks_of())[0].support, steps=1)
    assert_close(adapted[0].state_dict(), learner.model[0].state_dict(), rtol=0, atol=0)
    assert adapted[2].weight.any()


@ALL
@pytest.mark.parametrize("ways", [2, 3, 5, 7])
def test_trained_with_three_classes_it_takes_any_number(cls, ways):
    learner, tasks = learner_of(cls, ways=WAYS), tasks_of(ways=ways)
    predictions = learner.predict(tasks)
    assert predictions.shape == (3, learner.steps + 1, 3 * ways, ways)
    for task, predicted in zip(unstack(tasks), predictions, strict=True):
        module = learner.adapt(task.support)
        assert module[2].out_features == ways
        assert_close(module(task.query.inputs).detach(), predicted[-1])
    assert learner.model[2].weight.shape == (WAYS, 6)
    alike = learner_of(cls)  # which counts them in training too
    assert alike(tasks).item() == pytest.approx(learner_of(cls, ways=ways)(tasks).item(), rel=1e-12)


@ALL
def test_the_models_own_number_of_outputs_is_of_no_account(cls):
    learner = learner_of(cls, outputs=1)
    assert learner.predict(tasks_of()).shape[-1] == WAYS
    assert learner.adapt(unstack(tasks_of(ways=5))[0].support)[2].out_features == 5


@ALL
@pytest.mark.parametrize("ways", [3, 5, 7])
def test_other_labels_permute_the_outputs_and_nothing_else(cls, ways):
    learner, tasks = learner_of(cls), tasks_of(ways=ways)
    order = torch.randperm(ways, generator=torch.Generator().manual_seed(1))
    assert order.ne(torch.arange(ways)).any()
    renamed = stack([Task(*(Batch(b.inputs, order[b.targets]) for b in task)) for task in unstack(tasks)])
    assert_close(learner.predict(renamed)[..., order], learner.predict(tasks))
    losses = [learner(each) for each in (tasks, renamed)]
    assert_close(*losses)
    assert error(*(meta_gradient(loss, learner) for loss in losses)) < 1e-10
    body, head = learner.adapt(unstack(tasks)[0].support)[::2]
    other_body, other_head = learner.adapt(unstack(renamed)[0].support)[::2]
    assert_close(other_body.state_dict(), body.state_dict())
    assert_close(other_head.weight[order], head.weight)


@ALL
@pytest.mark.parametrize("left_out", ["2.weight", "2.bias"])
def test_a_head_held_fixed_is_refused(cls, left_out):
    with pytest.raises(ValueError, match="The head '2' is made for each task: its weight and bias must"):
        learner_of(cls, adapt_only=["*", f"!{left_out}"])


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: SharedHead(model(), F.cross_entropy, head="1"), "The head '1' is not a linear layer"),
        (lambda: ProtoNet(model(), F.cross_entropy, steps=1), "with steps it is ProtoMAML"),
    ],
)
def test_what_makes_no_sense_is_refused(call, told):
    with pytest.raises(ValueError, match=told):
        call()
