"""Model-agnostic meta-learning: Algorithms 1 and 2 of Finn, Abbeel and Levine (2017).

    code                         paper                       shape
    model's named parameters     theta                       name -> tensor
    inner.lr                     alpha                       a number, or a tensor per parameter
    the outer optimiser's rate   beta                        a number
    tasks.support, tasks.query   D_i, D'_i                   [tasks, examples, ...]
    task_loss(task)              L_Ti(f_theta'_i) on D'_i    scalar
    forward(tasks)               the sum of line 8           scalar

Differs: the meta-loss is the mean over tasks where line 8 has the sum, as in the released code, so that the
outer step size does not depend on the meta-batch size.
"""

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from headstart import layers
from headstart.adapt import adapt, trajectory
from headstart.inner import SGD, InnerOptimizer
from headstart.layers import NORMS, Norm, Seen
from headstart.losses import Criterion, criterion_with_params
from headstart.types import Batch, LossFn, Params, Task
from headstart.vectorize import Vectorize, over_tasks, stack


class MAML(nn.Module):
    """A model whose parameters are meta-learned: a good place to start gradient descent on a new task from.

    >>> learner = MAML(nn.Linear(1, 1), nn.functional.mse_loss, inner=SGD(lr=0.1), steps=1)
    >>> batch = Batch(torch.ones(4, 10, 1), torch.zeros(4, 10, 1))  # 4 tasks of 10 examples
    >>> learner(Task(support=batch, query=batch)).backward()  # the meta-gradient, in the model's parameters
    >>> adapted = learner.adapt(Batch(torch.ones(3, 1), torch.zeros(3, 1)), steps=5)
    >>> type(adapted).__name__
    'Linear'

    Args:
        model: Any module. It is used as it is, and its parameters are the meta-parameters.
        loss: `(outputs, targets) -> scalar`; with a third argument named `params` it is given the
            parameters too. For cross-entropy averaged over examples mind that the paper's released code
            sums over classes: its inner rates are for a loss `ways` times as large.
        inner: The inner optimiser.
        steps: Inner steps in training, and wherever no other number is given. With 0 the model is trained
            on the tasks' query sets jointly, without adaptation: the paper's pretrained baseline.
        first_order: Treat inner gradients as constants (FOMAML). About a third less work.
        adapt_only: Name patterns (as in file names, `*` and `?`) of the parameters that adapt; a pattern
            that starts with `!` takes its matches out again. All others are meta-learned but held fixed
            within a task. Parameters that do not require gradients are neither.
        norm: Where batch norm takes its statistics from; see `headstart.layers.Norm`.
        vectorize: How tasks are computed together; see `headstart.vectorize.over_tasks`.
        chunk_size: Tasks per `vmap`; None for the whole meta-batch. Changes speed and memory only, and which
            random numbers dropout draws.

    Raises:
        ValueError: A pattern matches no parameter, nothing is left to adapt, or a setting is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        *,
        inner: InnerOptimizer | None = None,
        steps: int = 1,
        first_order: bool = False,
        adapt_only: str | Sequence[str] = "*",
        norm: Norm = "support",
        vectorize: Vectorize = "auto",
        chunk_size: int | None = None,
    ):
        super().__init__()
        _check_choice("norm", norm, NORMS)
        _check_choice("vectorize", vectorize, get_args(Vectorize))
        _check_steps(steps)
        self.model = model
        self.criterion = loss if isinstance(loss, nn.Module) else None  # registered: it may have weights of its own
        self.loss = criterion_with_params(loss)
        self.inner = inner if inner is not None else SGD()
        self.steps, self.first_order, self.chunk_size = steps, first_order, chunk_size
        self.norm: Norm = norm
        self.vectorize: Vectorize = vectorize
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        self.adapted_names = matching(trainable, adapt_only)

    def forward(self, tasks: Task | Sequence[Task]) -> Tensor:
        """The meta-loss of a meta-batch, a scalar: its gradient is line 8 of Algorithm 1.

        Args:
            tasks: A `Task` whose tensors are `[tasks, examples, ...]`, or a sequence of single tasks, which
                may differ in their numbers of examples.
        """
        return self.task_losses(tasks).mean()

    def task_losses(self, tasks: Task | Sequence[Task]) -> Tensor:
        """Each task's query loss after adaptation, `[tasks]`."""
        theta: Params = dict(self.model.named_parameters())

        def task_loss(task: Task) -> tuple[Tensor, Seen]:
            support_loss, fast = self._support_loss(self.model, theta)
            batches = [task.support] * self.steps
            adapted = theta | adapt(support_loss, fast, batches, self.inner, first_order=self.first_order)  # lines 4-6
            outputs, seen = self._query(self.model, adapted, task, self.norm)
            return self.loss(outputs, task.query.targets, adapted), seen  # the summand of line 8

        (losses, seen), self.vectorize = over_tasks(task_loss, tasks, self.vectorize, self.chunk_size)  # line 3
        if self.training:
            layers.update_running(self.model, seen)
        return losses

    def adapt(self, support: Batch, steps: int | None = None, norm: Norm | None = None) -> nn.Module:
        """The model adapted to one task: a copy with its own parameters, in evaluation mode.

        It is an ordinary module of the model's own class: save it, export it, put it to use. Under
        `norm="support"` its batch norms hold the support set's statistics at the adapted parameters, and a
        prediction does not depend on what else is predicted with it.

        Args:
            support: The task's examples, `[examples, ...]`.
            steps: Gradient steps; None for the number trained with.
            norm: Another norm policy than the learner's.
        """
        steps, norm = self._checked(steps, norm)
        adapted = copy.deepcopy(self.model).eval()
        theta = {name: p.detach() for name, p in adapted.named_parameters()}
        support_loss, fast = self._support_loss(adapted, theta, norm)
        with torch.no_grad():
            fast = adapt(support_loss, fast, [support] * steps, self.inner)
            for name, value in fast.items():
                adapted.get_parameter(name).copy_(value)
        layers.freeze_statistics(adapted, support.inputs, norm)
        return adapted

    @torch.no_grad()
    def predict(self, tasks: Task | Sequence[Task], steps: int | None = None, norm: Norm | None = None) -> Any:
        """Query outputs before adaptation and after each inner step, without dropout.

        Args:
            tasks: As in `forward`; if they differ in size, then not in the number of queries.
            steps: Gradient steps; None for the number trained with.
            norm: Another norm policy than the learner's.

        Returns:
            The model's outputs, `[tasks, steps + 1, examples, ...]`.
        """
        steps, norm = self._checked(steps, norm)
        theta: Params = dict(self.model.named_parameters())

        def outputs_per_step(task: Task) -> Any:
            support_loss, fast = self._support_loss(self.model, theta, norm)
            path = trajectory(support_loss, fast, [task.support] * steps, self.inner)
            return stack([self._query(self.model, theta | params, task, norm)[0] for params in path])

        with layers.evaluating(self.model):
            outputs, self.vectorize = over_tasks(outputs_per_step, tasks, self.vectorize, self.chunk_size)
        return outputs

    def _support_loss(self, model: nn.Module, theta: Params, norm: Norm | None = None) -> tuple[LossFn, Params]:
        """The inner loss as a function of the adapted parameters alone, and where these start."""

        def support_loss(fast: Params, support: Batch) -> Tensor:
            params = theta | fast
            outputs, _ = layers.run(model, params, support.inputs, norm=norm or self.norm)
            return self.loss(outputs, support.targets, params)

        return support_loss, {name: theta[name] for name in self.adapted_names}

    def _query(self, model: nn.Module, params: Params, task: Task, norm: Norm) -> tuple[Any, Seen]:
        return layers.predict(model, params, task.query.inputs, norm=norm, support=task.support.inputs)

    def _checked(self, steps: int | None, norm: Norm | None) -> tuple[int, Norm]:
        checked_steps = self.steps if steps is None else steps
        checked_norm = self.norm if norm is None else norm
        _check_steps(checked_steps)
        _check_choice("norm", checked_norm, NORMS)
        return checked_steps, checked_norm


def matching(names: Sequence[str], patterns: str | Sequence[str]) -> tuple[str, ...]:
    """The names that `patterns` select, in their own order.

    >>> matching(["body.weight", "body.bias", "head.weight"], ["*", "!body.*"])
    ('head.weight',)

    Raises:
        ValueError: A pattern matches no name, or none is left.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    chosen: set[str] = set()
    for pattern in patterns:
        hits = set(fnmatch.filter(names, pattern.removeprefix("!")))
        if not hits:
            raise ValueError(f"The pattern {pattern!r} matches no trainable parameter; there are: {', '.join(names)}.")
        chosen = chosen - hits if pattern.startswith("!") else chosen | hits
    if not chosen:
        raise ValueError(f"The patterns {patterns} leave nothing to adapt; there are: {', '.join(names)}.")
    return tuple(name for name in names if name in chosen)


def _check_choice(what: str, given: Any, allowed: Sequence[Any]) -> None:
    if given not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {given!r}.")


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}.")
