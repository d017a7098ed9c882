import pytest
import torch
from rl import by_hand
from rl.by_hand import learner_of, of_task
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from headstart.models.policy import Gaussian
from headstart.rl.objectives import Experience, divergence, packed, policy_gradient, surrogate
from headstart.rl.rollout import pooled

DISCRETE = pytest.mark.parametrize("discrete", [False, True], ids=["gaussian", "categorical"])


def acted(discrete: bool) -> tuple[nn.Module, Experience]:
    """A policy and one task's episodes that it made itself, some of which ended early."""
    learner, generator = learner_of(discrete), torch.Generator().manual_seed(1)
    tasks = learner.problem.sample(2, generator)
    params = {name: p.detach() for name, p in learner.policy.named_parameters()}
    seen = pooled(learner.collect(params, tasks, generator, per_task=False))
    experience = of_task(learner.experience(seen), 0)
    assert (~experience.valid).any()
    return learner.policy, experience


def moved(policy: nn.Module, by: float = 0.2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        name: (p + by * torch.randn(p.shape, generator=generator, dtype=p.dtype)).detach().requires_grad_()
        for name, p in policy.named_parameters()
    }


def gradient(loss: Tensor, params: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(params.values()))])


@DISCRETE
@pytest.mark.parametrize("by", [0.0, 0.2])
def test_the_inner_loss_and_its_gradient_step_by_step(discrete, by):
    policy, seen = acted(discrete)
    params, total = moved(policy, by), 0.0
    for row in range(seen.valid.shape[0]):
        for t in range(int(seen.valid[row].sum())):
            log_prob = by_hand.acting(policy, params, seen.observations[row, t]).log_prob(seen.actions[row, t])
            total = total - log_prob * seen.advantages[row, t]
    total = total / seen.valid.sum()
    loss = policy_gradient(policy)(params, seen)
    assert_close(loss, total)
    assert_close(gradient(loss, params), gradient(total, params))


@DISCRETE
def test_the_surrogate_and_its_gradient(discrete):
    policy, seen = acted(discrete)
    params = moved(policy)
    loss, expected = surrogate(policy)(params, seen), by_hand.ratio_loss(policy, params, seen)
    assert_close(loss, expected)
    assert_close(gradient(loss, params), gradient(expected, params))
    assert_close(policy_gradient(policy, "ratio")(params, seen), expected)


@DISCRETE
def test_at_the_policy_that_acted_both_objectives_have_the_policy_gradient(discrete):
    policy, seen = acted(discrete)
    params = dict(policy.named_parameters())
    expected = gradient(by_hand.log_likelihood_loss(policy, params, seen), params)
    assert expected.norm() > 1e-3
    for loss in (surrogate(policy), surrogate(policy, clip=0.2), policy_gradient(policy, "ratio")):
        assert_close(gradient(loss(params, seen), params), expected)
    assert_close(surrogate(policy)(params, seen), -seen.advantages[seen.valid].mean())


class Shift(nn.Module):
    """One parameter, the mean; the deviation is one: `log pi = -(a - w)^2 / 2 + const`."""

    def __init__(self, at: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.double))

    def forward(self, observations: Tensor) -> Gaussian:
        mean = self.w.expand(*observations.shape[:-1], 1)
        return Gaussian(mean, torch.zeros_like(mean))


def shifted(w: float) -> tuple[Experience, Tensor, Tensor]:
    """Episodes of `Shift(w)`; and, of the steps that were taken, actions and advantages."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.tensor([[True, True, True], [True, False, False]])
    actions, advantages = torch.randn(2, 2, 3, generator=generator, dtype=torch.double)
    mean = torch.full((2, 3, 1), w, dtype=torch.double)
    seen = Experience(
        torch.zeros(2, 3, 1, dtype=torch.double),
        actions.unsqueeze(-1),
        advantages * valid,
        valid,
        Gaussian(mean, torch.zeros_like(mean)),
    )
    return seen, actions[valid], advantages[valid]


def test_the_objectives_differ_in_their_second_derivative_as_in_closed_form():
    w = 0.3
    seen, a, gain = shifted(w)
    params = {"w": torch.tensor(w, dtype=torch.double, requires_grad=True)}
    first, second = {}, {}
    for objective in ("log-likelihood", "ratio"):
        loss = policy_gradient(Shift(), objective)(params, seen)
        (first[objective],) = torch.autograd.grad(loss, params["w"], create_graph=True)
        (second[objective],) = torch.autograd.grad(first[objective], params["w"])
    for slope in first.values():
        assert_close(slope, -(gain * (a - w)).mean())
    assert_close(second["log-likelihood"], gain.mean())
    assert_close(second["ratio"], -(gain * ((a - w).square() - 1)).mean())


def test_away_from_the_policy_that_acted_the_ratio_is_in_closed_form():
    w, now = 0.3, -0.2
    seen, a, gain = shifted(w)
    ratio = (-(a - now).square() / 2 + (a - w).square() / 2).exp()
    params = {"w": torch.tensor(now, dtype=torch.double)}
    assert_close(surrogate(Shift())(params, seen), -(ratio * gain).mean())
    assert_close(divergence(Shift())(params, seen), torch.tensor((w - now) ** 2 / 2, dtype=torch.double))


@DISCRETE
def test_the_clipped_surrogate(discrete):
    policy, seen = acted(discrete)
    params = moved(policy, 0.5)
    ratio = by_hand.ratios(policy, params, seen)
    assert ratio.min() < 0.9
    assert ratio.max() > 1.1
    loss, expected = surrogate(policy, clip=0.1)(params, seen), by_hand.clipped_loss(policy, params, seen, 0.1)
    assert_close(loss, expected)
    assert_close(gradient(loss, params), gradient(expected, params))
    assert loss > surrogate(policy)(params, seen)
    assert_close(surrogate(policy, clip=1e6)(params, seen), surrogate(policy)(params, seen))


def test_clipping_is_one_sided():
    """A step whose ratio has gone the way its advantage wants pulls no more; one that went the wrong way still does."""
    seen, _, _ = shifted(0.0)
    for sign in (1.0, -1.0):
        one = seen._replace(advantages=sign * seen.valid.double(), actions=torch.full_like(seen.actions, 2.0))
        for now in (0.5, -0.5):  # the ratio at an action of 2 is above 1, and below
            params = {"w": torch.tensor(now, dtype=torch.double, requires_grad=True)}
            slope = float(gradient(surrogate(Shift(), clip=0.2)(params, one), params))
            assert (slope == 0) == (sign * now > 0)


@DISCRETE
def test_divergence_is_from_the_policy_that_acted(discrete):
    policy, seen = acted(discrete)
    params = moved(policy)
    given, expected = divergence(policy)(params, seen), by_hand.kl(policy, params, seen)
    assert_close(given, expected)
    assert_close(gradient(given, params), gradient(expected, params))
    assert_close(divergence(policy)(moved(policy, 0.0), seen), torch.zeros((), dtype=torch.double), atol=1e-12, rtol=0)


@DISCRETE
def test_what_stands_after_the_end_of_an_episode_does_not_count(discrete):
    policy, seen = acted(discrete)
    over = ~seen.valid
    last = seen.valid.shape[1] - 1
    other = seen._replace(
        observations=torch.where(over.unsqueeze(-1), 3.0, seen.observations),
        actions=torch.where(over if discrete else over.unsqueeze(-1), 2, seen.actions),
        advantages=torch.where(over, 7.0, seen.advantages),
    )
    longer = Experience(*(torch.cat([leaf, leaf[:, last:]], 1) for leaf in other[:4]), behaviour=seen.behaviour)
    longer.valid[:, -1] = False
    behaviour = type(seen.behaviour)(*(torch.cat([leaf, leaf[:, last:]], 1) for leaf in seen.behaviour))
    longer = longer._replace(behaviour=behaviour)
    params = moved(policy)
    for fn in (policy_gradient(policy), surrogate(policy), surrogate(policy, 0.1), divergence(policy)):
        expected = fn(params, seen)
        for same in (other, longer):
            assert_close(fn(params, same), expected)
            assert_close(gradient(fn(params, same), params), gradient(fn(params, seen), params))


@DISCRETE
def test_packing_keeps_the_steps_taken_in_their_order_and_every_loss(discrete):
    policy, seen = acted(discrete)
    params = moved(policy)
    both = pytree.tree_map(lambda leaf: leaf.unsqueeze(0), seen)
    row = packed(both)
    assert row.valid.shape == (1, 1, int(seen.valid.sum()))
    assert row.valid.all()
    assert_close(row.advantages[0, 0], seen.advantages[seen.valid])
    one = pytree.tree_map(lambda leaf: leaf[0], row)
    for loss in (policy_gradient(policy), surrogate(policy), divergence(policy)):
        assert_close(loss(params, one), loss(params, seen))
    whole = both._replace(valid=torch.ones_like(both.valid))
    assert packed(whole) is whole
