import pytest
import torch
import torch.nn.functional as F
from reference import error, meta_gradient, meta_loss, tasks_of
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, MetaCurvature

LR = 0.1


class Scaled(nn.Module):
    """A parameter without axes."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


def convolutional() -> nn.Sequential:
    """Tensors of zero to four axes."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv1d(1, 3, 2, padding=1), nn.Tanh(), Scaled(), nn.Unflatten(2, (1, 3)))
    return nn.Sequential(nn.Unflatten(1, (1, 2)), body, nn.Conv2d(3, 2, (1, 2)), nn.Flatten(), nn.Linear(4, 1)).double()


def transformed(grad: Tensor, matrices: list[Tensor]) -> Tensor:
    """Equation 9: the gradient times a matrix along each axis, the kernel's positions being one axis."""
    if grad.dim() < 2:
        return torch.einsum("ij,j->i", matrices[0], grad.reshape(-1)).reshape(grad.shape)
    if grad.dim() == 2:
        return torch.einsum("io,jp,op->ij", *matrices, grad)
    return torch.einsum("io,jp,kq,opq->ijk", *matrices, grad.flatten(2)).reshape(grad.shape)


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_equals_a_hand_written_loop(how):
    learner = MetaCurvature(convolutional(), F.mse_loss, lr=LR, steps=2, vectorize=how)
    torch.manual_seed(1)
    for matrix in learner.inner.parameters():
        matrix.data += 0.3 * torch.randn_like(matrix)
    matrices = {
        name: [axis[name.replace(".", "/")] for axis in learner.inner.axes if name.replace(".", "/") in axis]
        for name, _ in learner.model.named_parameters()
    }
    assert sorted({len(found) for found in matrices.values()}) == [1, 2, 3]
    assert sum(map(len, matrices.values())) == len(list(learner.inner.parameters()))

    def update(params: dict[str, Tensor], grads: dict[str, Tensor], state: dict) -> dict[str, Tensor]:
        return {name: p - LR * transformed(grads[name], matrices[name]) for name, p in params.items()}

    given, expected = learner(tasks_of()), meta_loss(learner.model, F.mse_loss, tasks_of(), update, 2)
    assert_close(given, expected)
    own = sum(p.numel() for p in learner.inner.parameters())
    given, expected = meta_gradient(given, learner), meta_gradient(expected, learner)
    assert error(given, expected) < 1e-10
    assert error(given[-own:], expected[-own:]) < 1e-10


def test_it_begins_as_maml():
    learner = MetaCurvature(convolutional(), F.mse_loss, lr=LR, steps=2)
    maml = MAML(convolutional(), F.mse_loss, inner=SGD(LR), steps=2)
    given, expected = meta_gradient(learner(tasks_of()), learner.model), meta_gradient(maml(tasks_of()), maml)
    assert error(given, expected) < 1e-12
