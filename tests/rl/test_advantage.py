import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from headstart.models.policy import Gaussian
from headstart.rl import advantage
from headstart.rl.advantage import advantages, discounted, generalized, linear_baseline
from headstart.rl.rollout import Rollouts

LENGTHS = [[7, 3, 12], [1, 12, 5]]


def episodes(dtype: torch.dtype = torch.float64, seed: int = 0, time: int = 12, lengths=LENGTHS) -> Rollouts:
    """Two tasks of three episodes; observations well beyond 10, so that clipping shows."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(time) < torch.tensor(lengths).unsqueeze(-1)
    shape = valid.shape
    observations = 8 * torch.randn(*shape, 2, generator=generator, dtype=torch.float64) * valid.unsqueeze(-1)
    rewards = (torch.randn(shape, generator=generator, dtype=torch.float64) + 1) * valid
    actions = torch.zeros(*shape, 1, dtype=dtype)
    behaviour = Gaussian(actions, actions)
    terminated = torch.zeros(shape[:2], dtype=torch.bool)
    return Rollouts(observations.to(dtype), actions, rewards.to(dtype), valid, terminated, behaviour)


def paths(rollouts: Rollouts, task: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Observations and rewards of each episode, as long as it went on."""
    rows = zip(rollouts.observations[task], rollouts.rewards[task], rollouts.valid[task], strict=True)
    return [(o[v].double().numpy(), r[v].double().numpy()) for o, r, v in rows]


def sums(rewards: np.ndarray, discount: float) -> np.ndarray:
    return np.array(
        [sum(discount ** (k - t) * rewards[k] for k in range(t, len(rewards))) for t in range(len(rewards))]
    )


def features(observations: np.ndarray) -> np.ndarray:
    clipped = np.clip(observations, -10, 10)
    time = np.arange(len(observations)).reshape(-1, 1) / 100.0
    return np.concatenate([clipped, clipped**2, time, time**2, time**3, np.ones_like(time)], axis=1)


def fitted(task: list[tuple[np.ndarray, np.ndarray]], discount: float) -> list[np.ndarray]:
    """Ridge regression of all discounted returns on all features, as a least-squares problem with rows added."""
    x = np.concatenate([features(o) for o, _ in task])
    y = np.concatenate([sums(r, discount) for _, r in task])
    ridge = np.sqrt(1e-5) * np.eye(x.shape[1])
    weights, *_ = np.linalg.lstsq(np.concatenate([x, ridge]), np.concatenate([y, np.zeros(len(ridge))]), rcond=None)
    return [features(o) @ weights for o, _ in task]


def estimated(rewards: np.ndarray, values: np.ndarray, discount: float, gae_lambda: float) -> np.ndarray:
    """Schulman et al. (2016), eq. 16, sum by sum."""
    following = np.append(values[1:], 0.0)
    errors = rewards + discount * following - values
    return sums(errors, discount * gae_lambda)


def padded(rows: list[np.ndarray], time: int = 12) -> Tensor:
    return torch.stack([torch.from_numpy(np.pad(row, (0, time - len(row)))) for row in rows])


@pytest.mark.parametrize("discount", [0.0, 0.9, 0.99, 1.0])
def test_discounted_sums(discount):
    rewards = episodes().rewards
    expected = [[sums(row.numpy(), discount) for row in task] for task in rewards]
    assert_close(discounted(rewards, discount), torch.tensor(np.array(expected)))


@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("discount", [0.9, 0.99])
def test_baseline_is_the_ridge_regression_of_the_released_code(task, discount):
    seen = episodes()
    values = linear_baseline(seen, discount)[task]
    expected = padded(fitted(paths(seen, task), discount))
    assert_close(values[seen.valid[task]], expected[seen.valid[task]], rtol=1e-7, atol=1e-7)
    assert (seen.observations.abs() > 10).any()


def test_baseline_in_single_precision_is_solved_in_double():
    seen, exact = episodes(torch.float32), episodes()
    values = linear_baseline(seen, 0.99)
    assert values.dtype == torch.float32
    assert_close(values.double()[seen.valid], linear_baseline(exact, 0.99)[seen.valid], rtol=2e-4, atol=2e-4)


def test_baseline_where_features_are_fewer_than_they_seem():
    """Observations that are all the same: the normal equations have no full rank but for the ridge."""
    seen = episodes()._replace(observations=torch.zeros_like(episodes().observations))
    values = linear_baseline(seen, 0.99)
    assert_close(values[0][seen.valid[0]], padded(fitted(paths(seen, 0), 0.99))[seen.valid[0]], rtol=1e-6, atol=1e-6)


def test_baseline_of_many_numbers_with_more_threads_than_one():
    """As many observations as the ant's: a batched solver has failed here, and hung."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = episodes(time=60, lengths=[[60] * 10] * 40)
        observations = torch.randn(40, 10, 60, 125, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        seen = seen._replace(observations=observations)
        values = linear_baseline(seen, 0.99)
    finally:
        torch.set_num_threads(threads)
    for task in (0, 39):
        assert_close(values[task], padded(fitted(paths(seen, task), 0.99), 60), rtol=1e-6, atol=1e-6)


def test_equations_too_ill_conditioned_take_a_larger_ridge(monkeypatch):
    features, targets = episodes().observations[0, 2], torch.arange(12.0).double()
    factors, tried = torch.linalg.cholesky_ex, []

    def third_time_lucky(matrix: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(matrix)
        factor, _ = factors(matrix)
        return factor, torch.tensor(int(len(tried) < 3))

    monkeypatch.setattr(torch.linalg, "cholesky_ex", third_time_lucky)
    monkeypatch.setattr(advantage, "RIDGE", 0.01)
    weights = advantage._regression(features, targets)
    expected = torch.linalg.solve(features.mT @ features + torch.eye(2).double(), features.mT @ targets)
    assert_close(weights, expected)


def test_features_all_alike_without_a_ridge_to_be_seen_have_no_weights(monkeypatch):
    monkeypatch.setattr(advantage, "RIDGE", 1e-30)  # 4 - 2 * 2 is zero on every machine
    assert advantage._regression(torch.ones(4, 3).double(), torch.arange(4.0).double()).isnan().all()


def test_baseline_of_episodes_that_are_not_finite_is_not_either():
    seen = episodes()
    seen.observations[0, 1, 1, 0] = torch.nan
    values = linear_baseline(seen, 0.99)
    assert values[0][seen.valid[0]].isnan().all()
    assert values[1].isfinite().all()


@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 1.0), (0.95, 0.9), (0.9, 0.0), (1.0, 1.0)])
def test_generalised_advantages_of_episodes_that_end_at_different_times(discount, gae_lambda):
    seen = episodes()
    generator = torch.Generator().manual_seed(4)
    values = torch.randn(
        seen.valid.shape, generator=generator, dtype=torch.double
    )  # also after the end: must not count
    given = generalized(seen.rewards, values, seen.valid, discount, gae_lambda)
    for task in range(2):
        for row, length in enumerate(LENGTHS[task]):
            rewards, value = seen.rewards[task, row, :length].numpy(), values[task, row, :length].numpy()
            expected = estimated(rewards, value, discount, gae_lambda)
            assert_close(given[task, row, :length], torch.from_numpy(expected))


def test_with_lambda_one_they_are_returns_minus_the_baseline():
    seen = episodes()
    values = linear_baseline(seen, 0.99)
    given = generalized(seen.rewards, values, seen.valid, 0.99, 1.0)
    assert_close(given[seen.valid], (discounted(seen.rewards, 0.99) - values)[seen.valid])


@pytest.mark.parametrize(("discount", "gae_lambda"), [(0.99, 1.0), (0.95, 0.9)])
def test_the_whole_of_it_by_hand(discount, gae_lambda):
    seen = episodes()
    given = advantages(seen, discount, gae_lambda)
    for task in range(2):
        those = paths(seen, task)
        rows = [estimated(r, v, discount, gae_lambda) for (_, r), v in zip(those, fitted(those, discount), strict=True)]
        together = np.concatenate(rows)
        standardized = [(row - together.mean()) / (together.std() + 1e-8) for row in rows]
        assert_close(given[task], padded(standardized), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_zero_deviation_one_over_the_steps_taken_and_zero_elsewhere(dtype):
    seen = episodes(dtype)
    given = advantages(seen, 0.99, 1.0)
    assert given.dtype == dtype
    assert not given[~seen.valid].any()
    for task in range(2):
        taken = given[task][seen.valid[task]].double()
        assert abs(taken.mean()) < 1e-6
        assert abs(taken.std(correction=0) - 1) < 1e-5


def test_a_task_never_influences_another():
    seen, other = episodes(), episodes(seed=1)
    mixed = Rollouts(
        *(torch.stack([a[0], b[1]]) for a, b in zip(seen[:5], other[:5], strict=True)), behaviour=seen.behaviour
    )
    whole, part = advantages(seen, 0.99, 1.0), advantages(mixed, 0.99, 1.0)
    assert torch.equal(whole[0], part[0])
    assert not torch.allclose(whole[1], part[1])
    alone = Rollouts(*(leaf[:1] for leaf in seen[:5]), behaviour=seen.behaviour)
    assert_close(advantages(alone, 0.99, 1.0)[0], advantages(seen, 0.99, 1.0)[0])


def test_a_longer_time_axis_changes_nothing():
    seen, longer = episodes(time=12), episodes(time=12)
    longer = Rollouts(
        *(torch.cat([leaf, torch.zeros_like(leaf[:, :, :5])], 2) for leaf in longer[:4]),
        longer.terminated,
        longer.behaviour,
    )
    assert_close(advantages(longer, 0.99, 0.9)[:, :, :12], advantages(seen, 0.99, 0.9))


def test_rewards_that_are_all_the_same_give_small_numbers_not_infinite_ones():
    """One step per episode and one reward: nothing to explain, and a deviation of zero, or nearly."""
    seen = episodes(lengths=[[1, 1, 1], [1, 1, 1]])
    seen = seen._replace(rewards=seen.valid.double(), observations=torch.zeros_like(seen.observations))
    assert advantages(seen, 0.99, 1.0).abs().max() < 2
