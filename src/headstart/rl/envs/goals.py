"""What a robot can be asked for: a velocity, or a direction; a task is one number."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from headstart.rl.envs.checks import uniform
from headstart.rl.envs.robots import Floats


class Goal(Protocol):
    """Draws tasks, rewards for them, and says them in words."""

    allowed: ClassVar[tuple[float, ...] | None]
    """The only tasks that there are; None where any finite number is one."""

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Tasks, `[size, 1]`."""
        ...

    def reward(self, velocity: Floats, task: Floats) -> Floats:
        """For moving with `velocity` m/s along x."""
        ...

    def words(self, task: float) -> str:
        """What the task asks of the robot."""
        ...


@dataclass(frozen=True)
class Velocity:
    """A velocity in m/s, drawn evenly from 0 to `fastest`; the reward is how far off one is, negated."""

    fastest: float
    bonus: float = 0.0
    """Added to the reward: where falling ends an episode, not to fall must pay."""

    allowed: ClassVar[tuple[float, ...] | None] = None

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Velocities, `[size, 1]`."""
        return uniform(0.0, self.fastest, (size, 1), generator)

    def reward(self, velocity: Floats, task: Floats) -> Floats:
        """How far the velocity is from what is asked, negated."""
        return self.bonus - np.abs(velocity - task)

    def words(self, task: float) -> str:
        """The velocity."""
        return f"Asked for {task:.2f} m/s"


@dataclass(frozen=True)
class Direction:
    """Forwards (1) or backwards (-1), as fast as one can; the reward is the velocity in that direction."""

    allowed: ClassVar[tuple[float, ...] | None] = (-1.0, 1.0)

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Directions, `[size, 1]`."""
        return torch.where(uniform(0.0, 1.0, (size, 1), generator) < 0.5, -1.0, 1.0)

    def reward(self, velocity: Floats, task: Floats) -> Floats:
        """The velocity in the direction asked for."""
        return task * velocity

    def words(self, task: float) -> str:
        """Forward or backward."""
        return "Forward" if task > 0 else "Backward"
