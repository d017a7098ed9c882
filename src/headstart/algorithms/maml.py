"""Model-agnostic meta-learning: Algorithms 1 and 2 of Finn, Abbeel and Levine (2017).

    code                         paper                       shape
    model's named parameters     theta                       name -> tensor
    inner.lr                     alpha                       a number, or a tensor per parameter
    the outer optimiser's rate   beta                        a number
    tasks.support, tasks.query   D_i, D'_i                   [tasks, examples, ...]
    query_loss(adapted, task)    L_Ti(f_theta'_i) on D'_i    scalar
    forward(tasks)               the sum of line 8           scalar

Differs: the meta-loss is the mean over tasks where line 8 has the sum, as in the released code, so that the
outer step size does not depend on the meta-batch size.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headstart import layers
from headstart.adapt import adapt, inner_step, trajectory
from headstart.algorithms.names import matching, put, trainable
from headstart.inner import SGD, InnerOptimizer
from headstart.layers import NORMS, Norm, Seen
from headstart.losses import Criterion, criterion_with_params
from headstart.recompute import ClosureError
from headstart.types import Batch, LossFn, Params, Task
from headstart.vectorize import Vectorize, over_tasks, stack

RECOMPUTE_FROM = 20
"""Inner steps from which `recompute="auto"` recomputes: there the plain path's peak memory is two to four times that
of one step on images. It costs a third to a half more time on those, and twice the time on the sinusoids' small
network, so that it is not for the usual few steps (`python -m benchmarks.memory`)."""

_log = logging.getLogger(__name__)


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
        inner: The inner optimiser; or a module that gives one when called, whose parameters (step sizes, say) then
            are meta-parameters too.
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
        recompute: Keep for the meta-gradient only the parameters after each inner step, and compute each step
            again backwards; see `headstart.recompute`. `"auto"`: with `RECOMPUTE_FROM` steps or more, unless
            first-order or impossible (a loss with learned tensors of its own). Changes speed and memory only.

    Raises:
        ValueError: A pattern matches no parameter, nothing is left to adapt, or a setting is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Criterion,
        *,
        inner: InnerOptimizer | nn.Module | None = None,
        steps: int = 1,
        first_order: bool = False,
        adapt_only: str | Sequence[str] = "*",
        norm: Norm = "support",
        vectorize: Vectorize = "auto",
        chunk_size: int | None = None,
        recompute: bool | Literal["auto"] = "auto",
    ):
        super().__init__()
        _check_choice("norm", norm, NORMS)
        _check_choice("vectorize", vectorize, get_args(Vectorize))
        _check_choice("recompute", recompute, (True, False, "auto"))
        _check_steps(steps)
        self.model = model
        self.criterion = loss if isinstance(loss, nn.Module) else None  # registered: it may have weights of its own
        self.loss = criterion_with_params(loss)
        self.inner = inner if inner is not None else SGD()
        self.steps, self.first_order, self.chunk_size = steps, first_order, chunk_size
        self.norm: Norm = norm
        self.vectorize: Vectorize = vectorize
        self.recompute: bool | Literal["auto"] = recompute
        self.adapted_names = matching(trainable(model), adapt_only)

    def forward(self, tasks: Task | Sequence[Task]) -> Tensor:
        """The meta-loss of a meta-batch, a scalar: its gradient is line 8 of Algorithm 1.

        Args:
            tasks: A `Task` whose tensors are `[tasks, examples, ...]`, or a sequence of single tasks, which
                may differ in their numbers of examples.
        """
        return self.task_losses(tasks).mean()

    def task_losses(self, tasks: Task | Sequence[Task]) -> Tensor:
        """Each task's query loss after adaptation, `[tasks]`."""
        losses, seen = self.outcomes(tasks)
        self.keep_statistics(seen)
        return losses

    def outcomes(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, Seen]:
        """Each task's loss, `[tasks]`, and its batch norms' statistics, which are not kept."""
        try:
            outcomes, self.vectorize = over_tasks(self.outcome, tasks, self.vectorize, self.chunk_size)  # line 3
        except ClosureError as error:
            if self.recompute != "auto":
                raise
            _log.warning("Inner steps cannot be recomputed; keeping all of each in memory instead (%s)", error)
            self.recompute = False
            return self.outcomes(tasks)
        return outcomes

    def outcome(self, task: Task) -> tuple[Tensor, Seen]:
        """One task's query loss after adaptation, and its batch norms' statistics."""
        adapting, _ = self.start(task)
        support_loss, batches = self.support_loss(self.model), self.batches(task.support, self.steps)
        settings = {"first_order": self.first_order, "recompute": self.recomputes}
        adapted = adapt(support_loss, adapting, batches, self.rule(), **settings)  # lines 4-6
        return self.query_loss(adapted, task)  # the summand of line 8

    def start(self, task: Task) -> tuple[Params, Any]:
        """What adapts, where it starts from in this task, and the inner optimiser's state."""
        adapting, _ = self._parts(self.initial(self.model, task.support, self.norm))
        return adapting, self.rule().init(adapting)

    def step(self, adapting: Params, state: Any, task: Task) -> tuple[Params, Any]:
        """One inner step on one task: its `outcome` is `steps` of these from its `start`, then its `query_loss`."""
        (batch,) = self.batches(task.support, 1)
        return inner_step(
            self.support_loss(self.model), adapting, batch, self.rule(), state, first_order=self.first_order
        )

    def query_loss(self, adapting: Params, task: Task, steps: int | None = None) -> tuple[Tensor, Seen]:
        """One task's query loss at its parameters after `steps` (None: all) steps, and its batch norms' statistics."""
        adapted = self.theta(self.model, self.steps if steps is None else steps) | adapting
        outputs, seen = layers.predict(
            self.model, adapted, task.query.inputs, norm=self.norm, support=task.support.inputs
        )
        return self.loss(outputs, task.query.targets, adapted), seen

    @property
    def recomputes(self) -> bool:
        """Whether inner steps are computed again backwards."""
        return self.steps >= RECOMPUTE_FROM if self.recompute == "auto" else self.recompute

    def adapted_parameters(self) -> Params:
        """What adapts, by name, at its meta-learned values; detached."""
        return {name: self.model.get_parameter(name).detach() for name in self.adapted_names}

    # What variants change, each as little of it as it can.

    def rule(self) -> InnerOptimizer:
        """The inner optimiser, at the present values of what it has learned."""
        return self.inner() if isinstance(self.inner, nn.Module) else self.inner

    def theta(self, model: nn.Module, steps: int = 0) -> Params:
        """The meta-learned parameters of `model`, by name, as they are after `steps` inner steps if nothing adapts."""
        return dict(model.named_parameters())

    def initial(self, model: nn.Module, support: Batch, norm: Norm) -> Params:
        """All parameters that a task starts from."""
        return self.theta(model)

    def batches(self, support: Batch, steps: int, model: nn.Module | None = None) -> list[tuple[Params, Batch]]:
        """What each inner step is given: the parameters held fixed, and the support set."""
        _, held = self._parts(self.theta(self.model if model is None else model))
        return [(held, support)] * steps

    def keep_statistics(self, seen: Seen) -> None:
        """Move running buffers towards the statistics of a meta-batch, in training mode."""
        if self.training:
            layers.update_running(self.model, seen)

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
        with torch.no_grad():
            adapting, _ = self._parts(self.initial(adapted, support, norm))
            batches = self.batches(support, steps, adapted)
            adapting = adapt(self.support_loss(adapted, norm), adapting, batches, self.rule())
            put(adapted, self.theta(adapted, steps) | adapting)
        layers.freeze_statistics(adapted, support.inputs, norm)
        return adapted

    @torch.no_grad()
    def predict(
        self,
        tasks: Task | Sequence[Task],
        steps: int | None = None,
        norm: Norm | None = None,
        *,
        one_at_a_time: bool = False,
    ) -> Any:
        """Query outputs before adaptation and after each inner step, without dropout.

        Args:
            tasks: As in `forward`; if they differ in size, then not in the number of queries.
            steps: Gradient steps; None for the number trained with.
            norm: Another norm policy than the learner's.
            one_at_a_time: Predict each query as if it were the only one: under `norm="batch"` that is another
                prediction.

        Returns:
            The model's outputs, `[tasks, steps + 1, examples, ...]`.
        """
        steps, norm = self._checked(steps, norm)
        support_loss, rule = self.support_loss(self.model, norm), self.rule()

        def outputs_per_step(task: Task) -> Any:
            adapting, _ = self._parts(self.initial(self.model, task.support, norm))
            path = trajectory(support_loss, adapting, self.batches(task.support, steps), rule)
            adapted = [self.theta(self.model, taken) | params for taken, params in enumerate(path)]
            asked = {"norm": norm, "support": task.support.inputs, "one_at_a_time": one_at_a_time}
            return stack([layers.predict(self.model, params, task.query.inputs, **asked)[0] for params in adapted])

        with layers.evaluating(self.model):
            outputs, self.vectorize = over_tasks(outputs_per_step, tasks, self.vectorize, self.chunk_size)
        return outputs

    def support_loss(self, model: nn.Module, norm: Norm | None = None) -> LossFn:
        """The inner loss: of what adapts, on a batch of what is held fixed and the support set.

        It looks at no other tensor that is learned, as recomputing asks.
        """

        def support_loss(adapting: Params, batch: tuple[Params, Batch]) -> Tensor:
            held, support = batch
            params = held | adapting
            outputs, _ = layers.run(model, params, support.inputs, norm=norm or self.norm)
            return self.loss(outputs, support.targets, params)

        return support_loss

    def _parts(self, theta: Params) -> tuple[Params, Params]:
        """What adapts, and what is held fixed."""
        adapting = {name: theta[name] for name in self.adapted_names}
        return adapting, {name: p for name, p in theta.items() if name not in adapting}

    def _checked(self, steps: int | None, norm: Norm | None) -> tuple[int, Norm]:
        checked_steps = self.steps if steps is None else steps
        checked_norm = self.norm if norm is None else norm
        _check_steps(checked_steps)
        _check_choice("norm", checked_norm, NORMS)
        return checked_steps, checked_norm


def _check_choice(what: str, given: Any, allowed: Sequence[Any]) -> None:
    if given not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(map(str, allowed))}, got {given!r}.")


def _check_steps(steps: int) -> None:
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, got {steps}.")
