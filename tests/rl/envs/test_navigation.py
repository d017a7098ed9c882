import pytest
import torch
from torch.testing import assert_close

from headstart.rl.envs import Navigation


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_an_episode_by_hand():
    goals = torch.tensor([[0.3, -0.2], [-0.1, 0.5]])
    environments = Navigation().environments(2, 1)
    alive = torch.ones(2, 1, dtype=torch.bool)
    assert_close(environments.reset(goals, seeded()), torch.zeros(2, 1, 2))
    step = environments.step(torch.tensor([[[1.0, -0.5]], [[-7.0, 0.25]]]), alive)  # -7 is clipped to -1
    assert_close(step.observations, torch.tensor([[[0.1, -0.05]], [[-0.1, 0.025]]]))
    assert_close(step.rewards, -torch.tensor([[(0.2**2 + 0.15**2) ** 0.5], [0.475]]))
    assert not step.terminated.any()
    step = environments.step(torch.tensor([[[1.0, -1.0]], [[0.0, 1.0]]]), alive)
    assert_close(step.observations, torch.tensor([[[0.2, -0.15]], [[-0.1, 0.125]]]))
    step = environments.step(torch.tensor([[[0.95, -0.45]], [[0.0, 0.0]]]), alive)
    assert step.terminated.tolist() == [[True], [False]]  # 0.005 off on both axes; far off on one
    assert_close(step.rewards[0, 0], -torch.tensor(2 * 0.005**2).sqrt(), atol=1e-6, rtol=0)


def test_both_coordinates_must_be_close_to_end_the_episode():
    environments = Navigation().environments(2, 1)
    environments.reset(torch.tensor([[0.05, 0.0111], [0.05, 0.0099]]), seeded())
    step = environments.step(torch.tensor([[[0.5, 0.0]], [[0.5, 0.0]]]), torch.ones(2, 1, dtype=torch.bool))
    assert step.terminated.tolist() == [[False], [True]]


def test_goals_fill_the_square_and_the_oracle_sees_them():
    problem = Navigation(oracle=True)
    goals = problem.sample(4000, seeded())
    assert goals.shape == (4000, 2)
    assert_close(goals.mean(0), torch.zeros(2), atol=0.02, rtol=0)
    assert_close(goals.std(0), torch.full((2,), 12**-0.5), atol=0.01, rtol=0)
    assert goals.abs().max() <= 0.5
    environments = problem.environments(3, 2)
    seen = environments.reset(goals[:3], seeded())
    assert problem.observation_size == 4
    assert_close(seen[..., 2:], goals[:3, None].expand(3, 2, 2))
    step = environments.step(torch.ones(3, 2, 2), torch.ones(3, 2, dtype=torch.bool))
    assert_close(step.observations[..., 2:], goals[:3, None].expand(3, 2, 2))


def test_observations_handed_out_stay_as_they_were():
    environments = Navigation().environments(1, 1)
    first = environments.reset(torch.zeros(1, 2), seeded())
    second = environments.step(torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool)).observations
    environments.step(torch.ones(1, 1, 2), torch.ones(1, 1, dtype=torch.bool))
    assert_close(first, torch.zeros(1, 1, 2))
    assert_close(second, torch.full((1, 1, 2), 0.1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_point_given_an_action_that_is_not_finite_stays_where_it_is_and_is_rewarded_with_nan(bad):
    environments, on = Navigation().environments(1, 2), torch.ones(1, 2, dtype=torch.bool)
    environments.reset(torch.tensor([[0.3, 0.1]]), seeded())
    actions = torch.tensor([[[0.5, bad], [0.5, 1.0]]])
    for moves in (1, 2):
        step = environments.step(actions, on)
        assert_close(step.observations, torch.tensor([[[0.0, 0.0], [0.05 * moves, 0.1 * moves]]]))
        assert step.rewards.isnan().tolist() == [[True, False]]
        assert not step.terminated.any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Navigation(horizon=0), "horizon=0"),
        (lambda: Navigation().environments(0, 2), "num_tasks=0"),
        (lambda: Navigation().environments(1, 2).reset(torch.zeros(2, 2), seeded()), r"\[2, 2\].*\[1, 2\]"),
        (lambda: Navigation().environments(1, 2).reset(torch.full((1, 2), torch.nan), seeded()), "nan: give finite"),
        (
            lambda: Navigation().environments(1, 2).step(torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool)),
            r"actions of shape \[1, 2, 3\]",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
