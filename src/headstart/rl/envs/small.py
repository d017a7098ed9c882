"""Two small problems with discrete actions, for quick studies of meta-RL."""

import numpy as np
import torch
from torch import Tensor

from headstart.rl.envs.checks import check_shape, check_size, check_tasks, uniform
from headstart.rl.envs.drawing import AGENT, GOAL, GRID, Artist, Picture, blank, coordinates
from headstart.rl.problem import Environments, Problem, Step

WIDTH = 3
"""Cells along each side of the four-state grid."""

CENTRE = 4
"""The cell where an episode starts, counting along the rows."""

GOALS = (3, 5, 1, 7)
"""The goal's cell in each of the four maps: left, right, above and below the start."""

MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""Rows and columns that each action moves by: left, down, right, up."""


class FourStates(Problem):
    """A 3 x 3 grid: one of the four cells next to the start is the goal, all others are holes.

    The observation marks the cell one is in. Reaching the goal gives 1; goal and holes end the episode. (From the
    paper's released code.)

    Args:
        horizon: Time steps of an episode at most.

    >>> problem, generator = FourStates(), torch.Generator().manual_seed(0)
    >>> environments = problem.environments(num_tasks=1, rollouts=2)
    >>> _ = environments.reset(torch.tensor([[0.0]]), generator)  # the goal is on the left
    >>> step = environments.step(torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))  # left, down
    >>> step.rewards.tolist(), step.terminated.tolist()
    ([[1.0, 0.0]], [[True, True]])
    """

    observation_size = WIDTH**2
    action_size = len(MOVES)
    actions = "discrete"

    def __init__(self, horizon: int = 10):
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: an episode has at least 1 time step")
        self.horizon = horizon

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Which of the four maps, 0 to 3, `[size, 1]`."""
        maps = torch.randint(len(GOALS), (size, 1), generator=generator, device=generator.device)
        return maps.to(torch.float32)

    def environments(self, num_tasks: int, rollouts: int) -> Environments:
        """`num_tasks x rollouts` grids."""
        check_size(num_tasks, rollouts)
        return _Grids(num_tasks, rollouts)

    def artist(self, size: tuple[int, int]) -> Artist:
        """Draws the cells."""
        return Artist(lambda task, observation: _draw_grid(size, GOALS[int(task[0])], int(observation.argmax())))


class _Grids(Environments):
    def __init__(self, num_tasks: int, rollouts: int):
        self.shape = (num_tasks, rollouts)
        self.cells = torch.full(self.shape, CENTRE)
        self.goals = torch.zeros(num_tasks, 1, dtype=torch.int64)

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        check_tasks(tasks, (self.shape[0], 1))
        if not set(tasks.flatten().tolist()) <= set(range(len(GOALS))):
            raise ValueError(f"tasks={tasks.flatten().tolist()}: each is the number of a map, 0 to {len(GOALS) - 1}")
        self.goals = torch.tensor(GOALS)[tasks.to(torch.int64)]
        self.cells = torch.full(self.shape, CENTRE)
        return self._observe()

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        check_shape("actions", actions, self.shape)
        down, right = torch.tensor(MOVES)[actions].unbind(dim=-1)
        row, column = self.cells // WIDTH + down, self.cells % WIDTH + right
        moved = row.clamp(0, WIDTH - 1) * WIDTH + column.clamp(0, WIDTH - 1)
        self.cells = torch.where(alive, moved, self.cells)
        return Step(self._observe(), (self.cells == self.goals).to(torch.float32), self.cells != CENTRE)

    def _observe(self) -> Tensor:
        return torch.nn.functional.one_hot(self.cells, WIDTH**2).to(torch.float32)


class Bandit(Problem):
    """A bandit with `arms`, each of which pays 1 with a probability of its own, drawn evenly from [0, 1].

    The observation is always 1: what there is to know is in the rewards. (Studied by Duan et al. 2016, "RL^2".)

    Args:
        arms: How many there are to choose from.
        horizon: Pulls in an episode.

    >>> problem, generator = Bandit(arms=3), torch.Generator().manual_seed(0)
    >>> problem.sample(2, generator).shape
    torch.Size([2, 3])
    """

    observation_size = 1
    actions = "discrete"

    def __init__(self, arms: int = 5, horizon: int = 10):
        if arms < 2:
            raise ValueError(f"arms={arms}: give at least 2")
        if horizon < 1:
            raise ValueError(f"horizon={horizon}: an episode has at least 1 time step")
        self.action_size, self.horizon = arms, horizon

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Each arm's probability to pay, `[size, arms]`."""
        return uniform(0.0, 1.0, (size, self.action_size), generator)

    def environments(self, num_tasks: int, rollouts: int) -> Environments:
        """`num_tasks x rollouts` bandits."""
        check_size(num_tasks, rollouts)
        return _Bandits(self.action_size, num_tasks, rollouts)

    def artist(self, size: tuple[int, int]) -> Artist:
        """Draws the arms."""
        return Artist(lambda task, observation: _draw_bars(size, task.tolist()))


class _Bandits(Environments):
    def __init__(self, arms: int, num_tasks: int, rollouts: int):
        self.arms, self.shape = arms, (num_tasks, rollouts)
        self.probabilities = torch.zeros(num_tasks, arms)
        self.generator = torch.Generator()
        self.observations = torch.ones(*self.shape, 1)

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        check_tasks(tasks, (self.shape[0], self.arms))
        if not bool(((tasks >= 0) & (tasks <= 1)).all()):
            raise ValueError("tasks hold numbers outside [0, 1]: each is an arm's probability to pay")
        self.probabilities, self.generator = tasks.to(torch.float32), generator
        return self.observations

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        check_shape("actions", actions, self.shape)
        pays = torch.rand(self.shape, generator=self.generator) < self.probabilities.gather(1, actions)
        return Step(self.observations, pays.to(torch.float32), torch.zeros(self.shape, dtype=torch.bool))


def _draw_grid(size: tuple[int, int], goal: int, cell: int) -> Picture:
    """The 3 x 3 cells: the goal filled, a disc where one is."""
    x, y = (WIDTH / 2 * c for c in coordinates(size))  # cells of side 1 around the origin
    picture = blank(size)
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
    picture = blank(size)
    for arm, probability in enumerate(probabilities):
        left, right = (int(width * (arm + edge) / len(probabilities)) for edge in (0.1, 0.9))
        picture[:, left:right] = GRID
        picture[height - round(height * probability) :, left:right] = GOAL
    return picture
