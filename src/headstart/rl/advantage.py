"""How much better an action was than expected: a baseline fitted per task, and generalised advantage estimation."""

import torch
from torch import Tensor

from headstart.rl.rollout import Rollouts

RIDGE = 1e-5
"""Added to the diagonal of the baseline's normal equations, as in rllab's `LinearFeatureBaseline`."""

RIDGES = 5
"""How many are tried, each ten times the one before, where the equations are too ill-conditioned for Cholesky factors.

Differs: rllab, which solves by least squares, goes on to the next where weights are not numbers."""


def advantages(rollouts: Rollouts, discount: float, gae_lambda: float) -> Tensor:
    """Advantages of every step, standardised within each task, `[tasks, rollouts, time]`; zero after an episode.

    As in the released code the baseline is fitted to the very episodes that it is then subtracted from, and what
    would follow after the horizon counts as zero: time is among the baseline's features, so that it knows.
    """
    valid = rollouts.valid
    values = linear_baseline(rollouts, discount)
    estimates = generalized(rollouts.rewards, values, valid, discount, gae_lambda)
    count = valid.sum((1, 2), keepdim=True)
    mean = estimates.sum((1, 2), keepdim=True) / count
    centred = torch.where(valid, estimates - mean, 0.0)
    deviation = (centred.square().sum((1, 2), keepdim=True) / count).sqrt()
    return centred / (deviation + 1e-8)


def linear_baseline(rollouts: Rollouts, discount: float) -> Tensor:
    """Expected discounted return from every step on, by linear regression per task, `[tasks, rollouts, time]`.

    Features are the observation clipped to 10, its square, time / 100 and its square and cube, and a constant
    (Duan et al. 2016, as rllab has it). Solved in double precision.
    """
    returns, values = discounted(rollouts.rewards.double(), discount), torch.zeros_like(rollouts.rewards)
    for task, valid in enumerate(rollouts.valid):  # one after another: the features of all would be large
        time = valid.nonzero()[:, 1:].double() / 100
        observations = rollouts.observations[task][valid].double().clamp(-10, 10)
        powers = [time, time**2, time**3, torch.ones_like(time)]
        features = torch.cat([observations, observations.square(), *powers], dim=1)
        values[task][valid] = (features @ _regression(features, returns[task][valid])).to(values.dtype)
    return values


def _regression(features: Tensor, targets: Tensor) -> Tensor:
    """The weights of ridge regression from features `[rows, features]` to targets `[rows]`; NaN where none is found.

    By Cholesky factors: the batched `torch.linalg.solve` failed with the ant's 254 features, 40 tasks and two threads
    (`docs/lab-log.md`).
    """
    normal, ridge = features.mT @ features, RIDGE
    identity = torch.eye(len(normal), dtype=normal.dtype, device=normal.device)
    for _ in range(RIDGES):
        factor, failed = torch.linalg.cholesky_ex(normal + ridge * identity)
        if not failed:
            return torch.cholesky_solve((features.mT @ targets).unsqueeze(1), factor).squeeze(1)
        ridge *= 10
    return normal.new_full((len(normal),), torch.nan)


def generalized(rewards: Tensor, values: Tensor, valid: Tensor, discount: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, eq. 16), `[..., time]`.

    Args:
        rewards: `[..., time]`, zero after an episode's end.
        values: The baseline of every step; zero is taken for what follows the last.
        valid: Whether the episode went on.
        discount: Gamma; 0.99 in the paper.
        gae_lambda: Lambda; 1 in the paper, which makes these discounted returns minus the baseline.
    """
    values = values * valid
    following = torch.cat([values[..., 1:], torch.zeros_like(values[..., :1])], -1)
    return discounted(rewards + discount * following - values, discount * gae_lambda)


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """The discounted sum of rewards from every step on, `[..., time]`.

    >>> discounted(torch.tensor([1.0, 0.0, 4.0]), 0.5)
    tensor([2., 2., 4.])
    """
    total, sums = torch.zeros_like(rewards[..., 0]), []
    for t in reversed(range(rewards.shape[-1])):
        total = rewards[..., t] + discount * total
        sums.append(total)
    return torch.stack(sums[::-1], -1)
