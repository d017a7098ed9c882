"""Sine waves that stay the same while their points are drawn anew: one wave for each regressor that learns it alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.tasks.sinusoid import Sinusoids, curve
from headstart.types import Batch, Task, TaskSource, generator


@dataclass(frozen=True)
class FixedWaves(TaskSource):
    """The waves that `seed` stands for, in the same order each time; fresh points of them each time.

    >>> source = FixedWaves(Sinusoids(shots=5, queries=50), seed=0)
    >>> source.sample(3, torch.Generator().manual_seed(0)).query.inputs.shape
    torch.Size([3, 50, 1])
    """

    waves: Sinusoids
    """Ranges that amplitude, phase and points are drawn from uniformly, and numbers of points."""
    seed: int
    """Of the amplitudes and phases. Another number of waves, too, is another list of them."""

    def __post_init__(self) -> None:
        if self.waves.oracle:
            raise ValueError("The waves are fixed: a network that learns one alone needs no amplitude and phase.")

    def parameters(self, size: int) -> tuple[Tensor, Tensor]:
        """Amplitudes and phases of the `size` waves, `[size, 1, 1]` each."""
        rng = generator(self.seed, "fixed waves")
        return _uniform(self.waves.amplitude, (size, 1, 1), rng), _uniform(self.waves.phase, (size, 1, 1), rng)

    def sample(self, size: int, generator: torch.Generator) -> Task:
        """Points of all `size` waves, `[size, examples, 1]`; float32, on the generator's device."""
        if size < 1:
            raise ValueError(f"size={size}: there must be at least 1 wave")
        amplitude, phase = (drawn.to(generator.device) for drawn in self.parameters(size))
        support, query = (
            _uniform(self.waves.x, (size, count, 1), generator) for count in (self.waves.shots, self.waves.queries)
        )
        return Task(*(Batch(x, curve(x, amplitude, phase)) for x in (support, query)))


def _uniform(bounds: tuple[float, float], shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    draws = torch.empty(shape, dtype=torch.float32, device=generator.device)
    return draws.uniform_(*bounds, generator=generator)
