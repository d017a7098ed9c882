"""The meta-gradient of a learner, computed in one of several ways that differ in speed and memory only.

    eager       as it is written: `vmap` over a chunk of tasks, then `.backward()`
    compiled    the same, recorded and compiled: all in one graph, or, for several inner steps, in three graphs
                (an inner step, its derivative, the last step with the query loss) that a sweep puts together,
                so that compile time does not grow with the number of steps
    graphed     on CUDA: the eager operations captured once, then replayed without launching them one by one

Each adds up chunks of tasks, so that memory does not grow with the meta-batch either.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from headstart.threads import on_threads
from headstart.training.cuda import Replayed
from headstart.training.functional import added, call, chunks, gradients, joined, settings
from headstart.training.products import AsProducts
from headstart.training.sweep import Sweep
from headstart.training.tracing import CannotCompileError, DrawsRandomNumbersError, Traced, first_line
from headstart.types import Params, Task
from headstart.vectorize import count_tasks

Mode = Literal["eager", "compiled", "graphed"]
"""How the meta-gradient is computed: as written, compiled, or (on CUDA) captured and replayed."""
Precision = Literal["float32", "bfloat16"]
"""Type of products and convolutions in both loops; parameters, norms and losses stay in single precision."""

_log = logging.getLogger(__name__)


class Learner(Protocol):
    """What the engine asks of a learner; an `nn.Module` besides."""

    def outcomes(self, tasks: Any) -> tuple[Tensor, Any]:
        """Each task's loss, `[tasks]`, differentiable in the meta-parameters; and statistics, which it only reads."""
        ...

    def keep_statistics(self, seen: Any) -> None:
        """Update running buffers from the statistics of a meta-batch."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]: ...

    def modules(self) -> Iterator[nn.Module]: ...


@runtime_checkable
class StepwiseLearner(Protocol):
    """A learner whose `outcomes` are `steps` times `step` from `start`, then `query_loss`, task by task."""

    steps: int

    @property
    def recomputes(self) -> bool:
        """Whether a step's derivative computes the step again, rather than keep what it computed."""
        ...

    def start(self, task: Task) -> tuple[Params, Any]:
        """What adapts, where it starts from in one task, and the inner optimiser's state."""
        ...

    def step(self, adapting: Params, state: Any, task: Task) -> tuple[Params, Any]:
        """One inner step on one task."""
        ...

    def query_loss(self, adapting: Params, task: Task) -> tuple[Tensor, Any]:
        """One task's loss after adaptation, and statistics."""
        ...


class Engine:
    """Computes meta-gradients of a learner.

    >>> import headstart
    >>> learner = headstart.MAML(nn.Linear(1, 1), nn.functional.mse_loss)
    >>> batch = headstart.Batch(torch.ones(4, 10, 1), torch.zeros(4, 10, 1))  # 4 tasks of 10 examples
    >>> losses = Engine(learner, chunk_size=2).gradient(headstart.Task(batch, batch))
    >>> losses.shape, learner.model.weight.grad.shape
    (torch.Size([4]), torch.Size([1, 1]))

    Args:
        learner: MAML, or another learner by the same contract.
        mode: See `Mode`. What cannot be compiled or captured is computed eagerly from then on; a warning says why.
        chunk_size: Tasks computed together; None for all. Changes speed and memory, not the result.
        precision: See `Precision`.
        threads: Of the CPU; None for as many as PyTorch is set to. Small products are slower on several.

    A compiled or captured meta-gradient belongs to the learner's settings, layers and shapes, and is made anew when
    these change; what a function of yours closes over is a constant of it.

    Raises:
        ValueError: A setting is unknown, or the mode needs a learner on a GPU.
    """

    def __init__(
        self,
        learner: Learner,
        *,
        mode: Mode = "eager",
        chunk_size: int | None = None,
        precision: Precision = "float32",
        threads: int | None = None,
    ):
        for name, given, allowed in (("mode", mode, get_args(Mode)), ("precision", precision, get_args(Precision))):
            if given not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}.")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or None for all tasks at once, got {chunk_size}.")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, or None for as many as PyTorch is set to, got {threads}.")
        device = next(p.device for _, p in learner.named_parameters())
        if mode == "graphed" and device.type != "cuda":
            raise ValueError(
                f"mode='graphed' captures CUDA graphs, and the learner is on {device}: use 'compiled' or 'eager'."
            )
        self.learner, self.chunk_size, self.threads = learner, chunk_size, threads
        self.precision: Precision = precision
        self.mode: Mode = mode
        stepwise = learner if isinstance(learner, StepwiseLearner) else None
        self._by_steps = stepwise  # asked once: whether a protocol is followed takes as long as a small graph
        self._stepwise = stepwise if stepwise is not None and _consistent(stepwise) else None
        self._whole = Traced(self.chunk_gradient, self.static)
        self._sweep = Sweep(learner, self._static_step, self._recorded)
        self._replayed = Replayed(self._accumulate, learner, self.static)

    def gradient(self, tasks: Task | Sequence[Task]) -> Tensor:
        """Each task's loss, `[tasks]`; the gradient of their mean is added to the parameters' `.grad`.

        Args:
            tasks: A `Task` whose tensors are `[tasks, examples, ...]`, or a sequence of single tasks, which may
                differ in their numbers of examples; those are always computed eagerly.
        """
        losses, seen = self.compute(tasks)
        self.learner.keep_statistics(seen)
        return losses

    def compute(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, Any]:
        """As `gradient`, but with the statistics returned instead of kept."""
        with on_threads(self.threads):
            return self._compute(tasks)

    def _compute(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, Any]:
        if self.mode == "compiled" and isinstance(tasks, Task):
            try:
                return self._compiled(tasks)
            except CannotCompileError as error:
                self.fall_back(error)
        if self.mode == "graphed" and isinstance(tasks, Task):
            try:
                return self._replayed(tasks)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                torch.cuda.synchronize()
                self.fall_back(error)
        return self._accumulate(tasks)

    def _accumulate(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, Any]:
        """The eager way: a graph and a backward pass for each chunk."""
        total, results = count_tasks(tasks), []
        for chunk in chunks(tasks, self.chunk_size):
            with self._autocast():
                losses, seen = self.learner.outcomes(chunk)
            (losses.sum() / total).backward()
            results.append((losses.detach(), pytree.tree_map(torch.Tensor.detach, seen)))
        return joined(results)

    def _compiled(self, tasks: Task) -> tuple[Tensor, Any]:
        meta, others = self.values()
        total: Params = {}
        results = []
        for chunk in chunks(tasks, self.chunk_size):
            losses, seen, grads = self._of_chunk(meta, others, chunk)
            total = added(total, grads)
            results.append((losses, seen))
        for name, p in self.learner.named_parameters():
            if name in total:
                # In the parameter's own layout: fused Adam pairs the two as they lie in memory, whatever their strides.
                grad = torch.div(total[name], count_tasks(tasks), out=torch.empty_like(p))
                p.grad = grad if p.grad is None else p.grad + grad
        return joined(results)

    def _of_chunk(self, meta: Params, others: Params, chunk: Task) -> tuple[Tensor, Any, Params]:
        if self.rolled:
            try:
                return self._sweep(meta, others, chunk)
            except DrawsRandomNumbersError as error:  # recomputed, a step would draw others
                _log.info("All inner steps are compiled into one graph: %s.", error)
                self._stepwise = None
        return self._whole(meta, others, chunk)

    def fall_back(self, reason: RuntimeError) -> None:
        """Compute eagerly from now on, and say why."""
        _log.warning("This learner cannot be %s; going on in eager mode (%s).", self.mode, first_line(reason))
        self.mode = "eager"

    def single_graph(self, tasks: Task | Sequence[Task]) -> bool:
        """Whether the meta-gradient of `tasks` is one compiled graph, which the meta-optimiser can be part of."""
        one_chunk = isinstance(tasks, Task) and (self.chunk_size is None or self.chunk_size >= count_tasks(tasks))
        # Not asked: whether the sweep is possible, which shows only later. A resumed run must not change its way.
        several_steps = self._by_steps is not None and self._by_steps.steps > 1
        return self.mode == "compiled" and one_chunk and not several_steps

    def static(self) -> Any:
        """What a recorded graph holds constant."""
        return settings(self.learner)

    def _static_step(self) -> Any:
        """What a recorded inner step holds constant: as much, but not how many there are."""
        return settings(self.learner, but=("steps", "recompute", "chunk_size", "vectorize"))

    @property
    def rolled(self) -> bool:
        """Whether the compiled meta-gradient is put together from pieces, rather than being one graph."""
        if self._stepwise is None or getattr(self.learner, "vectorize", "auto") == "loop":
            return False
        return self._stepwise.steps > 1

    def values(self) -> tuple[Params, Params]:
        """The learner's meta-parameters, and its other tensors: buffers and frozen parameters."""
        named = dict(self.learner.named_parameters())
        meta = {name: p.detach() for name, p in named.items() if p.requires_grad}
        frozen = {name: p.detach() for name, p in named.items() if not p.requires_grad}
        return meta, frozen | dict(self.learner.named_buffers())

    def chunk_gradient(self, meta: Params, others: Params, tasks: Task) -> tuple[Tensor, Any, Params]:
        """Losses, statistics and the gradient of the sum of the losses: what is recorded and compiled."""
        leaves = {name: p.detach().requires_grad_() for name, p in meta.items()}
        with self._recorded():
            losses, seen = call(self.learner, "outcomes", leaves | others, tasks)
        seen = pytree.tree_map(torch.Tensor.detach, seen)
        return losses.detach(), seen, gradients([losses.sum()], None, leaves)

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        with self._autocast(), AsProducts():
            yield

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        device = next(p for _, p in self.learner.named_parameters()).device.type
        # The cache of cast weights would keep a cast made at one level of differentiation for another.
        with torch.autocast(device, torch.bfloat16, enabled=self.precision == "bfloat16", cache_enabled=False):
            yield


def _consistent(learner: StepwiseLearner) -> bool:
    """Whether what `outcomes` are made of is of one class: a subclass with its own `outcome` has not these steps."""
    methods = ("outcomes", "outcome", "step", "batches")
    owners = [next((c for c in type(learner).__mro__ if name in vars(c)), None) for name in methods]
    return len({owner for owner in owners if owner is not None}) == 1
