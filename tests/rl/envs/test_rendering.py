import os

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from headstart.rl.envs import AntDirection, Bandit, FourStates, HalfCheetahVelocity, Navigation, studio
from headstart.rl.envs.drawing import AGENT, GOAL, Artist, blank
from headstart.rl.envs.rendering import Painter, frames, replay
from headstart.rl.problem import Problem


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def centre_of(picture, colour):
    """Mean row and column of the pixels of one colour."""
    return np.array(np.nonzero((picture == colour).all(-1))).mean(1)


def test_navigation_shows_point_and_goal_where_they_are():
    pictures = frames(
        Navigation(), torch.tensor([0.5, -0.25]), torch.tensor([[0.0, 0.0], [-0.5, 0.5]]), size=(200, 400)
    )
    assert pictures.shape == (2, 200, 400, 3)
    for picture, (row, column) in zip(pictures, [(99.5, 199.5), (49.5, 149.5)], strict=True):
        np.testing.assert_allclose(centre_of(picture, AGENT), [row, column], atol=1)
        np.testing.assert_allclose(centre_of(picture, GOAL), [124.5, 249.5], atol=1)


def test_the_small_problems_have_pictures():
    grid = frames(FourStates(), torch.tensor([2.0]), torch.eye(9)[[4, 1]], size=(90, 90))
    np.testing.assert_allclose(centre_of(grid[0], AGENT), [44.5, 44.5], atol=1)
    np.testing.assert_allclose(centre_of(grid[1], AGENT), [14.5, 44.5], atol=1)  # the goal of map 2 is above
    np.testing.assert_allclose(centre_of(grid[0], GOAL), [14.5, 44.5], atol=1)
    (bars,) = frames(Bandit(arms=2), torch.tensor([0.25, 1.0]), torch.ones(1, 1), size=(100, 100))
    filled = (bars == GOAL).all(-1).sum(0)
    assert (filled[25], filled[75]) == (25, 100)


class Other(Problem):
    def sample(self, size, generator):
        return torch.zeros(size, 1)

    def environments(self, num_tasks, rollouts):
        raise NotImplementedError


def test_a_problem_that_does_not_say_how_it_is_drawn_is_named():
    with pytest.raises(ValueError, match=r"Other has no picture: give it a method artist\(size\)"):
        Painter(Other())


def test_a_problem_of_ones_own_draws_itself():
    freed = []

    class Mine(Other):
        def artist(self, size):
            def draw(task, observation):
                picture = blank(size)
                picture[int(task[0]), int(observation[0])] = AGENT
                return picture

            return Artist(draw, lambda: freed.append(size))

    pictures = frames(Mine(), torch.tensor([2.0]), torch.tensor([[3.0], [1.0]]), size=(4, 5))
    assert [centre_of(picture, AGENT).tolist() for picture in pictures] == [[2, 3], [2, 1]]
    assert freed == [(4, 5)]
    with Painter(Mine()) as painter:
        pass
    with pytest.raises(ValueError, match="painter is closed"):
        painter.draw(torch.zeros(1), torch.zeros(1))


def test_actions_are_replayed_to_the_episodes_end():
    actions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    seen = replay(Navigation(), torch.tensor([0.2, 0.0]), actions, seeded())
    assert_close(seen, torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.2, 0.0]]))  # reached: the third is not taken


@pytest.mark.parametrize("problem", [HalfCheetahVelocity, AntDirection])
def test_a_robot_is_drawn_where_its_observation_has_it(problem):
    pytest.importorskip("mujoco", reason="MuJoCo is not here: pip install 'headstart[rl]'")
    problem = problem()
    generator = seeded()
    seen = replay(problem, torch.ones(1), 0.3 * torch.randn(20, problem.action_size, generator=generator), seeded(4))
    environments = problem.environments(1, 1)
    environments.reset(torch.ones(1, 1), seeded(4))
    try:
        painter = Painter(problem, size=(60, 80))
    except studio.RenderingError as error:
        pytest.skip(f"nothing to draw with here: {error}")
    with painter:
        first, last = (painter.draw(torch.ones(1), seen[i]) for i in (0, -1))
    drawing = studio.Studio(problem.robot, (60, 80))
    drawing.draw(seen[0].double().numpy())
    np.testing.assert_allclose(drawing.data.qpos, environments.physics.qpos[0], atol=1e-5)
    drawing.close()
    assert first.shape == (60, 80, 3)
    assert first.dtype == np.uint8
    assert first.std() > 10  # something is to be seen
    assert (first != last).any()


def test_what_draws_is_chosen_by_what_is_there(monkeypatch):
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    for there, chosen in (({"OSMesa", "EGL"}, "osmesa"), ({"EGL"}, "egl")):
        monkeypatch.setattr("ctypes.util.find_library", lambda name, there=there: name if name in there else None)
        assert studio.backend() == chosen
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    with pytest.raises(studio.RenderingError, match="apt-get install libosmesa6, or libegl1"):
        studio.backend()
    monkeypatch.setenv("DISPLAY", ":0")
    assert studio.backend() == "glfw"
    monkeypatch.setenv("MUJOCO_GL", "egl")
    assert studio.backend() == "egl"
    assert os.environ["MUJOCO_GL"] == "egl"


def test_opengl_that_does_not_work_is_an_error_that_names_what_to_install(monkeypatch):
    pytest.importorskip("mujoco", reason="MuJoCo is not here: pip install 'headstart[rl]'")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(studio.RenderingError, match=r"OpenGL by nonsense does not work here.*apt-get install"):
        Painter(HalfCheetahVelocity())
