import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from headstart import Batch, Task
from headstart.algorithms.averages import SeparateModels, SeparateUpdater
from headstart.types import NonFiniteError

COUNT, LR, COEFFICIENT = 4, 0.05, 0.3


def networks(count=COUNT, dtype=torch.float64) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype) for _ in range(count)]


def meta_batches(iterations, count=COUNT, dtype=torch.float64) -> list[Task]:
    """Random targets, a different offset for each model; the support sets must not be looked at."""
    rng = torch.Generator().manual_seed(1)
    draw = [torch.randn(2, count, 5, 1, generator=rng, dtype=dtype) for _ in range(iterations)]
    offset = torch.arange(count, dtype=dtype).reshape(-1, 1, 1)
    nothing = torch.full((count, 2, 1), torch.nan, dtype=dtype)
    return [Task(Batch(nothing, nothing), Batch(x, y + offset)) for x, y in draw]


def anchors(models, regularizer) -> list[torch.Tensor]:
    columns = list(zip(*(model.parameters() for model in models), strict=True))
    if regularizer == "l2":
        return [torch.zeros_like(column[0]) for column in columns]
    return [sum(p.detach() for p in column) / len(models) for column in columns]


def trained_one_by_one(models, batches, regularizer) -> list[list[float]]:
    """Each model with an optimiser of its own, in a plain loop; the errors before each step."""
    optimizers = [torch.optim.Adam(model.parameters(), lr=LR) for model in models]
    errors = []
    for tasks in batches:
        held = anchors(models, regularizer)
        errors.append([])
        for i, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            error = mse_loss(model(tasks.query.inputs[i]), tasks.query.targets[i])
            errors[-1].append(error.item())
            loss = error
            if regularizer != "none":
                pairs = zip(model.parameters(), held, strict=True)
                loss = error + COEFFICIENT * sum((p - anchor).square().sum() for p, anchor in pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return errors


@pytest.mark.parametrize("regularizer", ["none", "l2", "to-mean"])
def test_all_at_once_is_one_by_one(regularizer):
    models, batches = networks(), meta_batches(30)
    learner = SeparateModels(models, mse_loss, regularizer=regularizer, coefficient=COEFFICIENT)
    updater = SeparateUpdater(learner, lr=LR, bound=2.0)
    metrics = [updater.update(tasks) for tasks in batches]
    errors = trained_one_by_one(models, batches, regularizer)
    for name, stacked in learner.models.named_parameters():
        for own, model in zip(stacked, models, strict=True):
            torch.testing.assert_close(own, model.get_parameter(name))
    for told, each in zip(metrics, errors, strict=True):
        assert told["worst_error"] == pytest.approx(max(each))
        assert told["mean_error"] == pytest.approx(sum(each) / COUNT)
        assert told["below_bound"] == sum(error < 2.0 for error in each) / COUNT
    assert 0 < metrics[-1]["below_bound"] < 1
    assert (metrics[-1]["meta_loss"] == metrics[-1]["mean_error"]) == (regularizer == "none")


def test_the_models_given_are_left_alone():
    models = networks()
    before = copy.deepcopy([model.state_dict() for model in models])
    SeparateUpdater(SeparateModels(models, mse_loss), lr=LR).update(meta_batches(1)[0])
    for model, state in zip(models, before, strict=True):
        torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)


def test_the_average_is_the_mean_of_the_parameters():
    models = networks()
    average = SeparateModels(models, mse_loss).average()
    assert type(average) is nn.Sequential
    first, *others = models
    for name, parameter in average.named_parameters():
        total = first.get_parameter(name).detach().clone()
        for model in others:
            total += model.get_parameter(name).detach()
        torch.testing.assert_close(parameter.detach(), total / COUNT)
    x = torch.randn(3, 1, dtype=torch.float64)
    outputs = torch.stack([model(x) for model in models]).mean(0)
    assert not torch.allclose(average(x), outputs)  # of parameters, not of outputs


def test_the_average_stays_as_it_was_when_training_goes_on():
    learner = SeparateModels(networks(), mse_loss)
    average = learner.average()
    before = copy.deepcopy(average.state_dict())
    SeparateUpdater(learner, lr=LR).update(meta_batches(1)[0])
    torch.testing.assert_close(dict(average.state_dict()), dict(before), rtol=0, atol=0)


def test_regularisers_have_their_closed_forms():
    def gradients(regularizer):
        learner = SeparateModels(networks(), mse_loss, regularizer=regularizer, coefficient=COEFFICIENT)
        theta = torch.cat([p.flatten(1) for p in learner.models.parameters()], 1).detach()
        values = learner.penalties()
        if values.requires_grad:
            values.sum().backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.models.parameters()]
        return theta, values.detach(), torch.cat([g.flatten(1) for g in found], 1)

    theta, values, gradient = gradients("none")
    assert not values.any()
    assert not gradient.any()
    theta, values, gradient = gradients("l2")
    torch.testing.assert_close(values, COEFFICIENT * (theta**2).sum(1))
    torch.testing.assert_close(gradient, 2 * COEFFICIENT * theta)
    theta, values, gradient = gradients("to-mean")
    distances = theta - theta.mean(0)
    torch.testing.assert_close(values, COEFFICIENT * (distances**2).sum(1))
    torch.testing.assert_close(gradient, 2 * COEFFICIENT * distances)


def test_forward_is_the_sum_of_the_models_own_losses():
    learner = SeparateModels(networks(), mse_loss, regularizer="l2", coefficient=COEFFICIENT)
    (tasks,) = meta_batches(1)
    torch.testing.assert_close(learner(tasks), learner.errors(tasks).sum() + learner.penalties().sum())


class Scaled(nn.Module):
    """Its one parameter is a scalar."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, inputs):
        return self.scale * inputs


def test_a_scalar_parameter_is_one_too():
    learner = SeparateModels([Scaled(1.0), Scaled(4.0)], mse_loss, regularizer="to-mean", coefficient=2.0)
    batch = Batch(torch.ones(2, 3, 1), torch.zeros(2, 3, 1))
    torch.testing.assert_close(learner.penalties(), torch.full((2,), 2 * 1.5**2))
    assert SeparateUpdater(learner).update(Task(batch, batch))["mean_error"] == (1 + 16) / 2
    assert learner.average().scale.shape == ()


class Recurrent(nn.Module):
    """Its kernel cannot be vectorised."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, inputs):
        return self.head(self.cell(inputs.unsqueeze(1))[0][:, 0])


def test_a_module_that_cannot_be_vectorised_is_looped_over():
    torch.manual_seed(0)
    models = [Recurrent() for _ in range(COUNT)]
    (tasks,) = meta_batches(1, dtype=torch.float32)
    learner = SeparateModels(models, mse_loss)
    errors = learner.errors(tasks)
    assert learner.vectorize == "loop"
    own = [mse_loss(m(x), y) for m, x, y in zip(models, tasks.query.inputs, tasks.query.targets, strict=True)]
    torch.testing.assert_close(errors, torch.stack(own))


def test_resumed_is_uninterrupted():
    def make():
        learner = SeparateModels(
            networks(dtype=torch.float32), mse_loss, regularizer="to-mean", coefficient=COEFFICIENT
        )
        return SeparateUpdater(learner, lr=LR)

    batches = meta_batches(6, dtype=torch.float32)
    whole, first, second = make(), make(), make()
    expected = [whole.update(tasks) for tasks in batches]
    told = [first.update(tasks) for tasks in batches[:3]]
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    told += [second.update(tasks) for tasks in batches[3:]]
    assert told == expected
    assert second.updates == 6
    for a, b in zip(whole.learner.parameters(), second.learner.parameters(), strict=True):
        assert torch.equal(a, b)


def hidden_cliff(outputs, targets):
    """Finite at a target of 0, where its derivative is not."""
    return (outputs * targets).square().sum().sqrt()


@pytest.mark.parametrize(
    ("loss", "value", "told"), [(mse_loss, torch.inf, "is inf"), (hidden_cliff, 0.0, "its gradient is not")]
)
def test_what_is_not_finite_names_the_model_and_changes_nothing(loss, value, told):
    updater = SeparateUpdater(SeparateModels(networks(), loss), lr=LR)
    good, bad = meta_batches(2)
    updater.update(good)
    before = copy.deepcopy(updater.state_dict())
    bad.query.targets[2] = value
    with pytest.raises(NonFiniteError, match=rf"model 2 \(of 4\) .*{told}"):
        updater.update(bad)
    leaves, others = (torch.utils._pytree.tree_leaves(state) for state in (before, updater.state_dict()))
    for a, b in zip(leaves, others, strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("flushed", [False, True])
def test_denormal_numbers_are_treated_as_before_afterwards(flushed):
    updater = SeparateUpdater(SeparateModels(networks(), mse_loss), lr=LR)
    assert torch.set_flush_denormal(flushed)
    try:
        updater.update(meta_batches(1)[0])
        assert bool(torch.tensor([1e-40]).mul(1.0) == 0) == flushed
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"regularizer": "l1"}, "none, l2, to-mean, got 'l1'"),
        ({"coefficient": -1.0}, "0 or more, got -1.0"),
        ({"coefficient": float("inf")}, "finite"),
        ({"models": []}, "at least one"),
    ],
)
def test_what_cannot_work_is_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        SeparateModels(**{"models": networks(), "loss": mse_loss, **wrong})
