from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reference import error, meta_gradient, meta_loss, network, tasks_of
from torch import Tensor
from torch.testing import assert_close

from headstart import MAML, SGD, MAMLPlusPlus, MetaSGD

HOW = pytest.mark.parametrize("how", ["vmap", "loop"])


@HOW
def test_equals_a_hand_written_loop(how):
    """theta - alpha o grad L, an alpha for every element, some of them negative."""
    learner = MetaSGD(network(), F.mse_loss, lr=0.1, steps=2, vectorize=how)
    torch.manual_seed(1)
    multiples = {name: learner.inner.multiples[name.replace(".", "/")] for name, _ in learner.model.named_parameters()}
    for rate in multiples.values():
        rate.data += 0.02 * torch.randn_like(rate)
    assert any((rate < 0).any() for rate in multiples.values())

    def update(params: dict[str, Tensor], grads: dict[str, Tensor], state: dict) -> dict[str, Tensor]:
        return {name: p - 10 * multiples[name] * grads[name] for name, p in params.items()}

    loss, by_hand = learner(tasks_of()), meta_loss(learner.model, F.mse_loss, tasks_of(), update, 2)
    assert_close(loss, by_hand)
    given, expected = meta_gradient(loss, learner), meta_gradient(by_hand, learner)
    assert error(given, expected) < 1e-10
    assert error(given[-25:], expected[-25:]) < 1e-10  # the rates'


@pytest.mark.parametrize("kind", [MetaSGD, partial(MAMLPlusPlus, multi_step_loss=0)], ids=["meta-sgd", "maml++"])
def test_a_sum_learns_its_rates_as_a_mean_does(kind):
    """The same rates in other units: the gradient is a multiple, which Adam takes out again."""

    def summed(outputs: Tensor, targets: Tensor) -> Tensor:
        return 20 * F.mse_loss(outputs, targets)

    mean, total = kind(network(), F.mse_loss, lr=0.1, steps=2), kind(network(), summed, lr=0.1 / 20, steps=2)
    assert_close(total(tasks_of()), 20 * mean(tasks_of()))
    given, expected = (meta_gradient(learner(tasks_of()), learner.inner) for learner in (total, mean))
    assert expected.norm() > 0
    assert error(given, 20 * expected) < 1e-10


def test_rates_are_what_was_learned_times_their_unit():
    inner = MetaSGD(network(), F.mse_loss, lr=2.0).inner
    assert_close(inner.rates()["0.bias"], torch.full_like(inner.multiples["0/bias"], 2.0))
    inner.multiples["0/bias"].data *= 1.1  # a tenth, as Adam's first step of 0.001
    assert_close(inner.rates()["0.bias"], torch.full_like(inner.multiples["0/bias"], 2.2))


@pytest.mark.parametrize("kind", [MetaSGD, MAMLPlusPlus])
def test_the_first_step_size_is_positive(kind):
    with pytest.raises(ValueError, match="start from lr, which must be positive, got 0"):
        kind(network(), F.mse_loss, lr=0)


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
    assert {n: tuple(p.shape) for n, p in learner.inner.rates().items()} == {"2.weight": (1, 6), "2.bias": (1,)}
