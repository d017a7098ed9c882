"""Sine regression: each task is one sine wave, of its own amplitude and phase (Finn et al. 2017, section 5.1)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.types import Batch, Task, TaskSource


def curve(x: Tensor, amplitude: Tensor | float, phase: Tensor | float) -> Tensor:
    """The exact function values `amplitude * sin(x - phase)`, in the shape the three broadcast to.

    >>> curve(torch.tensor([0.0, math.pi / 2]), amplitude=2.0, phase=0.0)
    tensor([0., 2.])
    """
    return amplitude * torch.sin(x - phase)


@dataclass(frozen=True)
class Sinusoids(TaskSource):
    """Tasks `y = amplitude * sin(x - phase)` with amplitude, phase and every x drawn uniformly, fresh each time.

    Raises:
        ValueError: If a count is below one, or a range is not finite or runs backwards.

    >>> tasks = Sinusoids(shots=5).sample(3, torch.Generator().manual_seed(0))
    >>> tasks.support.inputs.shape, tasks.query.targets.shape
    (torch.Size([3, 5, 1]), torch.Size([3, 10, 1]))
    """

    shots: int = 10
    """Support examples per task."""

    queries: int = 10
    """Query examples per task."""

    amplitude: tuple[float, float] = (0.1, 5.0)
    """Lowest and highest amplitude."""

    phase: tuple[float, float] = (0.0, math.pi)
    """Lowest and highest phase, in radians."""

    x: tuple[float, float] = (-5.0, 5.0)
    """Lowest and highest input, in radians."""

    oracle: bool = False
    """Append the task's amplitude and phase to each input: the paper's upper bound, which needs no adaptation."""

    def __post_init__(self) -> None:
        for name, count in (("shots", self.shots), ("queries", self.queries)):
            if count < 1:
                raise ValueError(f"{name}={count}: give at least 1 example per task")
        for name, (low, high) in (("amplitude", self.amplitude), ("phase", self.phase), ("x", self.x)):
            if not -math.inf < low <= high < math.inf:
                raise ValueError(f"{name}=({low}, {high}): give two finite numbers, the lowest first")

    def sample(self, size: int, generator: torch.Generator) -> Task:
        """A meta-batch of `size` sine tasks.

        Returns:
            Inputs [size, shots, 1] for the support and [size, queries, 1] for the query ([..., 3] with
            `oracle`: x, amplitude, phase) and targets [..., 1]; float32, on the generator's device.
        """
        if size < 1:
            raise ValueError(f"size={size}: a meta-batch holds at least 1 task")
        amplitude, phase = (_uniform(bounds, (size, 1, 1), generator) for bounds in (self.amplitude, self.phase))
        support, query = (
            self._batch(_uniform(self.x, (size, examples, 1), generator), amplitude, phase)
            for examples in (self.shots, self.queries)
        )
        return Task(support, query)

    def _batch(self, x: Tensor, amplitude: Tensor, phase: Tensor) -> Batch:
        targets = curve(x, amplitude, phase)
        if self.oracle:
            x = torch.cat([x, amplitude.expand_as(x), phase.expand_as(x)], dim=-1)
        return Batch(x, targets)


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    draws = torch.empty(shape, dtype=torch.float32, device=generator.device)
    return draws.uniform_(*bounds, generator=generator)
