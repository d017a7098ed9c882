"""What the tests of reinforcement learning compare with: a small family of environments, and Algorithm 3 spelled out.

The references loop over tasks, use `torch.distributions`, pick the steps that were taken by indexing, and
differentiate with `torch.autograd` through the policy's own native layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributions, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from headstart import SGD
from headstart.models.policy import CategoricalPolicy, Gaussian, GaussianPolicy
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.objectives import Experience
from headstart.rl.problem import Environments, Problem, Step

Params = dict[str, Tensor]
NAN = float("nan")


class Line(Problem):
    """A point on a line, rewarded for being near the task's goal; episode r of task i ends after `1 + (i + 2r) % 5`.

    Of a horizon of 4, lengths of 5 are cut off. What stands in for a finished episode is not a number, and must not
    get anywhere.
    """

    observation_size = 2

    def __init__(self, discrete: bool = False, horizon: int = 4, dtype: torch.dtype = torch.float64):
        self.actions = "discrete" if discrete else "continuous"
        self.action_size = 3 if discrete else 1
        self.horizon, self.dtype = horizon, dtype

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        return torch.randn(size, 1, generator=generator, dtype=self.dtype)

    def environments(self, num_tasks: int, rollouts: int) -> Environments:
        return _Points(self, num_tasks, rollouts)


class _Points(Environments):
    def __init__(self, problem: Line, num_tasks: int, rollouts: int):
        self.problem, self.shape = problem, (num_tasks, rollouts)
        self.lengths = 1 + (torch.arange(num_tasks).unsqueeze(1) + 2 * torch.arange(rollouts)) % 5

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        self.goals, self.time = tasks, 0
        self.positions = 0.1 * torch.randn(self.shape, generator=generator, dtype=self.problem.dtype)
        return self._observe()

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        moves = actions - 1 if self.problem.actions == "discrete" else actions.squeeze(-1)
        self.time += 1
        self.positions = torch.where(alive, self.positions + 0.3 * moves, NAN)
        rewards = -(self.positions - self.goals).abs()
        return Step(self._observe(), rewards, (self.lengths <= self.time) | ~alive)

    def _observe(self) -> Tensor:
        return torch.stack([self.positions, torch.full_like(self.positions, self.time / 4)], -1)


def small_policy(discrete: bool = False, context: int = 0, seed: int = 0) -> nn.Module:
    """Fifteen parameters or so, none of them at a special value."""
    torch.manual_seed(seed)
    if discrete:
        policy: nn.Module = CategoricalPolicy(2, 3, hidden=(3,), activation="tanh", context=context)
    else:
        policy = GaussianPolicy(2, 1, hidden=(3,), activation="tanh", initial_std=0.7, context=context)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1 * torch.randn(p.shape)
    return policy.double()


def learner_of(discrete: bool = False, *, context: int = 0, **settings: Any) -> MAMLRL:
    settings = {"inner": SGD(0.3), "rollouts": 4, **settings}
    return MAMLRL(small_policy(discrete, context), Line(discrete), **settings)


def explored(learner: MAMLRL, tasks: int = 3, seed: int = 1) -> list[Experience]:
    """What `explore` gives, before it is packed: with steps that do not count."""
    generator = torch.Generator().manual_seed(seed)
    return [
        learner.experience(seen) for seen in learner.explore(learner.problem.sample(tasks, generator), generator)[1]
    ]


def of_task(episodes: Any, task: int) -> Any:
    return pytree.tree_map(lambda leaf: leaf[task], episodes)


def as_torch(distribution: Any) -> distributions.Distribution:
    """Ours as a distribution of PyTorch's, whose `log_prob` is of whole actions."""
    if isinstance(distribution, Gaussian):
        return distributions.Independent(distributions.Normal(distribution.mean, distribution.log_std.exp()), 1)
    return distributions.Categorical(logits=distribution.logits)


def acting(policy: nn.Module, params: Params, observations: Tensor) -> distributions.Distribution:
    return as_torch(functional_call(policy, params, (observations,)))


def log_likelihood_loss(policy: nn.Module, params: Params, episodes: Experience) -> Tensor:
    log_prob = acting(policy, params, episodes.observations).log_prob(episodes.actions)
    return -(log_prob[episodes.valid] * episodes.advantages[episodes.valid]).mean()


def ratios(policy: nn.Module, params: Params, episodes: Experience) -> Tensor:
    """Of the steps that were taken, `[steps]`."""
    now = acting(policy, params, episodes.observations).log_prob(episodes.actions)
    return (now - as_torch(episodes.behaviour).log_prob(episodes.actions))[episodes.valid].exp()


def ratio_loss(policy: nn.Module, params: Params, episodes: Experience) -> Tensor:
    return -(ratios(policy, params, episodes) * episodes.advantages[episodes.valid]).mean()


def clipped_loss(policy: nn.Module, params: Params, episodes: Experience, clip: float) -> Tensor:
    ratio, gain = ratios(policy, params, episodes), episodes.advantages[episodes.valid]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()


def kl(policy: nn.Module, params: Params, episodes: Experience) -> Tensor:
    apart = distributions.kl_divergence(as_torch(episodes.behaviour), acting(policy, params, episodes.observations))
    return apart[episodes.valid].mean()


def adapted(learner: MAMLRL, theta: Params, support: Sequence[Experience], rate: float) -> Params:
    """`theta - rate * gradient` on each of `support`, differentiable in theta."""
    loss_fn = log_likelihood_loss if learner.objective == "log-likelihood" else ratio_loss
    params = dict(theta)
    for episodes in support:
        loss = loss_fn(learner.policy, params, episodes)
        moving = [params[name] for name in learner.adapted_names]
        grads = torch.autograd.grad(loss, moving, create_graph=True)
        params |= {n: p - rate * g for n, p, g in zip(learner.adapted_names, moving, grads, strict=True)}
    return params


def after_adaptation(
    learner: MAMLRL, fn: Callable[..., Tensor], episodes: Sequence[Experience], theta: Params | None = None
) -> Tensor:
    """The mean over tasks of `fn(policy, adapted parameters, last episodes)`."""
    theta = dict(learner.policy.named_parameters()) if theta is None else theta
    values = []
    for task in range(len(episodes[-1].valid)):
        *support, query = [of_task(e, task) for e in episodes]
        values.append(fn(learner.policy, adapted(learner, theta, support, learner.inner.lr), query))
    return torch.stack(values).mean()


def hessian_of_kl(learner: MAMLRL, episodes: Sequence[Experience]) -> Tensor:
    """The dense matrix of second derivatives, through adaptation: third derivatives and all."""
    theta = {name: p.detach() for name, p in learner.policy.named_parameters()}
    sizes = [p.numel() for p in theta.values()]

    def at(vector: Tensor) -> Tensor:
        parts = zip(theta.items(), vector.split(sizes), strict=True)
        params = {name: part.view_as(p) for (name, p), part in parts}
        return after_adaptation(learner, kl, episodes, params)

    start = torch.cat([p.reshape(-1) for p in theta.values()])
    return torch.autograd.functional.hessian(at, start)


def as_vector(params: Params) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in params.values()])


def like(learner: MAMLRL, vector: Tensor) -> Params:
    named = dict(learner.policy.named_parameters())
    parts = vector.split([p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


def meta_gradient(learner: MAMLRL, episodes: Sequence[Experience]) -> Tensor:
    """Of the surrogate after adaptation, as one vector."""
    loss = after_adaptation(learner, ratio_loss, episodes)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(learner.policy.parameters()))])
