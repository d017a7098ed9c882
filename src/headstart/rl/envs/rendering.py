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

from headstart.rl.envs.locomotion import Locomotion
from headstart.rl.envs.navigation import Navigation
from headstart.rl.envs.robots import Floats
from headstart.rl.envs.small import GOALS, WIDTH, Bandit, FourStates
from headstart.rl.envs.studio import Picture, Studio
from headstart.rl.problem import Problem

SIZE = (240, 320)
PAPER, GRID, GOAL, AGENT = (255, 255, 255), (205, 210, 215), (46, 139, 87), (31, 90, 180)


class Painter:
    """Draws what was observed in the environments of one problem; close it when done, or use it in a `with`.

    Args:
        problem: Whose observations it will draw.
        size: Height and width of the pictures, in pixels.

    Raises:
        ValueError: Nobody knows how to draw this problem.
        RenderingError: The problem needs OpenGL, and there is none; the message says what to install.
    """

    def __init__(self, problem: Problem, size: tuple[int, int] = SIZE):
        if not isinstance(problem, Locomotion | Navigation | FourStates | Bandit):
            raise ValueError(f"{type(problem).__name__} has no picture: only the problems of headstart.rl.envs do")
        self.problem, self.size = problem, size
        self.studio = Studio(problem.robot, size) if isinstance(problem, Locomotion) else None

    def draw(self, task: Tensor, observation: Tensor) -> Picture:
        """One moment of an environment that is about `task`."""
        seen, task = observation.detach().to(torch.float64).numpy(), task.detach().to(torch.float64)
        if self.studio is not None:
            return self.studio.draw(seen)
        if isinstance(self.problem, Navigation):
            return _draw_navigation(self.size, task.numpy(), seen[:2])
        if isinstance(self.problem, FourStates):
            return _draw_grid(self.size, GOALS[int(task)], int(seen.argmax()))
        return _draw_bars(self.size, task.tolist())

    def close(self) -> None:
        """Frees what OpenGL holds."""
        if self.studio is not None:
            self.studio.close()
            self.studio = None

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


def _draw_navigation(size: tuple[int, int], goal: Floats, position: Floats) -> Picture:
    """The square [-1, 1]^2: where goals can be, the goal as a square and the point as a disc."""
    x, y = _coordinates(size)
    picture = np.full((*size, 3), PAPER, np.uint8)
    picture[np.maximum(abs(x), abs(y)) <= 0.5] = GRID
    picture[np.maximum(abs(x - goal[0]), abs(y - goal[1])) <= 0.05] = GOAL
    picture[np.hypot(x - position[0], y - position[1]) <= 0.05] = AGENT
    return picture


def _draw_grid(size: tuple[int, int], goal: int, cell: int) -> Picture:
    """The 3 x 3 cells: the goal filled, a disc where one is."""
    x, y = (WIDTH / 2 * c for c in _coordinates(size))  # cells of side 1 around the origin
    picture = np.full((*size, 3), PAPER, np.uint8)
    for number in range(WIDTH**2):
        row, column = divmod(number, WIDTH)
        from_x, from_y = abs(x - (column - 1)), abs(y + (row - 1))
        picture[np.maximum(from_x, from_y) <= 0.47] = GOAL if number == goal else GRID
        if number == cell:
            picture[np.hypot(from_x, from_y) <= 0.3] = AGENT
    return picture


def _draw_bars(size: tuple[int, int], probabilities: list[float]) -> Picture:
    """How often each arm pays, as a bar."""
    height, width = size
    picture = np.full((height, width, 3), PAPER, np.uint8)
    for arm, probability in enumerate(probabilities):
        left, right = (int(width * (arm + edge) / len(probabilities)) for edge in (0.1, 0.9))
        picture[:, left:right] = GRID
        picture[height - round(height * probability) :, left:right] = GOAL
    return picture


def _coordinates(size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Each pixel's x, to the right, and y, upwards, with [-1, 1]^2 as large as it fits."""
    height, width = size
    right, up = np.arange(width) + 0.5 - width / 2, height / 2 - np.arange(height) - 0.5
    x, y = np.meshgrid(right * 2 / min(size), up * 2 / min(size))
    return x, y
