import json
import math

import pytest
import torch
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.losses import accuracy, squared_error
from headstart.tasks import Sinusoids
from headstart.training.evaluate import evaluate, fixed_tasks, per_task, summary


def test_the_task_list_is_fixed_by_its_seed():
    source = Sinusoids(shots=3, queries=2)
    sizes = [len(tasks.query.targets) for tasks in fixed_tasks(source, 120, seed=4)]
    assert sizes == [50, 50, 20]
    first = [next(fixed_tasks(source, 120, seed)).support.inputs for seed in (4, 4, 5)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    short = next(fixed_tasks(source, 7, seed=4)).support.inputs
    assert torch.equal(first[0][:7], short)  # a shorter list is the beginning of a longer one


def test_evaluation_is_a_hand_loop_over_tasks():
    learner = MAML(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss, inner=SGD(0.05))
    tasks = list(fixed_tasks(Sinusoids(shots=3, queries=2), 60, seed=0))
    result = evaluate(learner, iter(tasks), squared_error, steps=2)
    errors = []
    for batch in tasks:
        for i in range(len(batch.query.targets)):
            x, y = batch.support.inputs[i], batch.support.targets[i]
            w, b = (p.detach().clone().requires_grad_() for p in learner.model.parameters())
            for _ in range(2):
                gw, gb = torch.autograd.grad((x @ w.T + b - y).square().mean(), (w, b))
                w, b = (w - 0.05 * gw).detach().requires_grad_(), (b - 0.05 * gb).detach().requires_grad_()
            errors.append((batch.query.inputs[i] @ w.T + b - batch.query.targets[i]).square().mean())
    errors = torch.stack(errors).detach()
    assert result.num_tasks == 60
    assert result.per_step[2].mean == pytest.approx(float(errors.mean()), rel=1e-4)
    assert result.per_step[2].median == pytest.approx(float(errors.quantile(0.5)), rel=1e-4)
    assert result.per_step[2].ci95 == pytest.approx(1.96 * float(errors.std(correction=0)) / math.sqrt(60), rel=1e-4)


def test_the_digest_tells_task_lists_apart():
    learner = MAML(torch.nn.Linear(1, 1), torch.nn.functional.mse_loss)
    source = Sinusoids(shots=3, queries=2)
    digests = [evaluate(learner, fixed_tasks(source, 5, seed), squared_error, 0).tasks_digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_diverged_tasks_are_counted_and_left_out():
    outputs = torch.tensor([[[[1.0]], [[math.nan]]], [[[3.0]], [[math.inf]]]])  # 2 tasks, 2 steps, 1 example
    values = per_task(outputs, torch.zeros(2, 1, 1), squared_error)
    before, after = summary(0, values[:, 0]), summary(1, values[:, 1])
    assert (before.mean, before.diverged) == (5.0, 0)
    assert (after.mean, after.median, after.ci95, after.diverged) == (None, None, None, 2)
    json.dumps([before, after], allow_nan=False)


def test_huge_but_finite_values_give_no_infinity():
    result = summary(0, torch.tensor([1e308, 1e308, 1.0], dtype=torch.float64))
    assert (result.mean, result.diverged) == (None, 0)
    json.dumps(result, allow_nan=False)


def test_a_classifier_whose_scores_are_nan_has_diverged():
    outputs = torch.tensor([[[[math.nan, 0.0]]], [[[1.0, 0.0]]]])
    values = per_task(outputs, torch.zeros(2, 1, dtype=torch.long), accuracy)
    assert_close(values, torch.tensor([[math.nan], [1.0]], dtype=torch.float64), equal_nan=True)


def test_tasks_are_moved_not_redrawn():
    tasks = next(fixed_tasks(Sinusoids(shots=3, queries=2), 5, seed=0, device="meta"))
    assert isinstance(tasks, Task)
    assert isinstance(tasks.support, Batch)
    assert tasks.support.inputs.device.type == "meta"
