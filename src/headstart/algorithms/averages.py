"""Averaging in parameter space: one model per task, trained alone; the mean of their parameters is what adapts.

The multi-task baseline of Finn et al. 2017 (appendix C.1, Table 2). It shares MAML's last step, gradient descent on
a new task from one initialisation, and nothing of how that initialisation is found.

Legend:
    models       theta_i            each model's own parameters, stacked   [models, ...]
    average      mean_i theta_i     where adaptation starts
    coefficient  lambda             weight of the regulariser

Differs: the paper trains one model after the other, and pulls each to the mean of those trained before it. Here all
are trained at once, each pulled to the mean of all as they are now.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from headstart import layers
from headstart.losses import Criterion, criterion_with_params
from headstart.types import Metrics, NonFiniteError, Task
from headstart.vectorize import Vectorize, over_tasks

Regularizer = Literal["none", "l2", "to-mean"]
"""What keeps the models alike: nothing, the squared norm of each, or its squared distance from their mean."""


class SeparateModels(nn.Module):
    """As many models as tasks, each learning its own task alone.

    >>> from headstart import Batch
    >>> models = [nn.Linear(1, 1) for _ in range(3)]
    >>> learner = SeparateModels(models, nn.functional.mse_loss)
    >>> batch = Batch(torch.ones(3, 10, 1), torch.zeros(3, 10, 1))  # 10 examples for each model
    >>> learner(Task(support=batch, query=batch)).backward()
    >>> learner.average()
    Linear(in_features=1, out_features=1, bias=True)

    Args:
        models: Of one architecture, each with its own initialisation. Batch norm normalises each
            batch by its own statistics.
        loss: `(outputs, targets) -> scalar`.
        regularizer: See `Regularizer`; over all parameters, biases too.
        coefficient: Its weight; the loss of model i becomes `loss + coefficient * ||theta_i - anchor||^2`.

    Raises:
        ValueError: No models, or a setting is out of range.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        loss: Criterion,
        *,
        regularizer: Regularizer = "none",
        coefficient: float = 0.0,
    ):
        super().__init__()
        if not models:
            raise ValueError("There are no models to average: give at least one.")
        if regularizer not in get_args(Regularizer):
            raise ValueError(f"regularizer must be one of {', '.join(get_args(Regularizer))}, got {regularizer!r}.")
        if not 0 <= coefficient < math.inf:
            raise ValueError(f"coefficient must be a finite number, 0 or more, got {coefficient}.")
        self.models = copy.deepcopy(models[0])  # holds the parameters of all: under each name a stack
        every = [dict(model.named_parameters()) for model in models]
        for name, stacked in self.models.named_parameters():
            stacked.data = torch.stack([parameters[name].detach() for parameters in every])
        self.loss = criterion_with_params(loss)
        self.regularizer: Regularizer = regularizer
        self.coefficient = coefficient
        self.vectorize: Vectorize = "auto"

    def forward(self, tasks: Task) -> Tensor:
        """The sum of all models' losses: its gradient for each model is that of the model's own loss."""
        return (self.errors(tasks) + self.penalties()).sum()

    def errors(self, tasks: Task) -> Tensor:
        """Each model's loss on its own task's query set, without the regulariser, `[models]`.

        Args:
            tasks: As many as there are models, `[models, examples, ...]`. Their support sets are not looked at.
        """

        def error(paired: Task) -> Tensor:
            parameters, examples = paired
            outputs, _ = layers.run(self.models, parameters, examples.inputs)
            return self.loss(outputs, examples.targets, parameters)

        # What is gone over here is pairs of a model and its examples, in the form in which tasks are.
        paired = Task(dict(self.models.named_parameters()), tasks.query)
        errors, self.vectorize = over_tasks(error, paired, self.vectorize)
        return errors

    def penalties(self) -> Tensor:
        """Each model's regulariser, weighted, `[models]`.

        The mean is held constant. The gradient of the sum is the same with the mean differentiated: what that
        would add, `-2 sum_i (theta_i - mean)`, is zero.
        """
        stacks = list(self.models.parameters())
        if self.regularizer == "none":
            return stacks[0].new_zeros(len(stacks[0]))
        if self.regularizer == "to-mean":
            stacks = [stack - stack.detach().mean(0) for stack in stacks]
        return self.coefficient * torch.stack([stack.square().reshape(len(stack), -1).sum(1) for stack in stacks]).sum(
            0
        )

    def average(self) -> nn.Module:
        """The model whose parameters are the mean over all models: an ordinary module, of their class."""
        average = copy.deepcopy(self.models)
        for parameter in average.parameters():
            parameter.data = parameter.data.mean(0)
        return average


class SeparateUpdater:
    """Trains every model on its own task: one Adam over the stacks, which to each model is an Adam of its own.

    Args:
        learner: The models.
        lr: Step size of Adam.
        bound: A model has learned its task when its error is below this.
    """

    def __init__(self, learner: SeparateModels, *, lr: float = 1e-3, bound: float = 0.02):
        self.learner, self.bound, self.updates = learner, bound, 0
        self.optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=lr, fused=True)

    def update(self, tasks: Task) -> Metrics:
        """One step of every model on its own task.

        Returns:
            `meta_loss`, the mean loss with the regulariser; without it, on these examples and before the step,
            `mean_error`, `worst_error`, and `below_bound`, the share of models that have learned their task.

        Raises:
            NonFiniteError: A model's loss or gradient is not finite. No parameter has been updated.
        """
        with _denormals_as_zero():
            errors = self.learner.errors(tasks)
            losses = errors + self.learner.penalties()
            self.optimizer.zero_grad()
            losses.sum().backward()
            self._check(losses)
            self.optimizer.step()
        self.updates += 1
        below = (errors < self.bound).to(errors.dtype)
        numbers = torch.stack([losses.mean(), errors.mean(), errors.max(), below.mean()]).tolist()
        return dict(zip(("meta_loss", "mean_error", "worst_error", "below_bound"), numbers, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Models, optimiser and number of updates."""
        return {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.learner.load_state_dict(state_dict["learner"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.updates = state_dict["updates"]

    def _check(self, losses: Tensor) -> None:
        grads = [p.grad.reshape(len(losses), -1) for p in self.learner.parameters() if p.grad is not None]
        sound = torch.stack([losses.detach(), *(grad.abs().amax(1) for grad in grads)]).isfinite().all(0)
        if not sound.all():
            first = int((~sound).nonzero()[0])
            told = f"is {losses[first].item()}" if not losses[first].isfinite() else "is finite, its gradient is not"
            raise NonFiniteError(f"the loss of model {first} (of {len(losses)}) {told}")


@contextmanager
def _denormals_as_zero() -> Iterator[None]:
    """Numbers below 1e-38 count as zero on the CPU, as they do on a GPU; then whatever was so before.

    Weight decay takes the weights of idle units, and with them Adam's averages, down to such numbers, with which
    a CPU computes slowly: 1,000 updates of 50 regressors took 7 s without this by the third thousand, 4 s with it.
    """
    before = bool(torch.tensor([1e-40]).mul(1.0) == 0)  # there is no other way to ask
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
