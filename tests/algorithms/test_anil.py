import pytest
import torch.nn.functional as F
from reference import error, meta_gradient, meta_loss, network, tasks_of
from torch import nn
from torch.nn.utils import parametrizations

from headstart import ANIL, BOIL, SGD

LR = 0.3
BODY, HEAD = ["0.weight", "0.bias"], ["2.weight", "2.bias"]


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize(("cls", "moving"), [(ANIL, HEAD), (BOIL, BODY)])
def test_equals_a_hand_written_loop(cls, moving, how):
    """One half moves within a task, and both are meta-learned."""
    learner, model = cls(network(), F.mse_loss, inner=SGD(LR), steps=2, vectorize=how), network()

    def update(params, grads, state):
        return {n: p - LR * grads[n] if n in moving else p for n, p in params.items()}

    given = meta_gradient(learner(tasks_of()), learner)
    expected = meta_gradient(meta_loss(model, F.mse_loss, tasks_of(), update, 2), model)
    assert error(given, expected) < 1e-10
    assert learner.adapted_names == tuple(moving)


@pytest.mark.parametrize("cls", [ANIL, BOIL])
def test_the_head_may_be_named(cls):
    head = cls(network(), F.mse_loss, head=["0.*", "2.bias"]).adapted_names
    assert head == ((*BODY, "2.bias") if cls is ANIL else ("2.weight",))


def test_of_the_body_a_part_may_adapt():
    assert BOIL(network(), F.mse_loss, adapt_only=["*.weight"]).adapted_names == ("0.weight",)


def test_a_parametrised_head_is_all_of_it():
    model = nn.Sequential(nn.Linear(2, 4), parametrizations.weight_norm(nn.Linear(4, 1)))
    assert ANIL(model, F.mse_loss).adapted_names == tuple(n for n, _ in model.named_parameters() if n.startswith("1."))
    assert BOIL(model, F.mse_loss).adapted_names == ("0.weight", "0.bias")


@pytest.mark.parametrize("cls", [ANIL, BOIL])
def test_a_frozen_head_is_refused(cls):
    model = network()
    model[2].requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match="The last linear layer, '2', has no trainable parameters of its own"):
        cls(model, F.mse_loss)
