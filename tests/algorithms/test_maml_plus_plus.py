import copy

import pytest
import torch
import torch.nn.functional as F
from reference import call, error, meta_gradient, network, normed, tasks_of, unstack
from torch import Tensor
from torch.testing import assert_close

from headstart import MAML, SGD, MAMLPlusPlus, Task
from headstart.models import MLP

LR, STEPS = 0.1, 3
HOW = pytest.mark.parametrize("how", ["vmap", "loop"])


def moved(**settings) -> MAMLPlusPlus:
    learner = MAMLPlusPlus(normed(), F.mse_loss, lr=LR, steps=STEPS, norm="batch", **settings)
    torch.manual_seed(1)
    for parameter in (*learner.inner.parameters(), *learner.norms.parameters()):
        parameter.data += 0.1 * torch.rand_like(parameter)
    return learner


def by_hand(learner: MAMLPlusPlus, tasks: Task, weights: list[float], first_order: bool = False) -> Tensor:
    """The weighted query losses after each step, with rates and norms of that step."""
    model, losses = learner.model, []
    scale, shift = (learner.norms[f"0/1/{name}"] for name in ("weight", "bias"))
    rates = {name: LR / 0.1 * multiple for name, multiple in learner.inner.multiples.items()}
    for support, query in unstack(tasks):
        params = {n: p for n, p in model.named_parameters() if not n.startswith("0.1.")}
        for step in range(STEPS):
            norms = {"0.1.weight": scale[step], "0.1.bias": shift[step]}
            loss = F.mse_loss(call(model, params | norms, support.inputs), support.targets)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
            if first_order:
                grads = [g.detach() for g in grads]
            params = {
                n: p - rates[n.replace(".", "/")][step] * g for (n, p), g in zip(params.items(), grads, strict=True)
            }
            losses.append(weights[step] * F.mse_loss(call(model, params | norms, query.inputs), query.targets))
    return torch.stack(losses).sum() / len(unstack(tasks))


class TestMetaGradient:
    @HOW
    @pytest.mark.parametrize("updates", [0, 4, 10])
    def test_equals_a_hand_written_loop(self, updates, how):
        learner = moved(multi_step_loss=10, vectorize=how)
        learner.updates += updates
        given, expected = learner(tasks_of()), by_hand(learner, tasks_of(), annealed(updates, 10))
        assert_close(given, expected, rtol=1e-6, atol=0)  # the weights are in single precision
        given, expected = meta_gradient(given, learner), meta_gradient(expected, learner)
        assert error(given, expected) < 1e-6
        own = sum(p.numel() for p in (*learner.inner.parameters(), *learner.norms.parameters()))
        assert error(given[-own:], expected[-own:]) < 1e-6

    @HOW
    def test_without_multi_step_loss_it_is_that_after_the_last_step(self, how):
        learner = moved(vectorize=how)
        given, expected = learner(tasks_of()), by_hand(learner, tasks_of(), [0.0, 0.0, 1.0])
        assert error(meta_gradient(given, learner), meta_gradient(expected, learner)) < 1e-10

    def test_with_nothing_switched_on_it_is_maml(self):
        learner = MAMLPlusPlus(normed(), F.mse_loss, lr=LR, steps=STEPS, step_rates=False, step_norms=False)
        maml = MAML(normed(), F.mse_loss, inner=SGD(LR), steps=STEPS)
        assert_close(learner(tasks_of()), maml(tasks_of()), rtol=0, atol=0)
        assert [n for n, _ in learner.named_parameters()] == [n for n, _ in maml.named_parameters()]

    def test_orders_follow_the_number_of_updates(self):
        """Two of first order, then second; evaluations are not counted."""
        learner = moved(first_order_until=2)
        learner.eval()(tasks_of()), learner.train()
        for first_order in (True, True, False, False):
            assert learner.first_order is first_order
            given = meta_gradient(learner(tasks_of()), learner)
            weights = [0.0, 0.0, 1.0]
            expected, other = (
                meta_gradient(by_hand(learner, tasks_of(), weights, order), learner)
                for order in (first_order, not first_order)
            )
            assert error(given, expected) < 1e-10
            assert error(given, other) > 1e-2
        assert learner.updates == 4


def annealed(updates: int, over: int) -> list[float]:
    """Equal shares, of which all but the last go down along a line, to 3 percent of a share."""
    others = max((1 - updates / over) / STEPS, 0.03 / STEPS)
    return [others] * (STEPS - 1) + [1 - (STEPS - 1) * others]


@pytest.mark.parametrize(
    ("updates", "last"), [(0, 1 / 3), (1, 0.4), (5, 2 / 3), (9, 1 - 2 / 30), (10, 0.98), (99, 0.98)]
)
def test_weights_are_annealed_to_a_floor(updates, last):
    learner = MAMLPlusPlus(network(), F.mse_loss, steps=STEPS, multi_step_loss=10)
    for _ in range(updates):
        learner.keep_statistics({})
    assert_close(learner.weights().tolist(), annealed(updates, 10), rtol=1e-6, atol=1e-7)
    assert learner.weights()[-1].item() == pytest.approx(last, rel=1e-6)
    assert learner.weights().sum().item() == pytest.approx(1, rel=1e-6)


def test_every_step_has_its_own_norm():
    learner = moved()
    (support, query), norms = unstack(tasks_of())[0], learner.norms
    for steps, row in ((0, 0), (1, 0), (2, 1), (3, 2), (5, 2)):  # beyond those trained with: the last one's
        adapted = learner.adapt(support, steps)
        assert torch.equal(adapted[0][1].weight, norms["0/1/weight"][row])
        assert torch.equal(adapted[0][1].bias, norms["0/1/bias"][row])
        predicted = learner.predict([Task(support, query)], steps)[0, -1]
        assert_close(adapted(query.inputs).detach(), predicted)


@pytest.mark.parametrize("normalizer", ["batch", "task-layer"])
def test_the_shifts_of_batch_norms_are_kept_by_step(normalizer):
    """The paper's have a shift alone. How TaskNorm pools its statistics is the same at every step."""
    learner = MAMLPlusPlus(MLP(2, 1, (4,), normalizer=normalizer).double(), F.mse_loss, steps=2)
    (support, query) = unstack(tasks_of())[0]
    assert {n.partition(".")[2]: p.shape[1:] for n, p in learner.norms.named_parameters(prefix="norms")} == {
        n.replace(".", "/"): p.shape for n, p in learner.model.named_parameters() if n == "body.1.bias"
    }
    adapted = learner.adapt(support)
    assert_close(adapted(query.inputs).detach(), learner.predict([Task(support, query)])[0, -1])


def test_a_loaded_copy_is_at_its_own_place_in_the_schedules():
    learner = MAMLPlusPlus(network(), F.mse_loss, first_order_until=2)
    twin = copy.deepcopy(learner)
    twin.load_state_dict({**learner.state_dict(), "updates": torch.tensor(2.0)})
    assert (learner.first_order, twin.first_order) == (True, False)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"multi_step_loss": -1}, "multi_step_loss is a number of meta-updates, 0 or more, got -1"),
        ({"first_order_until": -1}, "first_order_until is a number of meta-updates, 0 or more, got -1"),
        ({"adapt_only": "0.1.*"}, "adapt_only leaves nothing but parameters of norms"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        MAMLPlusPlus(normed(), F.mse_loss, **settings)


def test_after_the_annealing_and_in_evaluation_the_last_loss_counts_alone():
    tasks = tasks_of()
    learner = MAMLPlusPlus(network(), F.mse_loss, lr=0.1, steps=3, multi_step_loss=2, step_norms=False)
    plain = MAML(network(), F.mse_loss, inner=SGD(0.1), steps=3)
    expected = plain(tasks)
    assert_close(learner.eval()(tasks), expected)
    learner.train()
    for annealing in (True, True, False, False):
        assert learner.annealing is annealing
        assert torch.isclose(learner(tasks), expected) != annealing  # each call counts a meta-update
