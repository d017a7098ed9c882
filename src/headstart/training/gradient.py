"""How a learner whose `forward` is a meta-loss is updated: forward, backward, clip, step."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart.threads import on_threads
from headstart.training.engine import Engine, Learner
from headstart.training.fused import Clipping, FusedAdam
from headstart.training.tracing import CannotCompileError
from headstart.types import Metrics, NonFiniteError, Task

Schedule = Literal["constant", "cosine", "linear"]
"""How the meta step size changes: not at all, or down to zero along half a cosine or a line."""


class GradientLearner(Learner, Protocol):
    """What a gradient update asks of a learner; an `nn.Module` besides."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


class GradientUpdater:
    """A learner and its meta-optimiser (Adam, as in the paper).

    Args:
        learner: A learner; the meta-loss is the mean of its tasks' losses.
        engine: How the meta-gradient is computed; eagerly, the whole meta-batch at once, unless given.
        meta_lr: Step size of Adam.
        schedule: See `Schedule`; relative to `iterations`.
        iterations: Length of the run; only the schedule looks at it.
        clip_value: Bound on each element of the meta-gradient; None for none.
        clip_norm: Bound on the norm of the whole meta-gradient; None for none.
    """

    def __init__(
        self,
        learner: GradientLearner,
        engine: Engine | None = None,
        *,
        meta_lr: float = 1e-3,
        schedule: Schedule = "constant",
        iterations: int = 1,
        clip_value: float | None = None,
        clip_norm: float | None = None,
    ):
        self.learner, self.clipping = learner, Clipping(clip_value, clip_norm)
        self.engine = Engine(learner) if engine is None else engine
        named = {name: p for name, p in learner.named_parameters() if p.requires_grad}
        self.parameters = list(named.values())
        # Fused: one pass over memory, and on a GPU one launch, instead of a dozen.
        self.optimizer = torch.optim.Adam(self.parameters, lr=meta_lr, fused=True)
        self.meta_lr, self.factor, self.updates = meta_lr, _factor(schedule, iterations), 0
        self.compiled = FusedAdam(self.engine, self.optimizer, list(named), self.clipping)

    @property
    def rate(self) -> float:
        """Meta step size of the next update."""
        return self.meta_lr * self.factor(self.updates)

    def update(self, tasks: Any) -> Metrics:
        """One meta-update.

        Raises:
            NonFiniteError: A task's loss or gradient is not finite. No parameter has been updated.
        """
        (group,) = self.optimizer.param_groups
        group["lr"] = self.rate
        with on_threads(self.engine.threads):
            metrics = self._update(tasks)
        self.updates += 1
        return metrics

    def _update(self, tasks: Any) -> Metrics:
        if self.engine.single_graph(tasks):
            try:
                losses, seen, norm = self.compiled(tasks)
            except CannotCompileError as error:
                self.engine.fall_back(error)
            else:
                metrics = self._checked(tasks, losses, norm)
                self.learner.keep_statistics(seen)
                return metrics
        self.optimizer.zero_grad()
        losses, seen = self.engine.compute(tasks)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        metrics = self._checked(tasks, losses, norm)  # before clipping, which would make infinity finite
        if self.clipping.value is not None:
            nn.utils.clip_grad_value_(self.parameters, self.clipping.value)
        if self.clipping.norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clipping.norm)
        self.optimizer.step()
        self.learner.keep_statistics(seen)
        return metrics

    def _checked(self, tasks: Any, losses: Tensor, norm: Tensor) -> Metrics:
        meta_loss, size = torch.stack([losses.mean(), norm.to(losses.dtype)]).tolist()  # one wait for the device
        if not math.isfinite(meta_loss):
            values = losses.tolist()
            # If each is finite and only their mean overflows, the largest is to blame.
            task = next((i for i, v in enumerate(values) if not math.isfinite(v)), values.index(max(values)))
            raise NonFiniteError(f"the meta-loss of task {task} (of {len(values)}) is {values[task]}")
        if not math.isfinite(size):
            raise NonFiniteError(f"the meta-gradient of {self._name_task(tasks)} is not finite, its loss is")
        return {"meta_loss": meta_loss, "meta_gradient_norm": size}

    def state_dict(self) -> dict[str, Any]:
        """Learner, optimiser and number of updates."""
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

    def _name_task(self, tasks: Any) -> str:
        """Which task's own gradient is not finite: looked for one by one, after the fact."""
        count = pytree.tree_leaves(tasks)[0].shape[0] if isinstance(tasks, Task) else len(tasks)
        for i in range(count):
            one = (
                [tasks[i]] if not isinstance(tasks, Task) else pytree.tree_map(lambda leaf, i=i: leaf[i : i + 1], tasks)
            )
            grads = torch.autograd.grad(self.learner.outcomes(one)[0].sum(), self.parameters, allow_unused=True)
            if not all(torch.isfinite(g).all() for g in grads if g is not None):
                return f"task {i} (of {count})"
        return "the meta-batch, though of no task alone,"


def _factor(schedule: Schedule, iterations: int) -> Callable[[int], float]:
    match schedule:
        case "constant":
            return lambda iteration: 1.0
        case "linear":
            return lambda iteration: max(0.0, 1 - iteration / iterations)
        case "cosine":
            return lambda iteration: 0.5 * (1 + math.cos(math.pi * min(1, iteration / iterations)))
    raise ValueError(f"schedule must be one of constant, cosine, linear, got {schedule!r}.")
