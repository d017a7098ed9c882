import itertools

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from headstart import SGD, Adam, Momentum, adapt, inner_step, trajectory

CURVATURE = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
START = {"w": torch.tensor([1.0, -1.0], dtype=torch.float64)}
TARGETS = [torch.tensor(t, dtype=torch.float64) for t in ([0.0, 1.0], [2.0, 0.0], [1.0, 1.0])]


def quadratic(params: dict[str, Tensor], target: Tensor) -> Tensor:
    away = params["w"] - target
    return away @ CURVATURE @ away / 2


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_gradient_descent_on_a_quadratic_in_closed_form(steps):
    """theta' = t + M^n (theta - t) with M = 1 - lr A, and the outer gradient of |theta'|^2 / 2 is M^n theta'."""
    w, lr, target = START["w"].clone().requires_grad_(), 0.3, TARGETS[0]
    shrink = torch.linalg.matrix_power(torch.eye(2, dtype=torch.float64) - lr * CURVATURE, steps)
    adapted = adapt(quadratic, {"w": w}, [target] * steps, SGD(lr))["w"]
    assert_close(adapted.detach(), target + shrink @ (START["w"] - target))
    (given,) = torch.autograd.grad(adapted.square().sum() / 2, w)
    assert_close(given, shrink @ adapted.detach())


@pytest.mark.parametrize("steps", [1, 5])
def test_first_order_is_the_gradient_at_the_adapted_parameters(steps):
    w = START["w"].clone().requires_grad_()
    adapted = adapt(quadratic, {"w": w}, [TARGETS[0]] * steps, SGD(0.3), first_order=True)["w"]
    (given,) = torch.autograd.grad(adapted.square().sum() / 2, w)
    assert_close(given, adapted.detach())
    assert_close(adapted.detach(), adapt(quadratic, START, [TARGETS[0]] * steps, SGD(0.3))["w"])


@pytest.mark.parametrize("inner", [SGD(0.1), Momentum(0.1), Adam(0.1)], ids=lambda inner: type(inner).__name__)
def test_adapt_is_the_fold_of_inner_step_over_batches(inner):
    params, state, path = START, inner.init(START), [START]
    for target in TARGETS:
        params, state = inner_step(quadratic, params, target, inner, state)
        path.append(params)
    assert_close(adapt(quadratic, START, TARGETS, inner), params, rtol=0, atol=0)
    assert_close(list(trajectory(quadratic, START, TARGETS, inner)), path, rtol=0, atol=0)


def test_batches_are_asked_for_one_step_at_a_time():
    """As reinforcement learning needs it, whose next batch depends on the parameters reached."""
    seen = []

    def rollouts():
        for target in itertools.cycle(TARGETS):
            yield seen[-1] + target

    for params in trajectory(quadratic, START, rollouts(), SGD(0.1)):
        seen.append(params["w"])
        if len(seen) == 4:
            break
    expected = START["w"]
    for target, before in zip(TARGETS, seen, strict=False):
        expected = expected - 0.1 * CURVATURE @ (expected - (before + target))
    assert_close(seen[-1], expected)


def test_it_adapts_without_an_outer_gradient_too():
    expected = adapt(quadratic, START, TARGETS, SGD(0.1))
    with torch.no_grad():
        assert_close(adapt(quadratic, START, TARGETS, SGD(0.1)), expected, rtol=0, atol=0)


def test_a_loss_that_uses_gradients_itself():
    """A gradient penalty, say: third derivatives, through the library's layers as well."""

    def penalised(params: dict[str, Tensor], target: Tensor) -> Tensor:
        return quadratic(params, target) + torch.func.grad(quadratic)(params, target)["w"].square().sum()

    w = START["w"].clone().requires_grad_()

    def outer(w: Tensor) -> Tensor:
        return adapt(penalised, {"w": w}, TARGETS[:1], SGD(0.1))["w"].square().sum()

    assert torch.autograd.gradcheck(outer, w)
