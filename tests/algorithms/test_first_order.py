import pytest
import torch
import torch.nn.functional as F
from algorithms.quadratic import quadratic, regression
from reference import error, flat, meta_gradient, tasks_of, unstack

from headstart import MAML, SGD

LR = 0.1


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [True, False])
def test_closed_form_on_a_quadratic(first_order, steps):
    """First order: the query gradient at the adapted parameters; second: times what each step multiplied by."""
    learner, expected = MAML(regression(), F.mse_loss, inner=SGD(LR), steps=steps, first_order=first_order), []
    for support, query in unstack(tasks_of()):
        inner = quadratic(support)
        adapted = inner.descended(flat(list(learner.parameters())).detach(), LR, steps)
        way = torch.linalg.matrix_power(inner.contraction(LR), 0 if first_order else steps)
        expected.append(way @ quadratic(query).gradient(adapted))
    assert error(meta_gradient(learner(tasks_of()), learner), torch.stack(expected).mean(0)) < 1e-10
