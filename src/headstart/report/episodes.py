"""Episodes to show: a run's policy, adapted to a few held-out tasks as in its evaluation."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.recipes import ControlRecipe
from headstart.recipes.work import trained
from headstart.report.records import RunRecord
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.problem import Problem
from headstart.rl.rollout import Rollouts
from headstart.types import Params, generator

SEED = 0
"""Seed of the tasks and episodes shown; they are the first it gives, not chosen."""


class Moment(NamedTuple):
    """A policy after some gradient steps on each task, and the episodes made with it, which the next step uses."""

    step: int
    params: Params
    """With a leading tasks axis."""
    rollouts: Rollouts

    def mean_return(self, task: int) -> float:
        """The mean over the task's episodes."""
        return float(self.rollouts.mean_returns()[task])


class Adapted(NamedTuple):
    """A run's policy before adaptation and after each step, on each of a few tasks."""

    recipe: ControlRecipe
    learner: MAMLRL
    iteration: int
    tasks: Tensor
    moments: tuple[Moment, ...]


def adapted(record: RunRecord, draw: Callable[[Problem], Tensor], steps: int) -> Adapted:
    """The policy of the run's checkpoint, adapted as in its evaluation.

    Args:
        record: A control run with a checkpoint.
        draw: From its family of environments to the tasks, `[tasks, task]`.
        steps: Gradient steps.

    Raises:
        ImportError: The environments need the extra `rl`.
    """
    assert record.checkpoint is not None
    recipe, learner, iteration = trained(record.run, record.checkpoint)
    assert isinstance(recipe, ControlRecipe)
    tasks, rng = draw(learner.problem), generator(SEED, "episodes of the report")
    path = recipe.trajectory(learner, tasks, steps, recipe.eval_rollouts, rng)
    moments = tuple(Moment(step, params, seen) for step, (params, seen) in enumerate(path))
    return Adapted(recipe, learner, iteration, tasks, moments)


def spread_tasks(problem: Problem, count: int) -> Tensor:
    """`count` tasks spread evenly over many drawn ones, in their order, `[count, 1]`; a task is one number."""
    drawn = problem.sample(64, generator(SEED, "tasks of the report")).sort(0).values
    places = (torch.arange(count) + 0.5) / count * len(drawn)
    return drawn[places.long()]
