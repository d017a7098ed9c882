import pytest
import torch
from torch.testing import assert_close

from headstart.rl.envs import Bandit, FourStates


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_map_pays_for_its_own_direction_only():
    # actions: left, down, right, up; maps: goal on the left, right, above, below
    environments = FourStates().environments(4, 4)
    seen = environments.reset(torch.arange(4.0).unsqueeze(1), seeded())
    assert_close(seen, torch.eye(9)[4].expand(4, 4, 9))
    actions = torch.arange(4).expand(4, 4)
    step = environments.step(actions, torch.ones(4, 4, dtype=torch.bool))
    paying = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
    assert_close(step.rewards, paying)
    assert step.terminated.all()
    assert_close(step.observations[0], torch.eye(9)[[3, 7, 5, 1]])


def test_maps_are_drawn_evenly():
    counts = FourStates().sample(4000, seeded()).flatten().to(torch.int64).bincount()
    assert counts.shape == (4,)
    assert (counts - 1000).abs().max() < 150


def test_a_bandit_pays_as_often_as_its_arm():
    problem = Bandit(arms=3, horizon=7)
    assert (problem.action_size, problem.horizon, problem.actions) == (3, 7, "discrete")
    environments = problem.environments(2, 5000)
    probabilities = torch.tensor([[0.1, 0.5, 1.0], [0.9, 0.0, 0.3]])
    generator = seeded()
    assert_close(environments.reset(probabilities, generator), torch.ones(2, 5000, 1))
    alive = torch.ones(2, 5000, dtype=torch.bool)
    for arm in range(3):
        step = environments.step(torch.full((2, 5000), arm), alive)
        assert_close(step.rewards.mean(1), probabilities[:, arm], atol=0.03, rtol=0)
        assert not step.terminated.any()


def test_the_same_seed_is_the_same_luck():
    def rewards(seed):
        environments = Bandit().environments(2, 10)
        environments.reset(torch.full((2, 5), 0.5), seeded(seed))
        return environments.step(torch.zeros(2, 10, dtype=torch.int64), torch.ones(2, 10, dtype=torch.bool)).rewards

    assert_close(rewards(1), rewards(1))
    assert not torch.equal(rewards(1), rewards(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Bandit(arms=1), "arms=1"),
        (lambda: Bandit().environments(1, 1).reset(torch.full((1, 5), 1.5), seeded()), r"outside \[0, 1\]"),
        (lambda: FourStates().environments(1, 1).reset(torch.tensor([[4.0]]), seeded()), "0 to 3"),
        (lambda: FourStates(horizon=0), "horizon=0"),
    ],
)
def test_what_a_user_gets_wrong_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
