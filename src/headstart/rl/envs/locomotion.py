"""Half-cheetah and ant, each asked for a velocity or for a direction (Finn et al. 2017, section 5.3).

As the paper's environments were: one physics step per action, the velocity of the whole body's centre of mass at the
state after the step, rllab's observations, resets, rewards and endings. Differs: MuJoCo itself, which was 1.31 then.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from headstart.rl.envs.checks import check_shape, check_size, check_tasks, lost
from headstart.rl.envs.drawing import Artist
from headstart.rl.envs.extra import require
from headstart.rl.envs.goals import Direction, Goal, Velocity
from headstart.rl.envs.physics import Physics
from headstart.rl.envs.robots import ANT, HALF_CHEETAH, Floats, Robot
from headstart.rl.envs.studio import Studio
from headstart.rl.problem import Environments, Problem, Step

VELOCITIES = ("subtree", "position-difference")


class Locomotion(Problem):
    """A robot that is to move as its task, one number, says.

    Actions in [-1, 1], clipped to it, span each actuator's range.

    Args:
        oracle: Append the task to the observation: the paper's upper bound, which needs no adaptation.
        frame_skip: Physics steps per action.
        timestep: Seconds of a physics step; the robot's own by default.
        velocity: "subtree", the velocity of the whole body's centre of mass after the step, or
            "position-difference", how far the torso moved over the step, per second.
        horizon: Time steps of an episode.
        threads: Threads that step the simulations, as many as PyTorch uses by default. Results do not depend on it.

    Raises:
        MissingExtraError: MuJoCo or Gymnasium (whose robot models are used) is missing or too old.
    """

    robot: Robot
    goal: Goal

    def __init__(
        self,
        oracle: bool = False,
        *,
        frame_skip: int = 1,
        timestep: float | None = None,
        velocity: Literal["subtree", "position-difference"] = "subtree",
        horizon: int = 200,
        threads: int | None = None,
    ):
        require("mujoco")
        require("gymnasium")
        for name, count in (("frame_skip", frame_skip), ("horizon", horizon), ("threads", threads)):
            if count is not None and count < 1:
                raise ValueError(f"{name}={count}: give at least 1")
        if timestep is not None and not 0 < timestep < 1:
            raise ValueError(f"timestep={timestep}: give seconds between 0 and 1, such as {self.robot.timestep}")
        if velocity not in VELOCITIES:
            raise ValueError(f"velocity={velocity!r}: give one of {', '.join(map(repr, VELOCITIES))}")
        self.oracle, self.frame_skip, self.velocity = oracle, frame_skip, velocity
        self.timestep = timestep or self.robot.timestep
        self.step_s = frame_skip * self.timestep
        self.horizon, self.threads = horizon, threads
        self.observation_size = self.robot.observation_size + oracle
        self.action_size = self.robot.action_size

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Tasks, `[size, 1]`."""
        return self.goal.sample(size, generator)

    def environments(self, num_tasks: int, rollouts: int) -> "Robots":
        """`num_tasks x rollouts` robots."""
        check_size(num_tasks, rollouts)
        return Robots(self, num_tasks, rollouts)

    def artist(self, size: tuple[int, int]) -> Artist:
        """Draws the robot, with a camera that follows it.

        Raises:
            RenderingError: There is no OpenGL to draw with; the message says what to install.
        """
        studio = Studio(self.robot, size)
        return Artist(lambda task, observation: studio.draw(observation), studio.close)


class HalfCheetahVelocity(Locomotion):
    """Half-cheetahs that are each to run at a velocity drawn evenly from [0, 2] m/s."""

    robot, goal = HALF_CHEETAH, Velocity(fastest=2.0)


class HalfCheetahDirection(Locomotion):
    """Half-cheetahs that are each to run forwards (1) or backwards (-1), as fast as they can."""

    robot, goal = HALF_CHEETAH, Direction()


class AntVelocity(Locomotion):
    """Ants that are each to walk at a velocity drawn evenly from [0, 3] m/s."""

    robot, goal = ANT, Velocity(fastest=3.0, bonus=1.0)


class AntDirection(Locomotion):
    """Ants that are each to walk forwards (1) or backwards (-1), as fast as they can."""

    robot, goal = ANT, Direction()


class Robots(Environments):
    """`tasks x rollouts` robots; `physics` holds their simulations, rollouts of one task beside each other."""

    own_threads = True

    def __init__(self, problem: Locomotion, num_tasks: int, rollouts: int):
        self.problem, self.shape = problem, (num_tasks, rollouts)
        threads = problem.threads or torch.get_num_threads()
        self.physics = Physics(problem.robot, num_tasks * rollouts, problem.timestep, threads)
        self.tasks = np.zeros((num_tasks * rollouts, 1))

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        """The first observations, `[tasks, rollouts, observation]`, of robots near their start."""
        check_tasks(tasks, (self.shape[0], 1), self.problem.goal.allowed)
        self.tasks = tasks.to(torch.float64).repeat_interleave(self.shape[1], dim=0).numpy()
        self.physics.reset(generator)
        return self._tensor(self.observe())

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        """One time step of the robots whose episodes go on."""
        check_shape("actions", actions, (*self.shape, self.problem.action_size))
        stuck = lost(actions).reshape(-1).numpy()
        wanted = actions.detach().to(torch.float64).reshape(-1, self.problem.action_size).numpy()
        wanted = np.where(stuck[:, None], 0.0, np.clip(wanted, -1.0, 1.0))
        rewards = np.where(stuck, np.nan, self.advance(wanted, alive.reshape(-1).numpy() & ~stuck))
        fallen = self.problem.robot.fallen
        over = np.zeros(len(rewards), bool) if fallen is None else fallen(self.physics) | self.physics.failed
        terminated = torch.from_numpy(over).reshape(self.shape)
        return Step(self._tensor(self.observe()), self._tensor(rewards), terminated)

    def advance(self, actions: Floats, alive: np.ndarray) -> Floats:
        """Steps the physics with clipped actions `[simulations, action]`; returns the rewards, in float64."""
        before = self.physics.qpos[:, 0].copy()
        self.physics.step(actions, alive, self.problem.frame_skip)
        if self.problem.velocity == "subtree":
            velocity = self.physics.velocity[:, 0]
        else:
            velocity = (self.physics.qpos[:, 0] - before) / self.problem.step_s
        velocity = np.where(self.physics.failed, 0.0, velocity)  # to be put back at the start is not to move
        progress = self.problem.goal.reward(velocity, self.tasks[:, 0])
        return progress + self.problem.robot.bonus(self.physics, actions)

    def observe(self) -> Floats:
        """What the robots observe now, `[simulations, observation]`, in float64."""
        observations = self.physics.observations
        return np.concatenate([observations, self.tasks], axis=1) if self.problem.oracle else observations

    def _tensor(self, values: Floats) -> Tensor:
        # cast by NumPy: PyTorch would wake its threads for this, next to those of the physics
        return torch.from_numpy(values.astype(np.float32).reshape(*self.shape, *values.shape[1:]))
