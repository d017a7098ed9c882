"""Sampling: every environment of every task steps together, and the policy is evaluated once for all of them."""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart.models.policy import Distribution
from headstart.rl.problem import Environments
from headstart.swap import call_with
from headstart.threads import on_threads
from headstart.types import Params

Act = Callable[[Params, Tensor], Distribution]


@runtime_checkable
class Stacked(Protocol):
    """A policy that says how it acts with stacked parameters, quicker than `torch.vmap` would."""

    def stacked(self, params: Params, observations: Tensor) -> Distribution:
        """From parameters `[tasks, ...]` and observations `[tasks, rollouts, observation]`.

        A Gaussian's `log_std`, if it is the same for all rollouts of a task, may be `[tasks, 1, action]`.
        """
        ...


Budget = Literal["episodes", "steps"]
"""What sampling counts: episodes, or the time steps of those complete by then."""


class Rollouts(NamedTuple):
    """Episodes; each tensor starts with `[tasks, rollouts, time]`, but `terminated`, which has no time.

    The time axis is as long as the longest episode. What is not `valid` does not count; rewards are zero there. A
    rollout with no valid step is no episode, but the place of one where another task has more.
    """

    observations: Tensor
    """What the policy saw, `[tasks, rollouts, time, observation]`."""
    actions: Tensor
    """What it did, in its own units, before environments clip: `[..., time, action]`, or `[..., time]` if discrete."""
    rewards: Tensor
    """`[tasks, rollouts, time]`."""
    valid: Tensor
    """Bool: the episode still went on when this step was taken."""
    terminated: Tensor
    """`[tasks, rollouts]`, bool: ended by itself; otherwise it was cut off at the horizon.

    As in the released code, advantages take either as the end of all rewards.
    """
    behaviour: Distribution
    """The distribution that each action was drawn from."""

    @property
    def present(self) -> Tensor:
        """Which rollouts are episodes, `[tasks, rollouts]`, bool."""
        return self.valid[..., 0]

    def returns(self) -> Tensor:
        """The undiscounted return of every episode, `[tasks, rollouts]`."""
        return self.rewards.sum(-1)

    def mean_returns(self) -> Tensor:
        """The mean over a task's episodes of the undiscounted return, `[tasks]`."""
        return self.returns().sum(1) / self.present.sum(1)

    @property
    def steps(self) -> int:
        """Environment steps in all."""
        return int(self.valid.sum())


@torch.no_grad()
def collect(
    policy: nn.Module,
    params: Params,
    environments: Environments,
    tasks: Tensor,
    horizon: int,
    generator: torch.Generator,
    *,
    per_task: bool = True,
    start: Tensor | None = None,
) -> Rollouts:
    """One episode of every environment.

    Args:
        policy: From observations to a distribution over actions.
        params: Its parameters, by name; with a leading tasks axis if `per_task`, else the same for all tasks.
        environments: To be reset and stepped; their numbers of tasks and rollouts are those of the result.
        tasks: What each row of environments is about, `[tasks, task]`.
        horizon: Time steps at most.
        generator: Everything random is drawn from it, in the environments too.
        per_task: Whether each task has parameters of its own.
        start: Which environments to start, bool `[tasks, rollouts]`; all unless given.
    """
    _check_given(params, len(tasks) if per_task else None, horizon)

    def act(params: Params, observations: Tensor) -> Distribution:
        return call_with(policy, params, (observations,), {})

    def whole(leaf: Tensor) -> Tensor:
        return leaf.expand(*observations.shape[:2], *leaf.shape[2:])

    batched = torch.vmap(act) if per_task else act
    observations = environments.reset(tasks, generator).clone()  # environments may use their memory again
    if per_task and isinstance(policy, Stacked):
        batched = _checked(policy, batched, params, observations)
    alive = torch.ones(observations.shape[:2], dtype=torch.bool) if start is None else start
    if alive.shape != observations.shape[:2]:
        raise ValueError(
            f"start must say of each of {tuple(observations.shape[:2])} environments whether it starts, "
            f"got {tuple(alive.shape)}."
        )
    terminated = torch.zeros_like(alive)
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor, Distribution]] = []
    with on_threads(1 if environments.own_threads else None):
        for _ in range(horizon):
            distribution = batched(params, observations)
            actions = distribution.sample(generator)
            step = environments.step(actions, alive)
            drawn_from = pytree.tree_map(whole, distribution)
            seen.append((observations, actions, torch.where(alive, step.rewards, 0.0), alive, drawn_from))
            ended = alive & step.terminated
            terminated = terminated | ended
            alive = alive & ~ended
            if not alive.any():
                break
            observations = torch.where(alive.unsqueeze(-1), step.observations, 0.0)
    observed, acted, rewarded, valid, behaviour = pytree.tree_map(lambda *leaves: torch.stack(leaves, dim=2), *seen)
    return Rollouts(observed, acted, rewarded, valid, terminated, behaviour)


def _check_given(params: Params, num_tasks: int | None, horizon: int) -> None:
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}.")
    for name, p in params.items():
        if num_tasks is not None and (p.dim() == 0 or p.shape[0] != num_tasks):
            raise ValueError(f"Parameter {name!r} of shape {tuple(p.shape)} has no leading axis of {num_tasks} tasks.")


def _checked(policy: Stacked, mapped: Act, params: Params, observations: Tensor) -> Act:
    """The policy's own way to act with stacked parameters, seen to agree with `mapped`, which is by `torch.vmap`."""
    for own, theirs in zip(policy.stacked(params, observations), mapped(params, observations), strict=True):
        if not torch.allclose(own, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"{type(policy).__name__}.stacked does not give what its forward gives: where a subclass changes "
                "forward, it has to change stacked alike."
            )
    return policy.stacked


def filled(sample: Callable[[Tensor], Rollouts], shape: tuple[int, int], steps: int, streams: int) -> Rollouts:
    """Episodes of every task until those complete have `steps` time steps together: what the released code samples.

    It restarts what has finished, in one stream of episodes per task in training, and in as many as there are
    rollouts in evaluation. An episode cut off there is left out. So where good episodes are short ones, a mean over
    them is above that of a fixed number of episodes. Differs: each task stops by itself; the released code stops all
    tasks of a training iteration at one time, so that a task may have an episode less.

    Args:
        sample: From which environments to start, bool `[tasks, rollouts]`, to their episodes. With one stream it is
            asked for fewer rollouts where few are missing.
        shape: Numbers of tasks and rollouts.
        steps: Time steps per task.
        streams: 1, or as many as rollouts.
    """
    if streams not in (1, shape[1]):
        raise ValueError(f"streams must be 1 or the number of rollouts, {shape[1]}, got {streams}.")
    wanted = torch.ones(shape, dtype=torch.bool)
    parts: list[Rollouts] = []
    while True:
        parts.append(sample(wanted))
        lengths = torch.cat([part.valid.sum(2) for part in parts], 1)  # [tasks, rounds x rollouts]
        ended = (lengths if streams == 1 else lengths.unflatten(1, (-1, streams))).cumsum(1).view(lengths.shape)
        ended = torch.where(lengths > 0, ended, torch.iinfo(ended.dtype).max)
        order = ended.argsort(dim=1, stable=True)
        enough = lengths.gather(1, order).cumsum(1) >= steps
        reached = enough.any(1)
        last = ended.gather(1, order).gather(1, enough.int().argmax(1, keepdim=True))  # the time that is complete by
        if streams > 1:  # each has to have been followed until then
            wanted = ~reached.unsqueeze(1) | (lengths.unflatten(1, (-1, streams)).sum(1) < last)
        else:
            usual = lengths.sum(1) / (lengths > 0).sum(1)
            missing = ((steps - lengths.sum(1)) / usual).ceil().clamp(0, shape[1]).int()
            wanted = torch.arange(_width(int(missing.max()), shape[1])) < missing.unsqueeze(1)
        if not wanted.any():
            break
    length = max(part.valid.shape[2] for part in parts)
    joined = pytree.tree_map(lambda *leaves: torch.cat([_padded(leaf, length) for leaf in leaves], dim=1), *parts)
    return _selected(joined, ended <= last)


def _width(needed: int, most: int) -> int:
    """How many rollouts to step together: of a few sizes only, as each takes simulators of its own."""
    return min(most, 1 << max(needed - 1, 0).bit_length())


def _selected(rollouts: Rollouts, kept: Tensor) -> Rollouts:
    """The rollouts of each task that are `kept`, `[tasks, rollouts]`, in their order; the rest is not valid."""
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : int(kept.sum(1).max())]
    rows = torch.arange(len(kept)).unsqueeze(1)
    chosen: Rollouts = pytree.tree_map(lambda leaf: leaf[rows, order], rollouts)
    valid = chosen.valid & kept[rows, order].unsqueeze(2)
    ended = chosen.terminated & valid[..., 0]
    return chosen._replace(valid=valid, rewards=torch.where(valid, chosen.rewards, 0.0), terminated=ended)


def _padded(leaf: Tensor, length: int) -> Tensor:
    """The time axis, if there is one, filled up with zeros to `length`."""
    if leaf.dim() == 2:
        return leaf
    missing = leaf.new_zeros(*leaf.shape[:2], length - leaf.shape[2], *leaf.shape[3:])
    return torch.cat([leaf, missing], dim=2)


def pooled(rollouts: Rollouts) -> Rollouts:
    """The episodes of all tasks as those of one: `[1, tasks * rollouts, ...]`."""
    return pytree.tree_map(lambda leaf: leaf.flatten(0, 1).unsqueeze(0), rollouts)
