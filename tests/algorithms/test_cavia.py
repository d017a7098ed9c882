import pytest
import torch
import torch.nn.functional as F
from reference import call, error, meta_gradient, task_of, tasks_of, unstack
from torch import nn
from torch.testing import assert_close

from headstart import CAVIA, MAML, SGD
from headstart.models import WithContext

LR = 0.5


def model() -> WithContext:
    """Whose context is not at zero."""
    torch.manual_seed(0)
    model = WithContext(nn.Sequential(nn.Linear(2 + 3, 6), nn.Tanh(), nn.Linear(6, 1)), 3).double()
    nn.init.normal_(model.context)
    return model


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_equals_a_hand_written_loop(how):
    """phi = 0, then phi - alpha grad L(phi, theta) for each step."""
    learner, losses = CAVIA(model(), F.mse_loss, inner=SGD(LR), steps=2, vectorize=how), []
    network = learner.model.model
    for support, query in unstack(tasks_of()):
        phi = torch.zeros(3, dtype=torch.float64, requires_grad=True)

        def loss(phi, batch):
            inputs = torch.cat([batch.inputs, phi.expand(len(batch.inputs), 3)], 1)
            return F.mse_loss(call(network, {}, inputs), batch.targets)

        for _ in range(2):
            (slope,) = torch.autograd.grad(loss(phi, support), [phi], create_graph=True)
            phi = phi - LR * slope
        losses.append(loss(phi, query))
    expected, given = torch.stack(losses).mean(), learner(tasks_of())
    assert_close(given, expected)
    assert error(meta_gradient(given, learner), meta_gradient(expected, learner)) < 1e-10


def test_where_the_context_stands_does_not_matter():
    learner, support = CAVIA(model(), F.mse_loss, inner=SGD(LR)), task_of(0).support
    before, adapted = learner(tasks_of()), learner.adapt(support).state_dict()
    nn.init.normal_(learner.model.context)
    assert_close(learner(tasks_of()), before, rtol=0, atol=0)
    assert_close(learner.adapt(support).state_dict(), adapted, rtol=0, atol=0)
    assert learner.adapt(support, steps=0).context.count_nonzero() == 0
    maml = MAML(learner.model, F.mse_loss, inner=SGD(LR), adapt_only="context")
    assert not torch.allclose(maml(tasks_of()), before)
