import copy

import pytest
import torch
from rl import by_hand
from rl.by_hand import Line, adapted, explored, learner_of, like, of_task, small_policy
from torch import nn
from torch.testing import assert_close

from headstart import SGD, Momentum
from headstart.models.policy import CategoricalPolicy, GaussianPolicy
from headstart.rl.advantage import advantages
from headstart.rl.envs import FourStates, Navigation
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.objectives import divergence, surrogate

CASES = {
    "gaussian": {},
    "categorical": {"discrete": True},
    "two steps": {"steps": 2},
    "ratio, two steps": {"objective": "ratio", "steps": 2},
    "deviation fixed": {"adapt_only": ["*", "!log_std"]},
    "context only": {"context": 2, "adapt_only": "context", "steps": 2},
}


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def case(name: str) -> MAMLRL:
    return learner_of(**CASES[name])


def assert_same(a, b, **tolerances):
    assert set(a) == set(b)
    for name in a:
        assert_close(a[name], b[name], **tolerances)


@pytest.mark.parametrize("name", CASES)
def test_adapted_is_gradient_descent_on_the_policy_gradient_spelled_out(name):
    learner = case(name)
    theta = dict(learner.policy.named_parameters())
    episodes = explored(learner)
    assert len(episodes) == learner.steps + 1
    for task in range(3):
        support = [of_task(e, task) for e in episodes[:-1]]
        given, expected = learner.adapted(support), adapted(learner, theta, support, 0.3)
        assert_same(given, expected)
        for p in theta:
            moved = not torch.equal(given[p], theta[p])
            assert moved == (p in learner.adapted_names)


def test_adapted_starts_from_what_it_is_given():
    learner = case("gaussian")
    support = [of_task(explored(learner)[0], 0)]
    other = {name: p.detach() + 0.1 for name, p in learner.policy.named_parameters()}
    other = {name: p.requires_grad_() for name, p in other.items()}
    assert_same(learner.adapted(support, other), adapted(learner, other, support, 0.3))
    assert_same(learner.adapted([], other), other)


@pytest.mark.parametrize("name", CASES)
def test_a_trajectory_is_adaptation_replayed_on_its_episodes(name):
    learner = case(name)
    path = list(learner.trajectory(learner.problem.sample(3, generator()), generator=generator(2)))
    assert len(path) == learner.steps + 1
    for step, (params, _) in enumerate(path):
        support = [learner.experience(seen) for _, seen in path[:step]]
        for task in range(3):
            replayed = learner.adapted([of_task(e, task) for e in support])
            assert_same({n: p[task] for n, p in params.items()}, replayed)


def test_each_step_of_a_trajectory_acts_by_its_own_parameters():
    learner = learner_of(steps=2)
    tasks = learner.problem.sample(3, generator())
    for params, seen in learner.trajectory(tasks, generator=generator(2)):
        for task in range(3):
            own = {name: p[task] for name, p in params.items()}
            with torch.no_grad():
                expected = torch.func.functional_call(learner.policy, own, (seen.observations[task],))
            for kept, now in zip(seen.behaviour, expected, strict=True):
                assert_close(kept[task][seen.valid[task]], now[seen.valid[task]])


def test_the_rate_of_each_step_in_evaluation():
    learner, tasks = learner_of(), torch.tensor([[0.5], [-1.0]], dtype=torch.double)
    rates = [0.5, 0.25, 0.0]
    path = list(learner.trajectory(tasks, 3, generator=generator(), inners=[SGD(rate) for rate in rates]))
    assert len(path) == 4
    theta = dict(learner.policy.named_parameters())
    for task in range(2):
        expected = theta
        for (_, seen), (after, _), rate in zip(path, path[1:], rates, strict=False):
            expected = adapted(learner, expected, [of_task(learner.experience(seen), task)], rate)
            assert_same({n: p[task] for n, p in after.items()}, expected)


def test_an_inner_optimiser_keeps_its_state_from_step_to_step():
    learner = learner_of(inner=Momentum(0.2, momentum=0.9), steps=3)
    path = list(learner.trajectory(learner.problem.sample(2, generator()), generator=generator()))
    support = [learner.experience(seen) for _, seen in path[:-1]]
    for task in range(2):
        theta = {n: p.detach().requires_grad_() for n, p in learner.policy.named_parameters()}
        velocity = dict.fromkeys(theta, 0.0)
        for episodes in support:
            loss = by_hand.log_likelihood_loss(learner.policy, theta, of_task(episodes, task))
            for n, g in zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True):
                velocity[n] = 0.9 * velocity[n] + g
            theta = {n: (p - 0.2 * velocity[n]).detach().requires_grad_() for n, p in theta.items()}
        assert_same({n: p[task] for n, p in path[-1][0].items()}, theta)


def test_numbers_of_steps_and_rollouts_may_be_others_than_in_training():
    learner = learner_of()
    shapes = [
        seen.rewards.shape[:2]
        for _, seen in learner.trajectory(learner.problem.sample(5, generator()), 2, generator=generator(), rollouts=7)
    ]
    assert shapes == [(5, 7)] * 3
    assert len(list(learner.trajectory(learner.problem.sample(5, generator()), 0, generator=generator()))) == 1


def test_exploring_gives_the_episodes_of_a_trajectory_with_their_advantages():
    learner = learner_of(steps=2, discount=0.9, gae_lambda=0.8)
    tasks = learner.problem.sample(3, generator())
    episodes, seen = learner.explore(tasks, generator(4))
    path = [rollouts for _, rollouts in learner.trajectory(tasks, generator=generator(4))]
    assert len(episodes) == len(seen) == len(path) == 3
    for experience, kept, rollouts in zip(episodes, seen, path, strict=True):
        assert torch.equal(kept.rewards, rollouts.rewards)
        for task in range(3):  # the steps taken, in their order
            mine, own = experience.valid[task], rollouts.valid[task]
            assert_close(experience.advantages[task][mine], advantages(rollouts, 0.9, 0.8)[task][own])
            assert torch.equal(experience.observations[task][mine], rollouts.observations[task][own])
            assert torch.equal(experience.actions[task][mine], rollouts.actions[task][own])
            assert mine.sum() == own.sum()


def test_without_steps_all_tasks_are_one():
    learner = learner_of(steps=0)
    tasks = learner.problem.sample(3, generator())
    (experience,), (seen,) = learner.explore(tasks, generator(4))
    assert seen.valid.shape[:2] == (1, 12)
    taken = experience.advantages[experience.valid]
    assert abs(taken.mean()) < 1e-9
    assert_close(taken.std(correction=0), torch.ones((), dtype=torch.double), atol=1e-6, rtol=0)
    assert_close(taken, advantages(seen, 0.99, 1.0)[seen.valid])
    per_task = [advantages(seen, 0.99, 1.0)[0, 4 * i : 4 * i + 4] for i in range(3)]
    own = [seen.valid[0, 4 * i : 4 * i + 4] for i in range(3)]
    assert max(abs(a[v].mean()) for a, v in zip(per_task, own, strict=True)) > 0.05  # not each task by itself
    # and every task was its own: the goals are in the rewards
    position = seen.observations[0, :, 1:, 0]
    goal = tasks.repeat_interleave(4, 0)
    went_on = seen.valid[0, :, 1:]
    assert_close(seen.rewards[0, :, :-1][went_on], -(position - goal).abs()[went_on])
    expected = by_hand.ratio_loss(learner.policy, dict(learner.policy.named_parameters()), of_task(experience, 0))
    assert_close(learner.losses(surrogate(learner.policy), [experience]), expected.unsqueeze(0))


@pytest.mark.parametrize("name", CASES)
def test_losses_after_adaptation_and_their_gradient(name):
    learner = case(name)
    episodes = explored(learner)
    losses = learner.losses(surrogate(learner.policy), episodes)
    assert losses.shape == (3,)
    assert_close(losses.mean(), by_hand.after_adaptation(learner, by_hand.ratio_loss, episodes))
    grads = torch.autograd.grad(losses.mean(), list(learner.policy.parameters()))
    expected = like(learner, by_hand.meta_gradient(learner, episodes))
    for (name_, g), given in zip(expected.items(), grads, strict=True):
        assert_close(given, g, msg=name_)


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_the_chunk_size_does_not_matter(chunk_size):
    whole, chunked = learner_of(steps=2), learner_of(steps=2, chunk_size=chunk_size)
    results = []
    for learner in (whole, chunked):
        episodes = explored(learner, tasks=5)
        losses = learner.losses(surrogate(learner.policy), episodes)
        grads = torch.autograd.grad(losses.mean(), list(learner.policy.parameters()))
        kls = learner.losses(divergence(learner.policy), episodes)
        results.append([losses, kls, *grads])
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", CASES)
def test_adapt_gives_a_module_and_leaves_the_learner_as_it_was(name):
    learner = case(name)
    before = copy.deepcopy(learner.state_dict())
    task = learner.problem.sample(1, generator())[0]
    policy = learner.adapt(task, 2, generator=generator(3), rollouts=6)
    assert type(policy) is type(learner.policy)
    *_, (params, _) = learner.trajectory(task.unsqueeze(0), 2, generator=generator(3), rollouts=6)
    assert_same(dict(policy.named_parameters()), {n: p[0] for n, p in params.items()}, check_stride=False)
    assert any(not torch.equal(p, before[f"policy.{n}"]) for n, p in policy.named_parameters())
    for p_name, p in learner.state_dict().items():
        assert torch.equal(p, before[p_name])
    assert all(p.grad is None for p in learner.parameters())
    for p in policy.parameters():
        assert p.is_leaf
        assert p.requires_grad
        p.data.zero_()
    assert all(p.any() for p in before.values() if p.numel() > 2)
    for p_name, p in learner.state_dict().items():
        assert torch.equal(p, before[p_name])


def test_parameters_that_take_no_gradient_stay():
    policy = small_policy()
    policy.log_std.requires_grad_(False)
    learner = MAMLRL(policy, Line(), inner=SGD(0.3), rollouts=3)
    assert "log_std" not in learner.adapted_names
    *_, (params, _) = learner.trajectory(learner.problem.sample(2, generator()), generator=generator())
    assert_close(params["log_std"], policy.log_std.expand(2, 1))


@pytest.mark.parametrize("kind", [GaussianPolicy, CategoricalPolicy])
def test_single_precision_and_the_papers_network(kind):
    policy = kind(2, 3 if kind is CategoricalPolicy else 1)
    learner = MAMLRL(policy, Line(kind is CategoricalPolicy, dtype=torch.float32), inner=SGD(0.1), rollouts=4)
    *_, (params, seen) = learner.trajectory(learner.problem.sample(3, generator()), generator=generator())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in params.values())
    assert seen.rewards.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": -1}, "steps must be 0 or more .* got -1"),
        ({"rollouts": 0}, "rollouts at least 1, got 1 and 0"),
        ({"discount": 1.1}, r"discount and gae_lambda must lie in \[0, 1\], got 1.1"),
        ({"gae_lambda": -0.1}, r"discount and gae_lambda must lie in \[0, 1\], got 0.99 and -0.1"),
        ({"objective": "reward"}, "objective must be one of log-likelihood, ratio, got 'reward'"),
        ({"adapt_only": "contxt"}, "contxt"),
        ({"adapt_only": ["*", "!*"]}, "leave nothing to adapt"),
    ],
)
def test_settings_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        learner_of(**settings)


@pytest.mark.parametrize(
    ("problem", "policy", "said"),
    [
        (FourStates, GaussianPolicy(9, 4), r"not those of FourStates, one of 4 choices: .*CategoricalPolicy\("),
        (FourStates, CategoricalPolicy(9, 5), "not those of FourStates, one of 4 choices"),
        (Navigation, CategoricalPolicy(2, 2), r"not those of Navigation, 2 numbers: .*GaussianPolicy\("),
        (Navigation, GaussianPolicy(2, 1), "not those of Navigation, 2 numbers"),
        (Navigation, GaussianPolicy(3, 2), "does not take the 2 numbers that Navigation lets it observe"),
    ],
)
def test_a_policy_for_something_else_is_refused(problem, policy, said):
    with pytest.raises(ValueError, match=said):
        MAMLRL(policy, problem())


def test_batch_norm_is_refused():
    policy = nn.Sequential(nn.BatchNorm1d(2), small_policy())
    with pytest.raises(ValueError, match="must not have batch norm"):
        MAMLRL(policy, Line())


def test_too_few_inner_optimisers_are_refused():
    learner = learner_of()
    with pytest.raises(ValueError, match="for each of 3 steps, got 2"):
        list(learner.trajectory(torch.ones(1, 1).double(), 3, generator=generator(), inners=[SGD(0.1)] * 2))


def test_a_budget_of_steps_asks_for_no_more_environments_than_are_missing():
    class CloseBy(Navigation):
        def __init__(self):
            super().__init__(horizon=10)
            self.sizes: list[tuple[int, int]] = []

        def environments(self, num_tasks, rollouts):
            self.sizes.append((num_tasks, rollouts))
            return super().environments(num_tasks, rollouts)

    torch.manual_seed(0)
    problem, policy = CloseBy(), GaussianPolicy(2, 2, hidden=(4,))
    learner = MAMLRL(policy, problem, rollouts=20, budget="steps")
    torch.nn.init.constant_(policy.log_std, -1.5)  # small steps: one goal is reached now and then, the other never
    tasks = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    own = {name: p.detach().expand(2, *p.shape) for name, p in policy.named_parameters()}
    seen = learner.collect(own, tasks, torch.Generator().manual_seed(0))
    steps = seen.valid.sum((1, 2))
    assert int(steps[1]) == 200 <= int(steps[0]) < 210
    assert int(seen.present[0].sum()) > 20 == int(seen.present[1].sum())
    first, *others = problem.sizes
    assert first == (2, 20)
    assert others
    assert all(rollouts in (1, 2, 4, 8, 16) for _, rollouts in others)
