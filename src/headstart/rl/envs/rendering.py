"""Pictures of episodes, drawn offscreen from what was observed.

>>> from headstart.rl.envs.navigation import Navigation
>>> paths = torch.tensor([[0.0, 0.0], [0.1, 0.1]])
>>> frames(Navigation(), torch.tensor([0.3, -0.2]), paths, size=(64, 64)).shape
(2, 64, 64, 3)
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from headstart.rl.envs.drawing import Artist, Drawable, Picture
from headstart.rl.problem import Problem

SIZE = (240, 320)


class Painter:
    """Draws what was observed in the environments of one problem; close it when done, or use it in a `with`.

    Args:
        problem: Whose observations it will draw.
        size: Height and width of the pictures, in pixels.

    Raises:
        ValueError: The problem does not say how it is drawn; see `headstart.rl.envs.drawing`.
        RenderingError: The problem needs OpenGL, and there is none; the message says what to install.
    """

    def __init__(self, problem: Problem, size: tuple[int, int] = SIZE):
        if not isinstance(problem, Drawable):
            name = type(problem).__name__
            raise ValueError(f"{name} has no picture: give it a method artist(size), see headstart.rl.envs.drawing")
        self.artist: Artist | None = problem.artist(size)

    def draw(self, task: Tensor, observation: Tensor) -> Picture:
        """One moment of an environment that is about `task`."""
        if self.artist is None:
            raise ValueError("This painter is closed: make another one")
        asked, seen = (given.detach().to(torch.float64).numpy() for given in (task, observation))
        return self.artist.draw(asked, seen)

    def close(self) -> None:
        """Frees what drawing holds."""
        if self.artist is not None:
            self.artist.close()
            self.artist = None

    def __enter__(self) -> "Painter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def frames(problem: Problem, task: Tensor, observations: Iterable[Tensor], size: tuple[int, int] = SIZE) -> Picture:
    """Pictures of one episode, `[time, height, width, 3]`.

    Args:
        problem: Whose episode it is.
        task: What it was about, `[task]`.
        observations: What was observed, `[time, observation]`, such as a row of `Rollouts.observations`.
        size: Height and width, in pixels.
    """
    with Painter(problem, size) as painter:
        return np.stack([painter.draw(task, observation) for observation in observations])


def replay(problem: Problem, task: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
    """What is observed while `actions` are taken, `[at most time + 1, observation]`, up to the episode's end.

    Args:
        problem: Whose episode it is.
        task: What it is about, `[task]`.
        actions: One per time step, `[time, action]`.
        generator: The episode's randomness is drawn from it.
    """
    environments = problem.environments(1, 1)
    observations = [environments.reset(task.unsqueeze(0), generator)[0, 0]]
    alive = torch.ones(1, 1, dtype=torch.bool)
    for action in actions:
        step = environments.step(action[None, None], alive)
        observations.append(step.observations[0, 0])
        if bool(step.terminated):
            break
    return torch.stack(observations)
