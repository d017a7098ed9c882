import importlib.util
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.testing import assert_close

if any(importlib.util.find_spec(name) is None for name in ("mujoco", "gymnasium")):
    pytest.skip("MuJoCo and Gymnasium are not here: pip install 'headstart[rl]'", allow_module_level=True)

import gymnasium
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

from headstart.rl import envs
from headstart.rl.envs.gymnasium import REGISTERED, GymnasiumProblem, SingleEnvironment
from headstart.rl.envs.studio import RenderingError


def alive(*shape):
    return torch.ones(*shape, dtype=torch.bool)


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("drawn", [False, True], ids=["not drawn", "drawn"])
def test_gymnasiums_own_checker_has_nothing_to_say(name, drawn):
    made = gymnasium.make(f"headstart/{name}-v0", render_mode="rgb_array" if drawn else None)
    assert made.spec.max_episode_steps == made.unwrapped.problem.horizon
    made.reset(seed=0)
    if drawn:
        try:
            picture = made.render()
        except RenderingError as error:
            pytest.skip(f"nothing to draw with here: {error}")
        assert picture.dtype == np.uint8
        assert picture.std() > 10  # something is to be seen
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*A Box observation space m..imum value is -?infinity")
        check_env(made.unwrapped, skip_render_check=not drawn)
    made.close()


def test_pictures_come_as_fast_as_the_robot_moves():
    names = {"HalfCheetahVelocity": 100, "AntDirection": 50, "Navigation2D": 50}
    made = {name: gymnasium.make(f"headstart/{name}-v0") for name in names}
    assert {name: env.metadata["render_fps"] for name, env in made.items()} == names
    assert gymnasium.make("headstart/HalfCheetahVelocity-v0", frame_skip=5).metadata["render_fps"] == 20


@pytest.mark.parametrize("name", REGISTERED)
def test_one_environment_is_one_of_the_many(name):
    task = {"Navigation2D": [0.3, -0.4], "Bandit": [0.1, 0.9, 0.5, 0.4, 0.6]}.get(name, [1.0])
    made = gymnasium.make(f"headstart/{name}-v0", task=task)
    problem = getattr(envs, REGISTERED[name][0])()
    many, generator = problem.environments(1, 1), torch.Generator()
    generator.manual_seed(int(seeding.np_random(11)[0].integers(2**63)))
    expected = many.reset(torch.tensor([task]), generator)
    observation, info = made.reset(seed=11)
    assert_close(torch.from_numpy(observation), expected[0, 0], rtol=0, atol=0)
    assert_close(torch.from_numpy(info["task"]), torch.tensor(task))
    made.action_space.seed(3)
    for _ in range(problem.horizon):
        action = made.action_space.sample()
        observation, reward, terminated, truncated, _ = made.step(action)
        step = many.step(torch.as_tensor(action)[None, None], alive(1, 1))
        assert_close(torch.from_numpy(observation), step.observations[0, 0], rtol=0, atol=0)
        assert reward == step.rewards.item()
        assert terminated == step.terminated.item()
        if terminated:
            break
    assert truncated or terminated
    made.close()


def test_tasks_are_given_or_drawn():
    drawn = gymnasium.make("headstart/HalfCheetahVelocity-v0")
    tasks = [drawn.reset(seed=seed)[1]["task"].item() for seed in (1, 1, 2, None)]
    assert tasks[0] == tasks[1]
    assert len(set(tasks)) == 3
    assert drawn.reset(options={"task": 0.5})[1]["task"].item() == 0.5
    with pytest.raises(ValueError, match="options goal: the only one is 'task'"):
        drawn.unwrapped.reset(options={"goal": 0.5})
    oracle = gymnasium.make("headstart/HalfCheetahDirection-v0", task=-1.0, oracle=True, frame_skip=5)
    assert oracle.reset(seed=0)[0][-1] == -1.0
    assert oracle.unwrapped.problem.frame_skip == 5


def test_how_long_an_episode_is_is_gymnasiums_to_say():
    def length(made):
        made.reset(seed=0)
        for time in range(1, 400):
            _, _, terminated, truncated, _ = made.step(np.zeros(made.action_space.shape, np.float32))
            if terminated or truncated:
                return time, terminated, truncated
        return None

    name = "headstart/Navigation2D-v0"
    goal = [0.4, 0.4]
    assert length(gymnasium.make(name, task=goal)) == (100, False, True)
    assert length(gymnasium.make(name, task=goal, max_episode_steps=7)) == (7, False, True)
    assert length(gymnasium.make(name, task=goal, max_episode_steps=130)) == (130, False, True)
    with pytest.raises(ValueError, match=r"horizon=50: give max_episode_steps=50 to gymnasium\.make"):
        gymnasium.make(name, horizon=50)
    given = SingleEnvironment(envs.Navigation(horizon=5), task=goal)
    assert length(given) == length(given) == (5, False, True)


def test_an_id_alone_is_enough():
    code = (
        "import gymnasium\n"
        "e = gymnasium.make('headstart.rl.envs.gymnasium:headstart/Navigation2D-v0', task=[0.1, 0.2])\n"
        "print(e.reset(seed=0)[1]['task'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.1 0.2]"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: SingleEnvironment("Swimmer"), "problem='Swimmer': give one of AntDirection"),
        (lambda: SingleEnvironment("Navigation", render_mode="human"), "render_mode='human'"),
        (lambda: SingleEnvironment(envs.Navigation(), oracle=True), "options oracle"),
        (lambda: gymnasium.make("headstart/HalfCheetahDirection-v0", task=0.3), "tasks hold 0.3: give -1 or 1"),
        (lambda: gymnasium.make("headstart/AntVelocity-v0").reset(options={"task": np.nan}), "tasks hold nan"),
    ],
)
def test_what_a_user_gets_wrong_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


class Corridor(gymnasium.Env):
    """Walks along a line; ends beyond 3; actions span [-2, 6]."""

    observation_space = gymnasium.spaces.Box(-100, 100, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 6, (1,), np.float32)

    def __init__(self, task):
        self.speed = float(task[0])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(0, 0.01)
        return np.array([self.x], np.float32), {}

    def step(self, action):
        self.given = action
        self.x += self.speed
        return np.array([self.x], np.float32), float(action[0]), self.x > 3, False, {}


def draw(size, generator):
    return torch.rand(size, 1, generator=generator)


def test_a_family_of_ones_own():
    problem = GymnasiumProblem(Corridor, draw, horizon=5)
    assert (problem.observation_size, problem.action_size, problem.actions, problem.horizon) == (1, 1, "continuous", 5)
    environments = problem.environments(2, 2)
    tasks = torch.tensor([[1.0], [2.0]])
    first = environments.reset(tasks, torch.Generator().manual_seed(0))
    on = alive(2, 2)
    actions = torch.tensor([[-1.0, 0.0], [1.0, 9.0]]).unsqueeze(-1)
    step = environments.step(actions, on)
    assert_close(step.rewards, torch.tensor([[-2.0, 2.0], [6.0, 6.0]]))  # scaled to the Box, and clipped to it
    assert_close(step.observations, first + tasks.unsqueeze(1))
    assert not step.terminated.any()
    step = environments.step(actions, on)
    assert step.terminated.tolist() == [[False, False], [True, True]]
    on = on & ~step.terminated
    step = environments.step(actions, on)
    assert_close(step.observations[0], first[0] + 3)
    assert_close(step.observations[1], first[1] + 4)  # ended, and not stepped again
    assert_close(environments.reset(tasks, torch.Generator().manual_seed(0)), first)
    assert not torch.equal(environments.reset(tasks, torch.Generator().manual_seed(1)), first)


def test_an_environment_given_an_action_that_is_not_finite_is_not_stepped_and_rewarded_with_nan():
    environments = GymnasiumProblem(Corridor, draw, horizon=5).environments(1, 2)
    first = environments.reset(torch.ones(1, 1), torch.Generator().manual_seed(0))
    step = environments.step(torch.tensor([[[torch.nan], [0.0]]]), alive(1, 2))
    assert_close(step.rewards, torch.tensor([[torch.nan, 2.0]]), equal_nan=True)
    assert_close(step.observations - first, torch.tensor([[[0.0], [1.0]]]))
    assert not step.terminated.any()


def test_environments_are_made_again_only_for_other_tasks():
    made = []

    def make(task):
        made.append(float(task[0]))
        return Corridor(task)

    def set_task(environment, task):
        environment.speed = float(task[0])

    for options, times in (({}, [1.0, 1.0, 2.0, 2.0]), ({"set_task": set_task}, [1.0, 1.0])):
        environments = GymnasiumProblem(make, draw, horizon=5, **options).environments(1, 2)
        made.clear()
        for task in (1.0, 1.0, 2.0):
            first = environments.reset(torch.tensor([[task]]), torch.Generator())
        assert made == times
        step = environments.step(torch.zeros(1, 2, 1), alive(1, 2))
        assert_close(step.observations, first + 2)


def test_discrete_actions_and_the_environments_own_horizon():
    problem = GymnasiumProblem(lambda task: gymnasium.make("CartPole-v1", max_episode_steps=4), draw)
    assert (problem.actions, problem.action_size, problem.horizon) == ("discrete", 2, 4)
    environments = problem.environments(1, 2)
    environments.reset(torch.zeros(1, 1), torch.Generator().manual_seed(0))
    for _ in range(4):  # cut off at the fourth, which is the horizon and no ending of the task's
        step = environments.step(torch.tensor([[0, 1]]), alive(1, 2))
        assert not step.terminated.any()
        assert_close(step.rewards, torch.ones(1, 2))


def test_an_episode_cut_off_early_is_not_taken_for_an_ending():
    def make(task):
        return gymnasium.wrappers.TimeLimit(Corridor(task), 2)

    environments = GymnasiumProblem(make, draw, horizon=5).environments(1, 1)
    environments.reset(torch.ones(1, 1), torch.Generator())
    environments.step(torch.zeros(1, 1, 1), alive(1, 1))
    with pytest.raises(ValueError, match="after 2 time steps, but horizon=5: give horizon=2"):
        environments.step(torch.zeros(1, 1, 1), alive(1, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: GymnasiumProblem(Corridor, draw), "no max_episode_steps: give horizon"),
        (lambda: GymnasiumProblem(Corridor, lambda n, g: torch.rand(n), horizon=3), r"shape \[1\], not \[1, task\]"),
        (lambda: GymnasiumProblem(lambda t: gymnasium.make("CartPole-v1"), draw, horizon=501), "at most.*500"),
    ],
)
def test_what_is_wrong_with_a_family_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
