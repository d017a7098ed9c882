"""Learners other than MAML through the real compiler, in half precision, and recomputed.

That what is recorded is right is `tests/contracts/test_learners.py`'s matter, for each of them.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from reference import error, flat, tasks_of
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import ALFA, IMAML, MAML, SGD, Batch, MAMLPlusPlus, MetaCurvature, MetaSGD, ProtoMAML, Task
from headstart.models import MLP
from headstart.training.engine import Engine


def classes_of(dtype: torch.dtype) -> Task:
    inputs = torch.randn(2, 3, 6, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6).remainder(3).expand(3, 6)
    return Task(*(Batch(x, labels) for x in inputs))


def network(outputs: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, outputs)).to(dtype)


def learner_of(name: str, dtype: torch.dtype) -> tuple[MAML, Task]:
    settings = {"lr": 0.1, "steps": 2}
    if name == "ProtoMAML":
        return ProtoMAML(network(3, dtype), F.cross_entropy, inner=SGD(0.1), steps=2, ways=3), classes_of(dtype)
    model = network(1, dtype)
    if name == "IMAML":
        return IMAML(model, F.mse_loss, inner=SGD(0.1), steps=2, strength=1.0, solver_steps=2), tasks_of(dtype=dtype)
    classes = {"ALFA": ALFA, "MAMLPlusPlus": MAMLPlusPlus, "MetaCurvature": MetaCurvature, "MetaSGD": MetaSGD}
    own = {"multi_step_loss": 1} if name == "MAMLPlusPlus" else {}
    return classes[name](model, F.mse_loss, **settings, **own), tasks_of(dtype=dtype)


def gradient_of(learner: MAML) -> Tensor:
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters()])


@pytest.mark.parametrize("name", ["ALFA", "IMAML", "MAMLPlusPlus", "ProtoMAML"])
def test_compiled_is_eager(name):
    """MAML++ changes its loss after the first update: the second is another graph."""
    learner, tasks = learner_of(name, torch.float64)
    other = copy.deepcopy(learner)
    compiled, eager = Engine(learner, mode="compiled"), Engine(other)
    for _ in range(2):
        learner.zero_grad(), other.zero_grad()
        assert_close(compiled.gradient(tasks), eager.gradient(tasks), rtol=1e-9, atol=1e-9)
        assert compiled.mode == "compiled"
        assert error(gradient_of(learner), gradient_of(other)) < 1e-9


@pytest.mark.parametrize("name", ["ALFA", "IMAML", "MAMLPlusPlus", "MetaCurvature", "MetaSGD", "ProtoMAML"])
def test_half_precision_is_for_products_of_the_network_only(name):
    learner, tasks = learner_of(name, torch.float32)
    other = copy.deepcopy(learner)
    Engine(learner, precision="bfloat16").gradient(tasks)
    Engine(other).gradient(tasks)
    assert 1e-6 < error(gradient_of(learner), gradient_of(other)) < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        adapting, state = learner.start(Task(*(Batch(x[0], y[0]) for x, y in tasks)))
        stepped, _ = learner.rule().update(adapting, {key: torch.ones_like(p) for key, p in adapting.items()}, state)
    assert {p.dtype for p in (*adapting.values(), *stepped.values())} == {torch.float32}
    exact, _ = learner.rule().update(adapting, {key: torch.ones_like(p) for key, p in adapting.items()}, state)
    assert_close(stepped, exact, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["ALFA", "MAMLPlusPlus", "MetaCurvature", "MetaSGD", "ProtoMAML"])
def test_recomputed_is_the_same(name):
    learner, tasks = learner_of(name, torch.float64)
    other = copy.deepcopy(learner)
    other.recompute = True
    for module in (learner, other):
        module(tasks).backward()
    assert error(gradient_of(other), gradient_of(learner)) < 1e-10


def test_imaml_solves_one_system_with_dropout():
    """Masks drawn anew for every product would make conjugate gradients of as many matrices."""
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    learner = IMAML(model, F.mse_loss, inner=SGD(0.1), steps=3, strength=1.0, solver_steps=4).train()
    gradients = []
    for _ in range(2):
        learner.zero_grad()
        learner(tasks_of()).backward()
        gradients.append(gradient_of(learner))
    assert torch.equal(*gradients)
    assert all(layer.training for layer in model)


def test_imaml_stays_at_the_first_order_gradient_where_there_is_no_minimum():
    """A loss that is curved downwards everywhere: H + lambda I is negative, and has no implicit gradient."""
    model = nn.Linear(1, 1, bias=False).double()
    batch = Batch(torch.ones(1, 4, 1).double(), torch.zeros(1, 4, 1).double())

    def hill(outputs: Tensor, targets: Tensor) -> Tensor:
        return -5 * (outputs - targets).square().mean()

    learner = IMAML(model, hill, inner=SGD(0.01), steps=2, strength=1.0, solver_steps=5)
    learner(Task(batch, batch)).backward()
    adapted = learner.adapt(Batch(batch.inputs[0], batch.targets[0]))
    assert_close(model.weight.grad, -10 * adapted.weight.detach())


def test_a_parameter_may_be_named_as_a_method_of_dictionaries():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.keys = nn.Parameter(torch.ones(2, 1))
            self.parts = nn.ModuleDict({"a[0]": nn.Linear(1, 1)})

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["a[0]"](x @ self.keys)

    learner = MetaSGD(Odd(), F.mse_loss, adapt_only=["keys", "parts.a[0].weight"])
    assert learner.adapted_names == ("keys", "parts.a[0].weight")
    learner(tasks_of(dtype=torch.float32)).backward()
    assert all(p.grad is not None for p in learner.inner.parameters())


def test_a_mlp_of_ours_runs_too():
    """With step norms: its batch norm's shift is kept by step, and steps beyond take the last."""
    learner = MAMLPlusPlus(MLP(2, 1, (4,), normalizer="batch"), F.mse_loss, steps=1)
    learner.steps = 3
    assert learner(tasks_of(dtype=torch.float32)).isfinite()
