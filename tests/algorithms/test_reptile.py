import pytest
import torch
import torch.nn.functional as F
from algorithms.quadratic import quadratic, regression
from reference import error, flat, meta_gradient, network, tasks_of, trained, unstack
from torch.testing import assert_close

from headstart import MAML, SGD, Momentum, Reptile, Task

HOW = pytest.mark.parametrize("how", ["vmap", "loop"])


@HOW
@pytest.mark.parametrize("steps", [1, 5])
def test_the_gradient_is_initial_minus_adapted_in_closed_form(steps, how):
    """Adapted to the examples of support and query set together."""
    learner = Reptile(regression(), F.mse_loss, inner=SGD(0.1), steps=steps, vectorize=how)
    start, way = flat(trained(learner)).detach(), []
    for support, query in unstack(tasks_of()):
        way.append(start - quadratic(support, query).descended(start, 0.1, steps))
    assert error(meta_gradient(learner(tasks_of()), learner), torch.stack(way).mean(0)) < 1e-10


def test_a_meta_update_of_rate_one_goes_to_the_mean_of_the_adapted():
    learner, tasks = Reptile(network(), F.mse_loss, inner=Momentum(0.05), steps=4), tasks_of()
    everything = [type(task.support)(*(torch.cat(pair) for pair in zip(*task, strict=True))) for task in unstack(tasks)]
    adapted = torch.stack([flat(trained(learner.adapt(examples))) for examples in everything]).mean(0)
    learner(tasks).backward()
    torch.optim.SGD(learner.parameters(), lr=1.0).step()
    assert_close(flat(trained(learner)), adapted)


def test_its_value_is_the_loss_after_adaptation():
    learner, tasks = Reptile(network(), F.mse_loss, inner=SGD(0.1), steps=3), tasks_of()
    alike = type(tasks.support)(*(torch.cat(pair, 1) for pair in zip(*tasks, strict=True)))
    expected = MAML(network(), F.mse_loss, inner=SGD(0.1), steps=3)(Task(alike, alike))
    assert_close(learner(tasks), expected)


def test_what_does_not_adapt_stays():
    learner = Reptile(network(), F.mse_loss, inner=SGD(0.1), steps=3, adapt_only="2.*")
    learner(tasks_of()).backward()
    assert [n for n, p in learner.named_parameters() if p.grad is None] == ["model.0.weight", "model.0.bias"]
