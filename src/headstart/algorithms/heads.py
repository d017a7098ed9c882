"""A head made for each task, so that one model serves any number of classes.

The linear layer that gives the outputs is replaced, within a task, by one with a row for each of its classes. Where
these rows come from is what the learners of this kind differ in; then body and head adapt as in MAML.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from headstart import layers
from headstart.algorithms.maml import MAML
from headstart.algorithms.names import head_of
from headstart.layers import Norm, Seen
from headstart.losses import Criterion
from headstart.types import Batch, Params, Task


class TaskHead(MAML, ABC):
    """MAML whose head is made for each task: the interface of learners for any number of classes.

    Adaptation and prediction count a task's classes in its support labels, 0 to ways - 1. The tasks of a meta-batch
    have the same number of them.

    Args:
        model: A module whose outputs a linear layer makes.
        loss: As in `MAML`.
        ways: Classes per task in training; None to count them in the labels, which compiled code cannot.
        head: Name of the linear layer; None for the last one.
        settings: As in `MAML`; the head is among what adapts.

    Raises:
        ValueError: There is no such layer, or it is held fixed.
    """

    def __init__(
        self, model: nn.Module, loss: Criterion, *, ways: int | None = None, head: str | None = None, **settings: Any
    ):
        super().__init__(model, loss, **settings)
        self.head = head_of(model) if head is None else head
        if not isinstance(model.get_submodule(self.head), nn.Linear):
            raise ValueError(f"The head {self.head!r} is not a linear layer: name one that is.")
        self.weight, self.bias = (f"{self.head}.{kind}".removeprefix(".") for kind in ("weight", "bias"))
        own = {f"{self.head}.{name}".removeprefix(".") for name, _ in model.get_submodule(self.head).named_parameters()}
        if self.weight not in own or not own <= set(self.adapted_names):
            raise ValueError(
                f"The head {self.head!r} is made for each task: its weight and bias must be its own and adapt; what "
                f"adapts is {', '.join(self.adapted_names)}."
            )
        self.ways, self._present = ways, ways

    @abstractmethod
    def make_head(self, theta: Params, support: Batch, model: nn.Module, norm: Norm) -> tuple[Tensor, Tensor]:
        """Weight `[ways, features]` and bias `[ways]` of the head that a task starts from."""

    def initial(self, model: nn.Module, support: Batch, norm: Norm) -> Params:
        """All parameters that a task starts from, with the head made for it."""
        theta = super().initial(model, support, norm)
        weight, bias = self.make_head(theta, support, model, norm)
        made = {self.weight: weight, self.bias: bias}
        return theta | {name: value for name, value in made.items() if name in theta}

    def outcomes(self, tasks: Task | Sequence[Task]) -> tuple[Tensor, Seen]:
        """As in `MAML`."""
        with self.counted(tasks, self.ways):
            return super().outcomes(tasks)

    def adapt(self, support: Batch, steps: int | None = None, norm: Norm | None = None) -> nn.Module:
        """As in `MAML`; the adapted model has an output for each class of `support`."""
        with self.counted(Task(support, support)):
            return super().adapt(support, steps, norm)

    def predict(self, tasks: Task | Sequence[Task], *args: Any, **kwargs: Any) -> Any:
        """As in `MAML`, with as many outputs as the tasks have classes."""
        with self.counted(tasks):
            return super().predict(tasks, *args, **kwargs)

    @contextmanager
    def counted(self, tasks: Task | Sequence[Task], ways: int | None = None) -> Iterator[None]:
        """The number of classes known, which `vmap` must not ask for."""
        if ways is None:
            ways = _count_ways(tasks)
        before, self._present = self._present, ways
        try:
            yield
        finally:
            self._present = before

    @property
    def present(self) -> int:
        """Classes of the tasks at hand."""
        assert self._present is not None
        return self._present


def _count_ways(tasks: Task | Sequence[Task]) -> int:
    """Classes of each of `tasks`, by their support labels.

    Raises:
        ValueError: They differ, or a label has no support example.
    """
    if isinstance(tasks, Task):
        labels = tasks.support.targets
        single = list(labels) if labels.dim() > 1 else [labels]
    else:
        single = [task.support.targets for task in tasks]
    found = [labels.unique().tolist() for labels in single]
    for labels in found:
        if labels != list(range(len(labels))):
            raise ValueError(
                f"A head is made from the support labels: give 0 to ways - 1, with an example of each; got {labels}."
            )
    counts = sorted({len(labels) for labels in found})
    if len(counts) > 1:
        raise ValueError(
            f"The tasks of one meta-batch must have the same number of classes, got {counts}: their outputs differ in "
            "size. Give those of each number by themselves."
        )
    return counts[0]


def head_inputs(model: nn.Module, head: str, params: Params, inputs: Any, norm: Norm) -> Tensor:
    """What the layer `head` is given when `model` runs: features `[examples, features]`."""
    given: list[Tensor] = []
    handle = model.get_submodule(head).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        layers.run(model, params, inputs, norm=norm)
    finally:
        handle.remove()
    if not given:
        raise ValueError(f"The head {head!r} is not called when the model runs: name the layer that makes the outputs.")
    return given[-1]
