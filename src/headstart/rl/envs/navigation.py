"""2-D navigation: a point that is to find a goal it is not shown (Finn et al. 2017, section 5.3)."""

import numpy as np
import torch
from torch import Tensor

from headstart.rl.envs.checks import check_shape, check_size, check_tasks, lost, uniform
from headstart.rl.envs.drawing import AGENT, GOAL, GRID, Artist, Picture, blank, coordinates
from headstart.rl.envs.robots import Floats
from headstart.rl.problem import Environments, Problem, Step

REACH = 0.1
"""The farthest that a point moves along each axis in one time step."""

CLOSE = 0.01
"""An episode ends once both coordinates are closer to the goal than this."""


class Navigation(Problem):
    """Goals drawn evenly from the square [-0.5, 0.5]^2; every episode starts at the origin.

    The observation is the position. An action in [-1, 1]^2, clipped to it, moves the point by at most 0.1 along
    each axis. The reward is minus the distance to the goal after the move.

    Differs: the paper's text has the squared distance; its released code, whose returns the paper prints, the plain
    one, as here.

    Args:
        oracle: Append the goal to the observation: the paper's upper bound, which needs no adaptation.
        horizon: Time steps of an episode.

    >>> problem = Navigation()
    >>> generator = torch.Generator().manual_seed(0)
    >>> environments = problem.environments(num_tasks=3, rollouts=2)
    >>> environments.reset(problem.sample(3, generator), generator).shape
    torch.Size([3, 2, 2])
    """

    action_size = 2

    def __init__(self, oracle: bool = False, horizon: int = 100):
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: an episode has at least 1 time step")
        self.oracle, self.horizon = oracle, horizon
        self.observation_size = 4 if oracle else 2

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Goals, `[size, 2]`."""
        return uniform(-0.5, 0.5, (size, 2), generator)

    def environments(self, num_tasks: int, rollouts: int) -> Environments:
        """`num_tasks x rollouts` points."""
        check_size(num_tasks, rollouts)
        return _Points(self.oracle, num_tasks, rollouts)

    def artist(self, size: tuple[int, int]) -> Artist:
        """Draws the point in the square [-1, 1]^2."""
        return Artist(lambda task, observation: _draw(size, task, observation[:2]))


class _Points(Environments):
    def __init__(self, oracle: bool, num_tasks: int, rollouts: int):
        self.oracle, self.shape = oracle, (num_tasks, rollouts, 2)
        self.positions = self.goals = torch.zeros(self.shape)

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        check_tasks(tasks, (self.shape[0], 2))
        self.goals = tasks.to(torch.float32).unsqueeze(1).expand(self.shape)
        self.positions = torch.zeros(self.shape)
        return self._observe()

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        check_shape("actions", actions, self.shape)
        stuck = lost(actions)
        moved = self.positions + REACH * actions.clamp(-1.0, 1.0)
        self.positions = torch.where(stuck.unsqueeze(-1), self.positions, moved)
        offsets = self.positions - self.goals
        distances = torch.linalg.vector_norm(offsets, dim=-1)
        close = (offsets.abs() < CLOSE).all(dim=-1)
        return Step(self._observe(), torch.where(stuck, torch.nan, -distances), close)

    def _observe(self) -> Tensor:
        return torch.cat([self.positions, self.goals], dim=-1) if self.oracle else self.positions


def _draw(size: tuple[int, int], goal: Floats, position: Floats) -> Picture:
    """The square [-1, 1]^2: where goals can be, the goal as a square and the point as a disc."""
    x, y = coordinates(size)
    picture = blank(size)
    picture[np.maximum(abs(x), abs(y)) <= 0.5] = GRID
    picture[np.maximum(abs(x - goal[0]), abs(y - goal[1])) <= 0.05] = GOAL
    picture[np.hypot(x - position[0], y - position[1]) <= 0.05] = AGENT
    return picture
