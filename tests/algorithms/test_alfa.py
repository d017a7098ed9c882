import pytest
import torch
import torch.nn.functional as F
from reference import error, meta_gradient, meta_loss, network, task_of, tasks_of
from torch import Tensor
from torch.testing import assert_close

from headstart import ALFA, MAML, SGD

LR = 0.1


def moved(steps: int, **settings) -> ALFA:
    learner = ALFA(network(), F.mse_loss, lr=LR, steps=steps, **settings)
    torch.manual_seed(1)
    for parameter in learner.inner.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return learner


def by_hand(learner: ALFA, steps: int):
    """One step's alpha and beta from the means of gradients and parameters: four of each."""
    first, second = learner.inner.network[0], learner.inner.network[2]

    def update(params: dict[str, Tensor], grads: dict[str, Tensor], state: dict) -> dict[str, Tensor]:
        row = min(state.setdefault("taken", 0), steps - 1)
        state["taken"] += 1
        tau = torch.stack([g.mean() for g in grads.values()] + [p.mean() for p in params.values()])
        hidden = torch.relu(first.weight @ tau + first.bias)
        made = second.weight @ hidden + second.bias
        alpha = learner.inner.rates[row] * (1 + made[:4])
        beta = learner.inner.decays[row] * (1 + made[4:])
        return {n: beta[i] * params[n] - alpha[i] * grads[n] for i, n in enumerate(params)}

    return update


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_equals_a_hand_written_loop(how):
    learner = moved(3, vectorize=how)
    given = learner(tasks_of())
    expected = meta_loss(learner.model, F.mse_loss, tasks_of(), by_hand(learner, 3), 3)
    assert_close(given, expected)
    own = sum(p.numel() for p in learner.inner.parameters())
    given, expected = meta_gradient(given, learner), meta_gradient(expected, learner)
    assert error(given, expected) < 1e-10
    assert error(given[-own:], expected[-own:]) < 1e-10


def test_steps_beyond_those_trained_with_use_the_last_ones_values():
    learner, (support, query) = moved(2), task_of(0)
    params, state, update = dict(learner.model.named_parameters()), {}, by_hand(learner, 2)
    for _ in range(5):
        loss = F.mse_loss(torch.func.functional_call(learner.model, params, support.inputs), support.targets)
        params = update(params, dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)), state)
        params = {n: p.detach().requires_grad_() for n, p in params.items()}
    expected = torch.func.functional_call(learner.model, params, query.inputs)
    assert_close(learner.adapt(support, steps=5)(query.inputs), expected)


def test_it_begins_as_maml():
    learner, maml = ALFA(network(), F.mse_loss, lr=LR, steps=2), MAML(network(), F.mse_loss, inner=SGD(LR), steps=2)
    given, expected = meta_gradient(learner(tasks_of()), learner.model), meta_gradient(maml(tasks_of()), maml)
    assert error(given, expected) < 1e-12
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        ALFA(network(), F.mse_loss, steps=0)
