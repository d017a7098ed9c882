"""Model-agnostic meta-learning for reinforcement learning: Algorithm 3 of Finn, Abbeel and Levine (2017).

    code                          paper                       shape
    policy's named parameters     theta                       name -> tensor
    inner.lr                      alpha                       a number, or a tensor per parameter
    tasks                         T_i ~ p(T)                  [tasks, task]
    collect(params, tasks)        D_i: K episodes             Rollouts, [tasks, rollouts, time, ...]
    experience(rollouts)          D_i with advantages         Experience, [tasks, rollouts, time, ...]
    inner_loss(params, episodes)  L_Ti(f_theta), eq. 4        scalar
    losses(loss_fn, episodes)     L_Ti(f_theta'_i) on D'_i    [tasks]

The inner loop is the library's one `adapt`. Sampling needs rollouts between the steps, so `trajectory` takes the
steps one at a time; the meta-gradient then replays them, on the episodes kept, as `adapt(params, episodes)`.
Line 10, the meta-update, is not here: see `meta_updates.py`, and `trpo.py` for the paper's.

As in the released code, the meta-gradient takes the episodes of the inner steps as given, although they were drawn
from a policy that depends on theta; `objective="ratio"` is the alternative.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from headstart.adapt import adapt, inner_step
from headstart.algorithms.names import matching
from headstart.inner import SGD, InnerOptimizer
from headstart.layers import has_batch_norm
from headstart.models.policy import Categorical, CategoricalPolicy, GaussianPolicy
from headstart.rl.advantage import advantages
from headstart.rl.objectives import Experience, Objective, packed, policy_gradient
from headstart.rl.problem import Environments, Problem
from headstart.rl.rollout import Budget, Rollouts, collect, filled, pooled
from headstart.types import LossFn, Params, Task
from headstart.vectorize import over_tasks


class MAMLRL(nn.Module):
    """A policy whose parameters are meta-learned: one policy-gradient step on a new task already makes it good.

    Args:
        policy: From observations `[..., observation]` to a distribution; see `headstart.models.GaussianPolicy`.
            Its parameters are the meta-parameters. It has to be one that `torch.vmap` takes.
        problem: The family of environments.
        inner: The inner optimiser.
        steps: Inner steps in training, each on fresh rollouts. With 0 one policy is trained on all tasks jointly
            (the paper's pretrained baseline, and its oracle): baseline and standardisation are over all of them.
        rollouts: Episodes per task and step: the K of the paper.
        budget: `"episodes"`: so many, however short they are; or `"steps"`, as in the released code: episodes
            until those complete have `rollouts * horizon` time steps. The same unless episodes end by themselves.
        discount: Gamma.
        gae_lambda: Lambda of generalised advantage estimation.
        objective: The inner loss; see `headstart.rl.objectives.Objective`.
        adapt_only: Name patterns of the parameters that adapt; see `headstart.MAML`.
        chunk_size: Tasks per `vmap` where gradients are taken; None for all. Changes speed and memory only.

    Raises:
        ValueError: A setting is out of range, a pattern matches no parameter, or the policy has batch norm or is not
            one for these observations and actions.
    """

    def __init__(
        self,
        policy: nn.Module,
        problem: Problem,
        *,
        inner: InnerOptimizer | None = None,
        steps: int = 1,
        rollouts: int = 20,
        budget: Budget = "episodes",
        discount: float = 0.99,
        gae_lambda: float = 1.0,
        objective: Objective = "log-likelihood",
        adapt_only: str | Sequence[str] = "*",
        chunk_size: int | None = None,
    ):
        super().__init__()
        if steps < 0 or rollouts < 1:
            raise ValueError(f"steps must be 0 or more and rollouts at least 1, got {steps} and {rollouts}.")
        if not (0 <= discount <= 1 and 0 <= gae_lambda <= 1):
            raise ValueError(f"discount and gae_lambda must lie in [0, 1], got {discount} and {gae_lambda}.")
        if objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}.")
        if budget not in get_args(Budget):
            raise ValueError(f"budget must be one of {', '.join(get_args(Budget))}, got {budget!r}.")
        if has_batch_norm(policy):
            raise ValueError("A policy must not have batch norm: it acts on one state at a time. Use layer norm.")
        _check_fits(policy, problem)
        self.policy, self.problem = policy, problem
        self.inner = inner if inner is not None else SGD(lr=0.1)
        self.steps, self.rollouts, self.chunk_size = steps, rollouts, chunk_size
        self.discount, self.gae_lambda = discount, gae_lambda
        self.objective: Objective = objective
        self.budget: Budget = budget
        self.inner_loss = policy_gradient(policy, objective)
        self.adapted_names = matching([n for n, p in policy.named_parameters() if p.requires_grad], adapt_only)
        self._environments: dict[tuple[int, int], Environments] = {}

    def explore(self, tasks: Tensor, generator: torch.Generator) -> tuple[list[Experience], list[Rollouts]]:
        """Lines 4 to 8: what each inner step learns from, last what the adapted policy is judged by; and episodes.

        Args:
            tasks: `[tasks, task]`; with `steps=0` they come back as one.
            generator: Everything random is drawn from it.
        """
        if self.steps == 0:
            rollouts = pooled(self.collect(dict(self.policy.named_parameters()), tasks, generator, per_task=False))
            return [packed(self.experience(rollouts))], [rollouts]
        seen = [rollouts for _, rollouts in self.trajectory(tasks, generator=generator)]
        return [packed(self.experience(rollouts)) for rollouts in seen], seen

    def trajectory(
        self,
        tasks: Tensor,
        steps: int | None = None,
        *,
        generator: torch.Generator,
        rollouts: int | None = None,
        inners: Sequence[InnerOptimizer] | None = None,
        budget: Budget | None = None,
        streams: int = 1,
        starts: Params | None = None,
    ) -> Iterator[tuple[Params, Rollouts]]:
        """For 0 to `steps` inner steps: the adapted parameters, `[tasks, ...]` each, and episodes made with them.

        Args:
            tasks: `[tasks, task]`.
            steps: Inner steps; those of training unless given.
            generator: Everything random is drawn from it.
            rollouts: Episodes per task and step; those of training unless given.
            inners: The inner optimiser of each step, of one kind; the learner's own unless given. The paper
                halves the step size after the first step in evaluation.
            budget: What sampling counts; that of training unless given.
            streams: For `budget="steps"`: see `headstart.rl.rollout.filled`.
            starts: The parameters that each task starts from, `[tasks, ...]`; the policy's unless given.
        """
        steps = self.steps if steps is None else steps
        inners = [self.inner] * steps if inners is None else inners
        if len(inners) < steps:
            raise ValueError(f"inners must name an inner optimiser for each of {steps} steps, got {len(inners)}.")
        theta = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        params = {name: p.expand(len(tasks), *p.shape) for name, p in theta.items()} if starts is None else starts
        adapting = {name: params[name].clone() for name in self.adapted_names}
        state = torch.vmap(self.inner.init)(adapting)
        for step in range(steps + 1):
            seen = self.collect(params, tasks, generator, rollouts, budget=budget, streams=streams)
            yield params, seen
            if step < steps:
                adapting, state = self._stepped(params, adapting, packed(self.experience(seen)), inners[step], state)
                params = {**params, **adapting}

    def adapt(
        self, task: Tensor, steps: int | None = None, *, generator: torch.Generator, rollouts: int | None = None
    ) -> nn.Module:
        """The policy adapted to one task, `[task]`, as an ordinary module; the rest as `trajectory`."""
        *_, (last, _) = self.trajectory(task.unsqueeze(0), steps, generator=generator, rollouts=rollouts)
        policy = copy.deepcopy(self.policy)
        policy.load_state_dict({name: p[0] for name, p in last.items()}, strict=False)
        return policy

    def losses(self, loss_fn: LossFn, episodes: Sequence[Experience]) -> Tensor:
        """A loss of each task's adapted policy on the last of `episodes`, `[tasks]`, differentiable in theta.

        Args:
            loss_fn: From adapted parameters and an `Experience` to a scalar.
            episodes: What each inner step learns from, and last what is judged by: `explore`'s.
        """
        return self.over(lambda task: loss_fn(self.adapted(task.support), task.query), episodes)

    def adapted(self, support: Sequence[Experience], theta: Params | None = None) -> Params:
        """Theta' of one task: one inner step on each of `support`, from the policy's parameters or `theta`."""
        theta = dict(self.policy.named_parameters()) if theta is None else theta
        adapting = {name: theta[name] for name in self.adapted_names}

        def loss(adapting: Params, episodes: Experience) -> Tensor:
            return self.inner_loss({**theta, **adapting}, episodes)

        return {**theta, **adapt(loss, adapting, support, self.inner)}

    def experience(self, rollouts: Rollouts) -> Experience:
        """Episodes with their advantages, standardised per task."""
        estimates = advantages(rollouts, self.discount, self.gae_lambda)
        return Experience(rollouts.observations, rollouts.actions, estimates, rollouts.valid, rollouts.behaviour)

    def collect(
        self,
        params: Params,
        tasks: Tensor,
        generator: torch.Generator,
        rollouts: int | None = None,
        *,
        per_task: bool = True,
        budget: Budget | None = None,
        streams: int = 1,
    ) -> Rollouts:
        """Episodes of every task; `params` as `headstart.rl.rollout.collect` takes them, the rest as `trajectory`."""
        size, horizon = (len(tasks), self.rollouts if rollouts is None else rollouts), self.problem.horizon

        def some(start: Tensor | None = None) -> Rollouts:
            shape = size if start is None else (start.shape[0], start.shape[1])
            if shape not in self._environments:  # simulators are costly to make
                self._environments[shape] = self.problem.environments(*shape)
            environments = self._environments[shape]
            return collect(self.policy, params, environments, tasks, horizon, generator, per_task=per_task, start=start)

        if (self.budget if budget is None else budget) == "episodes":
            return some()
        return filled(some, size, size[1] * horizon, streams)

    def over(self, fn: Any, episodes: Sequence[Experience]) -> Any:
        """`fn` of every task's `Task(support, query)`: what each inner step learns from, and what is judged by."""
        return over_tasks(fn, Task(tuple(episodes[:-1]), episodes[-1]), "vmap", self.chunk_size)[0]

    def _stepped(self, params: Params, adapting: Params, episodes: Experience, inner: InnerOptimizer, state: Any):
        def step(params: Params, adapting: Params, episodes: Experience, state: Any) -> tuple[Params, Any]:
            def loss(adapting: Params, episodes: Experience) -> Tensor:
                return self.inner_loss({**params, **adapting}, episodes)

            return inner_step(loss, adapting, episodes, inner, state)

        return torch.vmap(step)(params, adapting, episodes, state)


@torch.no_grad()
def _check_fits(policy: nn.Module, problem: Problem) -> None:
    """Shapes only: of what type the numbers are is seen when it acts."""
    name, size = type(problem).__name__, problem.observation_size
    like = next(policy.parameters(), torch.empty(0))
    try:
        distribution = policy(torch.zeros(1, size, dtype=like.dtype, device=like.device))
    except RuntimeError as error:
        raise ValueError(f"The policy does not take the {size} numbers that {name} lets it observe: {error}") from error
    discrete = problem.actions == "discrete"
    chosen = tuple(distribution.sample(torch.Generator(like.device)).shape[1:])
    choices = distribution.logits.shape[-1] if isinstance(distribution, Categorical) else problem.action_size
    if chosen != (() if discrete else (problem.action_size,)) or choices != problem.action_size:
        wanted = f"one of {problem.action_size} choices" if discrete else f"{problem.action_size} numbers"
        fitting = CategoricalPolicy if discrete else GaussianPolicy
        raise ValueError(
            f"The policy's actions are not those of {name}, {wanted}: give a policy such as "
            f"headstart.models.{fitting.__name__}(problem.observation_size, problem.action_size)."
        )
