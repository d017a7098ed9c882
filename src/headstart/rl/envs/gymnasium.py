"""Every problem as a single Gymnasium environment, and your own Gymnasium environments as a problem.

Importing this module registers `headstart/HalfCheetahVelocity-v0` and the others with Gymnasium; `gymnasium.make` does
so by itself if the id names the module: `"headstart.rl.envs.gymnasium:headstart/HalfCheetahVelocity-v0"`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from headstart.rl import envs
from headstart.rl.envs.checks import check_shape, check_size, check_tasks, lost
from headstart.rl.envs.extra import require
from headstart.rl.envs.rendering import Painter
from headstart.rl.problem import Environments, Problem, Step

require("gymnasium")
import gymnasium  # noqa: E402 - after the check that names the extra

REGISTERED = {
    "Navigation2D": ("Navigation", 100),
    "HalfCheetahVelocity": ("HalfCheetahVelocity", 200),
    "HalfCheetahDirection": ("HalfCheetahDirection", 200),
    "AntVelocity": ("AntVelocity", 200),
    "AntDirection": ("AntDirection", 200),
    "FourStates": ("FourStates", 10),
    "Bandit": ("Bandit", 10),
}
"""Gymnasium's name, without `headstart/` and `-v0`: the problem and its horizon."""


class SingleEnvironment(gymnasium.Env):
    """One environment of a problem, with the physics, observations and rewards of the many.

    Args:
        problem: A problem, or the name of one in `headstart.rl.envs`.
        task: What the environment is about, in the problem's numbers; by default drawn anew at each reset.
            `reset(options={"task": ...})` sets it for one episode.
        render_mode: "rgb_array" or nothing.
        **options: Of the problem, if it is given by name; but for its horizon, which is Gymnasium's to keep, by
            `gymnasium.make(..., max_episode_steps=...)`. The horizon of a problem given as such is kept here.

    Raises:
        ValueError: What is given is none of these, or no task of the problem.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        problem: Problem | str,
        task: float | Sequence[float] | None = None,
        render_mode: Literal["rgb_array"] | None = None,
        **options: Any,
    ):
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}: give 'rgb_array' or None")
        if isinstance(problem, str):
            if problem not in envs.__all__:
                raise ValueError(f"problem={problem!r}: give one of {', '.join(envs.__all__)}")
            if "horizon" in options:
                given = options["horizon"]
                raise ValueError(f"horizon={given}: give max_episode_steps={given} to gymnasium.make instead")
            self.horizon = math.inf
            problem = getattr(envs, problem)(**options)
        elif options:
            raise ValueError(f"options {', '.join(options)}: the problem is made already; make it with them")
        else:
            self.horizon = problem.horizon
        assert isinstance(problem, Problem)
        self.problem, self.render_mode = problem, render_mode
        self.metadata = self.metadata | {"render_fps": max(1, round(1 / problem.step_s))}
        self.given = None if task is None else _row(task)
        self.environments = problem.environments(1, 1)
        self.generator, self.time = torch.Generator(), 0
        if self.given is not None:  # refused now, if it is none
            self.environments.reset(self.given.unsqueeze(0), self.generator)
        self.alive = torch.ones(1, 1, dtype=torch.bool)
        self.task = self.observation = torch.empty(0)
        self.painter: Painter | None = None
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (problem.observation_size,), np.float32)
        if problem.actions == "discrete":
            self.action_space = gymnasium.spaces.Discrete(problem.action_size)
        else:
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (problem.action_size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation, and the task."""
        super().reset(seed=seed)
        unknown = set(options or {}) - {"task"}
        if unknown:
            raise ValueError(f"options {', '.join(sorted(unknown))}: the only one is 'task'")
        self.generator.manual_seed(int(self.np_random.integers(2**63)))
        task = (options or {}).get("task", self.given)
        self.task = self.problem.sample(1, self.generator)[0] if task is None else _row(task)
        self.observation, self.time = self.environments.reset(self.task.unsqueeze(0), self.generator)[0, 0], 0
        return self.observation.numpy().copy(), {"task": self.task.numpy().copy()}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One time step."""
        kind = torch.int64 if self.problem.actions == "discrete" else torch.float32
        step = self.environments.step(torch.as_tensor(action, dtype=kind)[None, None], self.alive)
        self.observation, self.time = step.observations[0, 0], self.time + 1
        info = {"task": self.task.numpy().copy()}
        over = bool(step.terminated), self.time >= self.horizon
        return self.observation.numpy().copy(), float(step.rewards), *over, info

    def render(self) -> np.ndarray | None:
        """What there is to see, `[height, width, 3]`, uint8."""
        if self.render_mode is None:
            return None
        if self.painter is None:
            self.painter = Painter(self.problem)
        return self.painter.draw(self.task, self.observation)

    def close(self) -> None:
        """Frees what drawing holds."""
        if self.painter is not None:
            self.painter.close()
            self.painter = None


class GymnasiumProblem(Problem):
    """A family of your own Gymnasium environments, one for each task.

    Observations are flattened (`gymnasium.spaces.flatten`); actions in [-1, 1], clipped to it, span a bounded `Box`,
    and are handed over as they are to an unbounded one; `Discrete` actions are counted from 0.

    Args:
        make: From a task, a NumPy array `[task]`, to its environment.
        draw: From how many and a generator to that many tasks, `[size, task]`.
        horizon: Time steps after which an episode is cut off; by default the environment's own `max_episode_steps`.
        set_task: Gives an environment another task, where that is cheaper than another environment.

    Raises:
        ValueError: An environment's spaces or its horizon are not what this can work with.

    >>> def make(task):
    ...     return gymnasium.make("CartPole-v1", max_episode_steps=50)
    >>> problem = GymnasiumProblem(make, lambda size, generator: torch.rand(size, 1, generator=generator))
    >>> problem.observation_size, problem.action_size, problem.actions, problem.horizon
    (4, 2, 'discrete', 50)
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], gymnasium.Env],
        draw: Callable[[int, torch.Generator], Tensor],
        *,
        horizon: int | None = None,
        set_task: Callable[[gymnasium.Env, np.ndarray], None] | None = None,
    ):
        self.make, self.draw, self.set_task = make, draw, set_task
        task = self.sample(1, torch.Generator().manual_seed(0))[0]
        example = make(task.numpy())
        self.task_size = len(task)
        self.observation_space, self.action_space = example.observation_space, example.action_space
        limit = None if example.spec is None else example.spec.max_episode_steps
        example.close()
        if horizon is None and limit is None:
            raise ValueError("The environment has no max_episode_steps: give horizon, the time steps of an episode")
        if horizon is not None and not 1 <= horizon <= (limit or horizon):
            raise ValueError(f"horizon={horizon}: give at least 1, and at most the environment's own {limit}")
        self.horizon = int(horizon or limit or 0)
        self.observation_size = gymnasium.spaces.flatdim(self.observation_space)
        if isinstance(self.action_space, gymnasium.spaces.Discrete):
            self.actions, self.action_size = "discrete", int(self.action_space.n)
        elif isinstance(self.action_space, gymnasium.spaces.Box):
            self.action_size = gymnasium.spaces.flatdim(self.action_space)
        else:
            raise ValueError(
                f"Actions in {self.action_space}: only Box and Discrete are known here. Have make(task) wrap the "
                "environment in one that takes these, such as gymnasium.wrappers.TransformAction"
            )

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        """Tasks, `[size, task]`, as `draw` gives them."""
        tasks = torch.as_tensor(self.draw(size, generator), dtype=torch.float32)
        if tasks.dim() != 2 or len(tasks) != size:
            raise ValueError(f"draw({size}, generator) gave tasks of shape {list(tasks.shape)}, not [{size}, task]")
        return tasks

    def environments(self, num_tasks: int, rollouts: int) -> Environments:
        """`num_tasks x rollouts` environments, stepped one after the other."""
        check_size(num_tasks, rollouts)
        return _Family(self, num_tasks, rollouts)

    def action(self, chosen: np.ndarray) -> Any:
        """What an environment is given for a policy's action."""
        space = self.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return space.dtype.type(space.start + int(chosen))
        assert isinstance(space, gymnasium.spaces.Box)
        chosen = chosen.reshape(space.shape)
        if space.is_bounded():
            chosen = space.low + (np.clip(chosen, -1.0, 1.0) + 1.0) / 2.0 * (space.high - space.low)
        return chosen.astype(space.dtype)


class _Family(Environments):
    def __init__(self, problem: GymnasiumProblem, num_tasks: int, rollouts: int):
        self.problem, self.shape, self.time = problem, (num_tasks, rollouts), 0
        self.tasks: Tensor | None = None
        self.members: list[gymnasium.Env] = []
        self.observations = torch.zeros(num_tasks * rollouts, problem.observation_size)

    def reset(self, tasks: Tensor, generator: torch.Generator) -> Tensor:
        check_tasks(tasks, (self.shape[0], self.problem.task_size))
        self._about(tasks.to(torch.float32))
        seeds = torch.randint(2**31, (len(self.members),), generator=generator).tolist()
        self.time = 0
        for i, (member, seed) in enumerate(zip(self.members, seeds, strict=True)):
            self.observations[i] = self._flat(member.reset(seed=seed)[0])
        return self._seen()

    def step(self, actions: Tensor, alive: Tensor) -> Step:
        single = () if self.problem.actions == "discrete" else (self.problem.action_size,)
        check_shape("actions", actions, (*self.shape, *single))
        chosen = actions.detach().reshape(-1, *single).numpy()
        stuck = lost(actions).flatten() if single else torch.zeros(len(self.members), dtype=torch.bool)
        rewards, terminated = torch.where(stuck, torch.nan, 0.0), torch.zeros(len(self.members), dtype=torch.bool)
        self.time += 1
        for i in (alive.flatten() & ~stuck).nonzero().flatten().tolist():
            observation, reward, over, truncated, _ = self.members[i].step(self.problem.action(chosen[i]))
            if truncated and not over and self.time < self.problem.horizon:
                raise ValueError(
                    f"An environment cut its episode off after {self.time} time steps, but horizon="
                    f"{self.problem.horizon}: give horizon={self.time}, or have it report the end as terminated"
                )
            self.observations[i], rewards[i], terminated[i] = self._flat(observation), float(reward), bool(over)
        return Step(self._seen(), rewards.view(self.shape), terminated.view(self.shape))

    def _about(self, tasks: Tensor) -> None:
        """Environments for these tasks: the ones there are, if they can be."""
        if self.tasks is not None and torch.equal(self.tasks, tasks):
            return
        wanted = tasks.repeat_interleave(self.shape[1], dim=0).numpy()
        if self.members and self.problem.set_task is not None:
            for member, task in zip(self.members, wanted, strict=True):
                self.problem.set_task(member, task)
        else:
            for member in self.members:
                member.close()
            self.members = [self.problem.make(task) for task in wanted]
        self.tasks = tasks.clone()

    def _flat(self, observation: Any) -> Tensor:
        values = gymnasium.spaces.flatten(self.problem.observation_space, observation)
        return torch.as_tensor(np.asarray(values), dtype=torch.float32)

    def _seen(self) -> Tensor:
        return self.observations.clone().view(*self.shape, -1)


def _row(task: float | Sequence[float]) -> Tensor:
    return torch.as_tensor(task, dtype=torch.float32).reshape(-1)


def _register() -> None:
    for name, (problem, horizon) in REGISTERED.items():
        identity = f"headstart/{name}-v0"
        if identity not in gymnasium.registry:
            entry = f"{__name__}:{SingleEnvironment.__name__}"
            gymnasium.register(identity, entry, max_episode_steps=horizon, kwargs={"problem": problem})


_register()
