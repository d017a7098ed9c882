"""What reinforcement learning asks of a family of environments: tasks to draw, and environments that step together.

A task is a row of numbers (a goal, a velocity, a direction); the environments of every task and every rollout take
each time step at once, so that the policy is evaluated once per time step for all of them.
"""

from abc import abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headstart.types import TaskSource


class Step(NamedTuple):
    """What a time step of all environments gives; each tensor starts with `[tasks, rollouts]`."""

    observations: Tensor
    """`[tasks, rollouts, observation]`, after the step."""
    rewards: Tensor
    """`[tasks, rollouts]`."""
    terminated: Tensor
    """`[tasks, rollouts]`, bool: the task itself ended the episode (its horizon does not count as that)."""


class Environments:
    """`tasks x rollouts` environments that are reset and stepped together; made by `Problem.environments`.

    Whatever is random in them is drawn from the generator given to `reset`: the same seed, the same episodes.
    """

    own_threads: bool = False
    """Whether they step on threads of their own. PyTorch then acts on one: its others would spin between two steps."""

    @abstractmethod
    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """The first observations, `[tasks, rollouts, observation]`, float32.

        Args:
            tasks: What each row of environments is about, `[tasks, task]`.
            generator: On the CPU; environments that draw numbers while they step keep it.
        """

    @abstractmethod
    def step(self, actions: Tensor, alive: Tensor) -> Step:
        """One time step.

        Args:
            actions: `[tasks, rollouts, action]` in the policy's units (float32; int64 `[tasks, rollouts]` where
                actions are discrete); environments clip and scale them to their own.
            alive: `[tasks, rollouts]`, bool: episodes that still go on. The others need not be stepped, and what
                is returned for them does not count.
        """


class Problem(TaskSource):
    """A family of environments, one for each task.

    `sample(size, generator)` draws tasks, `[size, task]`, float32.
    """

    observation_size: int
    action_size: int
    """Numbers per action; where actions are discrete, how many there are to choose from."""
    actions: Literal["continuous", "discrete"] = "continuous"
    horizon: int
    """Time steps after which an episode is cut off."""
    step_s: float = 0.02
    """Seconds that a time step takes; where nothing is simulated, for whoever watches."""

    @abstractmethod
    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Tasks, `[size, task]`."""

    @abstractmethod
    def environments(self, num_tasks: int, rollouts: int) -> Environments:
        """`num_tasks x rollouts` environments, to be reset before use.

        Learners ask for several sizes, keep what they are given, and use one after another.
        """
