"""Evaluation: a fixed list of tasks, every inner step, mean with confidence interval, median, divergences."""

import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from headstart.types import Task, TaskSource, generator

Metric = Callable[[Tensor, Tensor], Tensor]
"""`(outputs [..., examples, features], targets) -> [...]`: one number per task."""


class Predictor(Protocol):
    """What evaluation asks of a learner."""

    def predict(
        self, tasks: Task, steps: int | None = None, norm: Any = None, *, one_at_a_time: bool = False
    ) -> Tensor:
        """Query outputs before adaptation and after each step, `[tasks, steps + 1, examples, ...]`."""
        ...


class StepResult(NamedTuple):
    """A metric over tasks after one number of inner steps; null where every task diverged."""

    step: int
    mean: float | None
    ci95: float | None
    median: float | None
    diverged: int


class Evaluation(NamedTuple):
    """Results per inner step, and the digest of the tasks they were measured on."""

    num_tasks: int
    tasks_digest: str
    per_step: list[StepResult]


TEST, VALIDATION = "test tasks", "evaluation tasks"
"""What a list of tasks is drawn for: each purpose has a random stream of its own, whatever the seed."""

TASKS_AT_ONCE = 50
"""Tasks drawn together. Part of the protocol: with another number the same seed gives other tasks."""


def fixed_tasks(
    source: TaskSource, num_tasks: int, seed: int, purpose: str = TEST, device: torch.device | str = "cpu"
) -> Iterator[Any]:
    """The list of tasks that `seed` and `purpose` stand for, in meta-batches; the same on every device."""
    rng = generator(seed, purpose)
    for start in range(0, num_tasks, TASKS_AT_ONCE):
        tasks = source.sample(TASKS_AT_ONCE, rng)
        kept = min(TASKS_AT_ONCE, num_tasks - start)
        yield pytree.tree_map(lambda leaf, kept=kept: leaf[:kept].to(device), tasks)


def evaluate(
    learner: Predictor,
    batches: Iterator[Task],
    metric: Metric,
    steps: int,
    norm: Any = None,
    one_at_a_time: bool = False,
) -> Evaluation:
    """How well `learner` adapts to the tasks of `batches`, after 0 to `steps` inner steps.

    With `one_at_a_time` each query is predicted as if it were the only one.
    """
    values, digest = [], hashlib.sha256()
    for tasks in batches:
        for leaf in pytree.tree_leaves(tasks):
            digest.update(leaf.cpu().contiguous().numpy().tobytes())
        outputs = learner.predict(tasks, steps, norm, one_at_a_time=one_at_a_time)
        values.append(per_task(outputs, tasks.query.targets, metric))
    table = torch.cat(values)
    results = [summary(step, column) for step, column in enumerate(table.T)]
    return Evaluation(len(table), digest.hexdigest()[:16], results)


def per_task(outputs: Tensor, targets: Tensor, metric: Metric) -> Tensor:
    """The metric of each task after each step, `[tasks, steps + 1]`; NaN where outputs are not finite."""
    values = metric(outputs, targets.unsqueeze(1)).double()
    return values.where(outputs.isfinite().flatten(2).all(-1), math.nan).cpu()


def summary(step: int, values: Tensor) -> StepResult:
    """Mean, 95 % confidence interval of the mean (1.96 deviations / sqrt(tasks)) and median, where finite.

    >>> summary(1, torch.tensor([1.0, 3.0, math.inf]))
    StepResult(step=1, mean=2.0, ci95=1.38593, median=2.0, diverged=1)
    """
    finite = values[values.isfinite()]
    diverged = len(values) - len(finite)
    if not len(finite):
        return StepResult(step, None, None, None, diverged)
    deviation = finite.std(correction=0) if len(finite) > 1 else finite.new_zeros(())
    ci95 = 1.96 * float(deviation) / math.sqrt(len(finite))
    return StepResult(step, _rounded(finite.mean()), _rounded(ci95), _rounded(finite.quantile(0.5)), diverged)


def _rounded(value: Tensor | float) -> float | None:
    """Six digits; None where a sum of huge but finite values overflowed."""
    return float(f"{float(value):.6g}") if math.isfinite(value) else None
