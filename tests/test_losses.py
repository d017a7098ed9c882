import functools
import operator

import pytest
import torch
import torch.nn.functional as F
from reference import error, flat
from torch import Tensor, nn
from torch.testing import assert_close

from headstart.losses import accuracy, criterion_with_params, squared_error, takes_params


class Penalised(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor, params: dict[str, Tensor]) -> Tensor:
        return penalised(outputs, targets, params)


def penalised(outputs: Tensor, targets: Tensor, params: dict[str, Tensor], weight: float = 1.0) -> Tensor:
    return F.mse_loss(outputs, targets) + weight * sum(p.square().sum() for p in params.values())


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (penalised, True),
        (functools.partial(penalised, weight=2.0), True),
        (Penalised(), True),
        (F.mse_loss, False),
        (nn.CrossEntropyLoss(), False),
        (operator.mul, False),
        (torch.dot, False),  # a builtin without a signature
    ],
    ids=str,
)
def test_who_is_given_the_parameters(criterion, expected):
    assert takes_params(criterion) is expected
    outputs, targets, params = torch.ones(3), torch.arange(3.0), {"w": torch.tensor([2.0])}
    if not isinstance(criterion, nn.CrossEntropyLoss):
        given = criterion_with_params(criterion)(outputs, targets, params)
        assert_close(given, criterion(outputs, targets, params) if expected else criterion(outputs, targets))


def test_a_loss_is_as_exact_as_a_module():
    """A norm called in the loss, with a scale that adapts, is substituted there as it is in a module."""

    def criterion(outputs: Tensor, targets: Tensor, params: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(F.layer_norm(outputs, [3], params["scale"]), targets)

    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(2, 4, 5, 3, dtype=torch.float64, generator=generator)
    params = {"weight": torch.randn(3, 3, dtype=torch.float64, generator=generator), "scale": torch.ones(3).double()}

    def meta_gradient(loss, how) -> Tensor:
        def task(leaves, x, y):
            step = torch.func.grad(lambda p: loss(x @ p["weight"], y, p))(leaves)
            moved = {n: p - 0.5 * step[n] for n, p in leaves.items()}
            return loss(x @ moved["weight"], y, moved)

        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        over = torch.vmap(functools.partial(task, leaves)) if how == "vmap" else None
        total = over(inputs, targets).sum() if over else sum(map(functools.partial(task, leaves), inputs, targets))
        return flat(torch.autograd.grad(total, list(leaves.values())))

    expected = meta_gradient(criterion, "loop")
    assert error(meta_gradient(criterion_with_params(criterion), "vmap"), expected) < 1e-12
    assert error(meta_gradient(criterion, "vmap"), expected) > 1e-4  # which the native one, vectorised, is not


def test_accuracy_by_hand():
    scores = torch.tensor([[[0.1, 0.9], [0.8, 0.2]], [[0.3, 0.7], [0.4, 0.6]]])
    assert_close(accuracy(scores, torch.tensor([[1, 1], [1, 1]])), torch.tensor([0.5, 1.0]))


def test_squared_error_by_hand():
    outputs, targets = torch.tensor([[[1.0], [3.0]], [[0.0], [2.0]]]), torch.tensor([[[0.0], [1.0]], [[0.0], [2.0]]])
    assert_close(squared_error(outputs, targets), torch.tensor([2.5, 0.0]))
    assert_close(squared_error(outputs[0], targets[0]), F.mse_loss(outputs[0], targets[0]))
