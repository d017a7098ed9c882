import pytest
import torch
import torch.nn.functional as F
from reference import error, meta_gradient, meta_loss, network, tasks_of
from torch import Tensor
from torch.testing import assert_close

from headstart import MAML, SGD, MetaSGD

HOW = pytest.mark.parametrize("how", ["vmap", "loop"])


@HOW
def test_equals_a_hand_written_loop(how):
    """theta - alpha o grad L, an alpha for every element, some of them negative."""
    learner = MetaSGD(network(), F.mse_loss, lr=0.1, steps=2, vectorize=how)
    torch.manual_seed(1)
    rates = {name: learner.inner.rates[name.replace(".", "/")] for name, _ in learner.model.named_parameters()}
    for rate in rates.values():
        rate.data += 0.2 * torch.randn_like(rate)
    assert any((rate < 0).any() for rate in rates.values())

    def update(params: dict[str, Tensor], grads: dict[str, Tensor], state: dict) -> dict[str, Tensor]:
        return {name: p - rates[name] * grads[name] for name, p in params.items()}

    loss, by_hand = learner(tasks_of()), meta_loss(learner.model, F.mse_loss, tasks_of(), update, 2)
    assert_close(loss, by_hand)
    given, expected = meta_gradient(loss, learner), meta_gradient(by_hand, learner)
    assert error(given, expected) < 1e-10
    assert error(given[-25:], expected[-25:]) < 1e-10  # the rates'


def test_it_begins_as_maml():
    learner, maml = (
        MetaSGD(network(), F.mse_loss, lr=0.1, steps=2),
        MAML(network(), F.mse_loss, inner=SGD(0.1), steps=2),
    )
    assert_close(learner(tasks_of()), maml(tasks_of()))
    given, expected = meta_gradient(learner(tasks_of()), learner.model), meta_gradient(maml(tasks_of()), maml)
    assert error(given, expected) < 1e-12


def test_only_what_adapts_has_a_rate():
    learner = MetaSGD(network(), F.mse_loss, adapt_only="2.*")
    assert {n: tuple(p.shape) for n, p in learner.inner.rates.items()} == {"2/weight": (1, 6), "2/bias": (1,)}
