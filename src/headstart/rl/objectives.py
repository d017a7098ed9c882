"""Losses of a policy on what it did: the inner loss of Algorithm 3, and the surrogates of the meta-updates.

Each is a `LossFn`, written for one task: from parameters and an `Experience` to a scalar, a mean over the steps
that were taken.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart import layers
from headstart.models.policy import Distribution
from headstart.types import LossFn, Params

Objective = Literal["log-likelihood", "ratio"]
"""The inner loss: `log pi * A` as in the paper, or `pi / pi_old * A`.

Both have the same gradient on the policy that acted. They differ in the meta-gradient. The paper's is that of a
fixed set of episodes: how the initialisation changes *which* episodes are seen is left out. The second brings back
the part of it that a ratio per step can: the low-variance, slightly biased curvature of ProMP (Rothfuss et al.
2019)."""


class Experience(NamedTuple):
    """What a gradient step learns from: episodes with their advantages. What is not `valid` does not count."""

    observations: Tensor
    """`[rollouts, time, observation]`."""
    actions: Tensor
    """`[rollouts, time, action]`, or `[rollouts, time]` if discrete."""
    advantages: Tensor
    """`[rollouts, time]`."""
    valid: Tensor
    """`[rollouts, time]`, bool."""
    behaviour: Distribution
    """The distribution each action was drawn from."""


def packed(experience: Experience) -> Experience:
    """The steps that were taken, of each task in one row: `[tasks, 1, steps, ...]` from `[tasks, rollouts, time, ...]`.

    Losses are means over steps, so that they stay the same. Where episodes end early, or tasks have different numbers
    of them, there is less to compute.
    """
    flat: Experience = pytree.tree_map(lambda leaf: leaf.flatten(1, 2), experience)
    most = int(flat.valid.sum(1).max())
    if most == flat.valid.shape[1]:
        return experience
    order = flat.valid.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    rows = torch.arange(len(order)).unsqueeze(1)
    return pytree.tree_map(lambda leaf: leaf[rows, order].unsqueeze(1), flat)


def policy_gradient(policy: nn.Module, objective: Objective = "log-likelihood") -> LossFn:
    """The inner loss, whose gradient is the policy gradient (Finn et al. 2017, eq. 4): `-mean(log pi * A)`."""
    if objective == "ratio":
        return surrogate(policy)

    def loss(params: Params, experience: Experience) -> Tensor:
        log_prob = run(policy, params, experience.observations).log_prob(experience.actions)
        return -mean(log_prob * experience.advantages, experience.valid)

    return loss


def surrogate(policy: nn.Module, clip: float | None = None) -> LossFn:
    """`-mean(ratio * A)`, the ratio that of action probabilities to those at sampling (Schulman et al. 2015, eq. 14).

    Args:
        policy: The policy.
        clip: Bound on the ratio's distance from 1, beyond which nothing more is gained (Schulman et al. 2017,
            eq. 7); None for none.
    """
    return lambda params, experience: surrogate_at(run(policy, params, experience.observations), experience, clip)


def divergence(policy: nn.Module) -> LossFn:
    """The mean Kullback-Leibler divergence of the policy that acted from the policy with these parameters."""
    return lambda params, experience: divergence_at(run(policy, params, experience.observations), experience)


def surrogate_at(now: Distribution, experience: Experience, clip: float | None = None) -> Tensor:
    """`surrogate`, given what the policy says at the experience's observations."""
    log_prob, acted = now.log_prob(experience.actions), experience.behaviour.log_prob(experience.actions)
    ratio = (log_prob - acted).exp()
    gain = ratio * experience.advantages
    if clip is not None:
        gain = torch.minimum(gain, ratio.clamp(1 - clip, 1 + clip) * experience.advantages)
    return -mean(gain, experience.valid)


def divergence_at(now: Distribution, experience: Experience) -> Tensor:
    """`divergence`, given what the policy says at the experience's observations."""
    old: Any = experience.behaviour  # of the kind of `now`: the same policy's
    return mean(old.kl(now), experience.valid)


def run(policy: nn.Module, params: Params, observations: Tensor) -> Distribution:
    """The policy's distribution at `observations`; the layers PyTorch differentiates wrongly are replaced."""
    return layers.run(policy, params, observations)[0]


def mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over the steps that were taken, a scalar."""
    return torch.where(valid, values, 0.0).sum() / valid.sum()
