import pytest
import torch
import torch.nn.functional as F
from algorithms.quadratic import quadratic, regression
from reference import call, directional_derivatives, error, flat, meta_gradient, network, task_of, tasks_of, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import IMAML, MAML, SGD, Task

STRENGTH = 0.7


def converged(model: nn.Module, solver_steps: int = 30, **settings) -> IMAML:
    """With inner steps enough that rounding is what is left of the slope."""
    settings = {"inner": SGD(0.3), "steps": 200, **settings}
    return IMAML(model, F.mse_loss, strength=STRENGTH, solver_steps=solver_steps, **settings)


def implicit(task: Task, start: Tensor) -> Tensor:
    """The gradient of the query loss at the proximal minimum, with the minimum's own derivative: closed forms."""
    hessian, slope = quadratic(task.support)
    pulled = hessian + STRENGTH * torch.eye(len(start), dtype=start.dtype)
    adapted = torch.linalg.solve(pulled, slope + STRENGTH * start)
    derivative = torch.linalg.inv(torch.eye(len(start), dtype=start.dtype) + hessian / STRENGTH)
    return derivative.T @ quadratic(task.query).gradient(adapted)


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_closed_form_on_a_quadratic(how):
    learner = converged(regression(), vectorize=how)
    start = flat(list(learner.parameters())).detach()
    expected = torch.stack([implicit(task, start) for task in unstack(tasks_of())]).mean(0)
    assert error(meta_gradient(learner(tasks_of()), learner), expected) < 1e-10


def test_more_solver_steps_come_ever_closer():
    """To be exact, but for rounding, with as many as there are parameters."""
    start, task = flat(list(regression().parameters())).detach(), task_of(0)
    learners = [converged(regression(), solver_steps) for solver_steps in (1, 2, 3)]
    errors = [error(meta_gradient(learner([task]), learner), implicit(task, start)) for learner in learners]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-8


def test_adapt_ends_at_the_proximal_minimum():
    learner, (support, _) = converged(regression()), task_of(0)
    start = flat(list(learner.parameters())).detach()
    hessian, slope = quadratic(support)
    expected = torch.linalg.solve(hessian + STRENGTH * torch.eye(3, dtype=start.dtype), slope + STRENGTH * start)
    assert_close(flat(list(learner.adapt(support).parameters())).detach(), expected)


@pytest.mark.parametrize("adapt_only", ["2.*", "*"])
def test_equals_finite_differences_of_the_bilevel_problem(adapt_only):
    """Also for what is held fixed, on which the inner minimum depends. With the head alone it is a ridge regression."""
    model, tasks = network(), tasks_of()
    learner = converged(model, adapt_only=adapt_only)
    gradient = meta_gradient(learner(tasks), learner)
    directions = torch.randn(2, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def ridge() -> Tensor:
        losses = []
        for support, query in unstack(tasks):
            design, queries = (torch.cat([h, torch.ones_like(h[:, :1])], 1) for h in map(features, (support, query)))
            start = flat(list(model[2].parameters()))
            hessian, slope = 2 / len(design) * design.T @ design, 2 / len(design) * design.T @ support.targets[:, 0]
            adapted = torch.linalg.solve(hessian + STRENGTH * torch.eye(7).double(), slope + STRENGTH * start)
            losses.append(F.mse_loss(queries @ adapted, query.targets[:, 0]))
        return torch.stack(losses).mean()

    def features(batch) -> Tensor:
        return model[:2](batch.inputs)

    def descended() -> Tensor:
        start, losses = dict(model.named_parameters()), []
        for support, query in unstack(tasks):
            params = {n: p.detach().clone().requires_grad_() for n, p in start.items()}
            for _ in range(200):
                apart = sum((params[n] - p.detach()).square().sum() for n, p in start.items())
                loss = F.mse_loss(call(model, params, support.inputs), support.targets) + STRENGTH / 2 * apart
                grads = torch.autograd.grad(loss, list(params.values()))
                params = {
                    n: (p - 0.3 * g).detach().requires_grad_() for (n, p), g in zip(params.items(), grads, strict=True)
                }
            losses.append(F.mse_loss(call(model, params, query.inputs), query.targets))
        return torch.stack(losses).mean()

    value = ridge if adapt_only == "2.*" else descended
    slopes = directional_derivatives(value, list(model.parameters()), directions, step=1e-6)
    assert error(directions @ gradient, slopes) < 1e-6
    held = sum(p.numel() for p in model[0].parameters())
    assert gradient[:held].norm() > 1e-2


def kept(loss: Tensor) -> int:
    """Tensors that a graph keeps for its backward pass (hooks that would count them are refused by `torch.func`)."""
    seen, queue, tensors = set(), [loss.grad_fn], set()
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        tensors |= {value.data_ptr() for value in saved if isinstance(value, Tensor)}
        queue += [before for before, _ in node.next_functions]
    return len(seen) + len(tensors)


def test_memory_does_not_grow_with_inner_steps():
    counts = {}
    for cls in (IMAML, MAML):
        plain = {"recompute": False} if cls is MAML else {}
        learners = [cls(network(), F.mse_loss, steps=steps, vectorize="loop", **plain) for steps in (1, 64)]
        counts[cls] = [kept(learner(tasks_of())) for learner in learners]
    assert counts[IMAML][0] == counts[IMAML][1]
    assert counts[MAML][1] > 20 * counts[MAML][0]


@pytest.mark.parametrize(("strength", "solver_steps"), [(0.0, 5), (-1.0, 5), (float("nan"), 5), (1.0, 0)])
def test_what_makes_no_sense_is_refused(strength, solver_steps):
    with pytest.raises(ValueError, match="strength must be positive and solver_steps at least 1"):
        IMAML(regression(), F.mse_loss, strength=strength, solver_steps=solver_steps)
