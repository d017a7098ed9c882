import pytest
import torch
from rl.by_hand import Line, small_policy
from torch import Tensor, nn
from torch.testing import assert_close

from headstart.models.policy import Gaussian, GaussianPolicy
from headstart.rl.problem import Environments, Step
from headstart.rl.rollout import Rollouts, collect, filled, pooled

LENGTHS = torch.tensor([[1, 3, 5, 2], [2, 4, 1, 3], [3, 5, 2, 4]])
"""Of `Line`'s episodes, three tasks of four; 5 is longer than the horizon of 4."""


class Clock(Environments):
    """Observations `[task, rollout, time]`, rewards `10 * task + time`, NaN when over; notes what it was given.

    It works in place: what it returned before changes at the next step, as where simulators share their memory.
    """

    def __init__(self, lengths: Tensor):
        self.lengths, self.actions, self.alive, self.resets = lengths, [], [], 0

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        self.resets += 1
        self.time, self.tasks = 0, tasks
        rollouts = torch.arange(self.lengths.shape[1]).expand(self.lengths.shape)
        self.seen = torch.stack([tasks.expand(self.lengths.shape), rollouts, torch.zeros(self.lengths.shape)], -1)
        return self.seen.clone()

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        self.actions.append(actions.clone())
        self.alive.append(alive.clone())
        self.time += 1
        self.seen[..., 2] = self.time
        self.seen[~alive] = float("nan")
        rewards = torch.where(alive, 10.0 * self.tasks + self.time, float("nan"))
        return Step(self.seen, rewards, self.lengths == self.time)


class SharesItsFirst(Clock):
    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        super().reset(tasks, generator)
        return self.seen


def shared(policy: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in policy.named_parameters()}


def on_a_clock(
    lengths: Tensor, horizon: int, kind: type[Clock] = Clock, start: Tensor | None = None
) -> tuple[Clock, Rollouts]:
    torch.manual_seed(0)
    policy, clock = GaussianPolicy(3, 2, hidden=(4,)), kind(lengths)
    tasks = torch.arange(1.0, len(lengths) + 1).unsqueeze(-1)
    generator = torch.Generator().manual_seed(3)
    return clock, collect(policy, shared(policy), clock, tasks, horizon, generator, per_task=False, start=start)


def on_a_line(seed: int = 0, discrete: bool = False, dtype: torch.dtype = torch.float64) -> Rollouts:
    generator = torch.Generator().manual_seed(seed)
    problem, policy = Line(discrete, dtype=dtype), small_policy(discrete).to(dtype)
    tasks = problem.sample(3, generator)
    return collect(policy, shared(policy), problem.environments(3, 4), tasks, 4, generator, per_task=False)


def test_what_is_kept_of_every_step_until_the_end_of_each_episode():
    _, seen = on_a_clock(LENGTHS, horizon=4)
    time = torch.arange(4)
    valid = time < LENGTHS.unsqueeze(-1)
    assert torch.equal(seen.valid, valid)
    tasks = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    assert_close(seen.rewards, torch.where(valid, 10 * tasks + time + 1, 0.0))
    expected = torch.stack(torch.broadcast_tensors(tasks, torch.arange(4.0).view(1, 4, 1), time.float()), -1)
    assert_close(seen.observations, torch.where(valid.unsqueeze(-1), expected, 0.0))
    assert torch.equal(seen.terminated, LENGTHS <= 4)


def test_ended_at_the_very_horizon_is_ended_and_not_cut_off():
    _, seen = on_a_clock(torch.tensor([[2, 3]]), horizon=2)
    assert seen.terminated.tolist() == [[True, False]]
    assert seen.valid.all()


def test_returns_and_steps():
    _, seen = on_a_clock(torch.tensor([[1, 9], [2, 3]]), horizon=3)
    assert_close(seen.returns(), torch.tensor([[11.0, 11 + 12 + 13], [21 + 22, 21 + 22 + 23]]))
    assert seen.steps == 1 + 3 + 2 + 3


def test_it_stops_once_all_episodes_are_over():
    clock, seen = on_a_clock(torch.tensor([[1, 2], [3, 1]]), horizon=50)
    assert len(clock.actions) == 3
    assert seen.rewards.shape == (2, 2, 3)
    assert seen.observations.shape == (2, 2, 3, 3)
    assert seen.actions.shape == (2, 2, 3, 2)
    assert seen.terminated.all()


def test_environments_are_told_who_is_alive_and_given_the_actions_that_are_kept():
    clock, seen = on_a_clock(LENGTHS, horizon=4)
    assert torch.equal(torch.stack(clock.alive, 2), seen.valid)
    given = torch.stack(clock.actions, 2)
    assert_close(seen.actions[seen.valid], given[seen.valid], rtol=0, atol=0)
    assert given.isfinite().all()


def test_nothing_of_an_ended_episode_gets_out():
    for seen in (on_a_clock(LENGTHS, 4)[1], on_a_line(), on_a_line(discrete=True)):
        assert (~seen.valid).any()
        for leaf in (*seen[:5], *seen.behaviour):
            assert not leaf.is_floating_point() or leaf.isfinite().all()
        assert not seen.rewards[~seen.valid].any()
        assert not seen.observations[~seen.valid].any()


def test_first_observations_outlive_an_environment_that_reuses_its_memory():
    _, seen = on_a_clock(LENGTHS, 4, SharesItsFirst)
    assert_close(seen.observations, on_a_clock(LENGTHS, 4)[1].observations)


def test_behaviour_is_the_distribution_at_the_observations_and_actions_are_drawn_from_it():
    seen = on_a_line()
    policy = small_policy()
    with torch.no_grad():
        expected = policy(seen.observations)
    for kept, given in zip(seen.behaviour, expected, strict=True):
        assert_close(kept[seen.valid], given[seen.valid])
    # over many steps: standard normal
    generator = torch.Generator().manual_seed(0)
    problem = Line(horizon=4)
    many = collect(
        policy,
        shared(policy),
        problem.environments(1, 4000),
        problem.sample(1, generator),
        4,
        generator,
        per_task=False,
    )
    noise = ((many.actions - many.behaviour.mean) / many.behaviour.log_std.exp())[many.valid]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.03


def test_discrete_actions_are_integers_without_an_axis_of_their_own():
    seen = on_a_line(discrete=True)
    assert seen.actions.shape == (3, 4, 4)
    assert seen.actions.dtype == torch.int64
    assert set(seen.actions[seen.valid].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("discrete", [False, True])
def test_a_seed_fixes_the_episodes_whatever_the_global_state(discrete):
    torch.manual_seed(1)
    first = on_a_line(5, discrete)
    torch.manual_seed(2)
    second, other = on_a_line(5, discrete), on_a_line(6, discrete)
    for a, b in zip((*first[:5], *first.behaviour), (*second[:5], *second.behaviour), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.rewards, other.rewards)


class Constant(nn.Module):
    """Acts by its parameter alone, with hardly any noise."""

    def __init__(self, value: float = 0.0):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def forward(self, observations: Tensor) -> Gaussian:
        mean = self.value.expand(*observations.shape[:-1], 1)
        return Gaussian(mean, torch.full_like(mean, -20.0))


def test_each_task_acts_by_its_own_parameters():
    clock, values = Clock(torch.full((3, 2), 4)), torch.tensor([[5.0], [-7.0], [0.5]])
    generator = torch.Generator().manual_seed(0)
    seen = collect(Constant(), {"value": values}, clock, torch.zeros(3, 1), 4, generator)
    assert_close(seen.actions, values.view(3, 1, 1, 1).expand(3, 2, 4, 1), atol=1e-6, rtol=0)


def test_equal_parameters_per_task_or_shared_are_the_same():
    policy, problem = small_policy(), Line()

    def episodes(params: dict[str, Tensor], per_task: bool) -> Rollouts:
        generator = torch.Generator().manual_seed(2)
        return collect(policy, params, problem.environments(3, 4), torch.ones(3, 1), 4, generator, per_task=per_task)

    one = episodes(shared(policy), per_task=False)
    each = episodes({name: p.expand(3, *p.shape) for name, p in shared(policy).items()}, per_task=True)
    assert_close(each.rewards, one.rewards)
    assert_close(each.actions, one.actions)


def test_no_graph_is_kept():
    policy, problem = small_policy(), Line()
    params = {name: p.expand(2, *p.shape) for name, p in policy.named_parameters()}
    seen = collect(policy, params, problem.environments(2, 2), torch.ones(2, 1), 4, torch.Generator())
    assert not any(leaf.requires_grad for leaf in (*seen[:5], *seen.behaviour))


def test_parameters_without_a_tasks_axis_are_refused():
    policy, problem = small_policy(), Line()
    with pytest.raises(ValueError, match=r"'.*' of shape .* no leading axis of 2 tasks"):
        collect(policy, shared(policy), problem.environments(2, 2), torch.ones(2, 1), 4, torch.Generator())


def test_a_horizon_of_nothing_is_refused():
    policy, problem = small_policy(), Line()
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        collect(
            policy, shared(policy), problem.environments(2, 2), torch.ones(2, 1), 0, torch.Generator(), per_task=False
        )


def test_pooled_episodes_are_those_of_one_task_in_order():
    seen = on_a_line()
    together = pooled(seen)
    assert together.observations.shape == (1, 12, 4, 2)
    assert together.terminated.shape == (1, 12)
    for one, many in zip((*together[:5], *together.behaviour), (*seen[:5], *seen.behaviour), strict=True):
        for task in range(3):
            assert torch.equal(one[0, 4 * task : 4 * task + 4], many[task])


def made(lengths: list[list[int]], first: int) -> Rollouts:
    """Episodes of given lengths: step `t` of episode `e` of task `i` is rewarded by `100 i + 10 (first + e) + t`."""
    tasks, rollouts, time = len(lengths), len(lengths[0]), max(map(max, lengths))
    valid = torch.arange(time) < torch.tensor(lengths).unsqueeze(-1)
    number = 100 * torch.arange(tasks)[:, None, None] + 10 * (first + torch.arange(rollouts))[:, None]
    rewards = (number + torch.arange(time)) * valid.float()
    spread = rewards.unsqueeze(-1).expand(tasks, rollouts, time, 2)
    return Rollouts(spread, spread, rewards, valid, torch.tensor(lengths) < 4, Gaussian(spread, spread))


def sampler(*rounds: list[list[int]]):
    """A stand-in for sampling whose episodes have those lengths, round by round; and what it was asked for."""
    asked: list[list[list[bool]]] = []

    def sample(wanted: Tensor) -> Rollouts:
        lengths = torch.tensor(rounds[len(asked)])[:, : wanted.shape[1]] * wanted
        asked.append(wanted.tolist())
        return made(lengths.tolist(), first=len(rounds[0][0]) * (len(asked) - 1))

    return sample, asked


def test_one_stream_goes_on_until_the_episodes_reach_the_steps():
    # Task 0 has its 8 steps at once. Task 1 has 3, so about 4 more episodes like them are missing: both rollouts,
    # which give 3 steps, then one of 3 steps, the first to reach 8 or more.
    sample, asked = sampler([[4, 4], [2, 1]], [[4, 4], [1, 2]], [[4, 4], [3, 3]])
    seen = filled(sample, (2, 2), steps=8, streams=1)
    assert asked == [[[True, True]] * 2, [[False, False], [True, True]], [[False, False], [True, True]]]
    assert seen.valid.sum(2).tolist() == [[4, 4, 0, 0, 0], [2, 1, 1, 2, 3]]
    assert seen.present.tolist() == [[True, True, False, False, False], [True] * 5]
    assert_close(seen.rewards[0, 1], torch.tensor([10.0, 11, 12, 13]))
    assert_close(seen.rewards[1, 4], torch.tensor([140.0, 141, 142, 0]))
    assert not seen.terminated[0, 2:].any()
    assert seen.observations.shape == (2, 5, 4, 2)
    assert_close(seen.behaviour.mean[1, :, :, 0] * seen.valid[1], seen.rewards[1])
    assert_close(seen.mean_returns()[1], torch.tensor((100 + 101 + 110 + 120 + 130 + 131 + 140 + 141 + 142) / 5))


def test_rounds_for_a_few_missing_episodes_are_narrow():
    """Fewer places, of a size that may come again: for one episode one, for three four."""
    sample, asked = sampler([[3, 3, 3, 3, 3], [3, 3, 3, 3, 2]], [[1] * 5, [3] * 5])
    seen = filled(sample, (2, 5), steps=15, streams=1)
    assert asked == [[[True] * 5] * 2, [[False], [True]]]
    assert seen.valid.sum(2).tolist() == [[3, 3, 3, 3, 3, 0], [3, 3, 3, 3, 2, 3]]
    assert_close(seen.rewards[1, 5], torch.tensor([150.0, 151, 152]))
    sample, asked = sampler([[3, 3, 3, 3, 3]], [[3, 3, 3, 3, 3]])
    assert filled(sample, (1, 5), steps=22, streams=1).valid.sum(2).tolist() == [[3] * 8]
    assert asked == [[[True] * 5], [[True, True, True, False]]]


def test_several_streams_end_together_and_what_is_not_complete_then_is_left_out():
    # Streams 4 and 1 + 1 + 1 + ...: at time 4 there are 8 steps complete, 4 of them in episodes of one step.
    sample, asked = sampler([[4, 1]], [[4, 1]], [[4, 1]], [[4, 1]])
    seen = filled(sample, (1, 2), steps=8, streams=2)
    assert seen.valid.sum(2).tolist() == [[4, 1, 1, 1, 1]]
    assert len(asked) == 4
    # With 7 asked for, time 3 has three complete, so 4 is needed all the same; the long one is in, as it ends then.
    assert filled(sampler([[4, 1]], [[4, 1]], [[4, 1]], [[4, 1]])[0], (1, 2), steps=7, streams=2).steps == 8
    # With 3 asked for they are complete at time 3, and the long episode is not: it is left out.
    assert filled(sampler([[4, 1]], [[4, 1]], [[4, 1]], [[4, 1]])[0], (1, 2), steps=3, streams=2).steps == 3


def test_full_episodes_are_sampled_once():
    for streams in (1, 2):
        sample, asked = sampler([[4, 4], [4, 4]])
        seen = filled(sample, (2, 2), steps=8, streams=streams)
        assert len(asked) == 1
        assert seen.valid.all()


def test_only_what_is_to_start_starts():
    start = torch.tensor([[True, False], [False, True]])
    _, seen = on_a_clock(torch.tensor([[2, 3], [1, 2]]), horizon=4, start=start)
    assert seen.valid.sum(2).tolist() == [[2, 0], [0, 2]]
    assert not seen.rewards[~start].any()


def test_what_is_to_start_has_the_shape_of_the_environments():
    with pytest.raises(ValueError, match=r"each of \(2, 2\) environments whether it starts, got \(2, 1\)"):
        on_a_clock(torch.tensor([[2, 3], [1, 2]]), horizon=4, start=torch.ones(2, 1, dtype=torch.bool))


def test_a_policy_whose_ways_to_act_disagree_is_refused():
    class Other(GaussianPolicy):
        def forward(self, observations: Tensor) -> Gaussian:
            return Gaussian(*(2 * leaf for leaf in super().forward(observations)))

    torch.manual_seed(0)
    clock, policy = Clock(torch.tensor([[2]])), Other(3, 2, hidden=(4,))
    params = {name: p.detach().unsqueeze(0) for name, p in policy.named_parameters()}
    with pytest.raises(ValueError, match=r"Other\.stacked does not give what its forward gives"):
        collect(policy, params, clock, torch.ones(1, 1), 3, torch.Generator())


@pytest.mark.parametrize("own", [True, False])
def test_pytorch_leaves_the_cores_to_environments_with_threads_of_their_own(own):
    seen: list[int] = []

    class Counting(Clock):
        own_threads = own

        def step(self, actions: Tensor, alive: Tensor) -> Step:
            seen.append(torch.get_num_threads())
            return super().step(actions, alive)

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        on_a_clock(torch.tensor([[2, 2]]), horizon=2, kind=Counting)
        assert seen == ([1, 1] if own else [2, 2])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_streams_are_one_or_all():
    with pytest.raises(ValueError, match="streams must be 1 or the number of rollouts, 3, got 2"):
        filled(lambda wanted: pytest.fail("nothing is sampled"), (1, 3), steps=4, streams=2)
