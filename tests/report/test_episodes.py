"""What reports show of control runs by their policies: ways to goals, and robots in motion."""

import json
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from headstart.recipes import experiment, work
from headstart.report import episodes, filmstrips, navigation_paths, write_report
from headstart.report.picture import Look
from headstart.report.records import RunRecord, read_records
from headstart.rl.envs.navigation import Navigation
from headstart.rl.envs.studio import RenderingError, Studio
from headstart.training.run import Run

CHEETAH = "half-cheetah-direction"


def records(*runs: Run) -> list[RunRecord]:
    return read_records(runs)


def train(folder: Path, name: str, **changes) -> Run:
    run = Run(folder / name)
    changes |= {"hidden": (8,), "meta_update": "policy-gradient"}  # quicker than TRPO
    recipe = replace(experiment(name).recipe.smoke(), **changes)
    run.start(json.loads(json.dumps(work.config_of(name, recipe))))
    recipe.trainer(run, None, "cpu").train()
    return run


@pytest.fixture(scope="module")
def walks(tmp_path_factory) -> list[Run]:
    """Navigation: MAML, pretrained and the untrained policy, at their smallest, evaluated."""
    folder = tmp_path_factory.mktemp("walks")
    runs = [train(folder, f"navigation-2d{method}") for method in ("", "-pretrained", "-random")]
    for run in runs:
        work.keep_evaluation(run, work.evaluate_run(run, num_tasks=4))
    return runs


# Navigation


def test_paths_are_those_of_the_runs_own_policy(walks):
    (record,) = records(walks[0])
    ways = navigation_paths.Ways(record)
    path, goal = ways.path(1, 0), ways.found.tasks[0]
    rollouts = ways.found.moments[1].rollouts
    assert np.array_equal(path[0], [0.0, 0.0])
    assert np.abs(np.diff(path, axis=0)).max() <= 0.1 + 1e-6
    distances = np.linalg.norm(path[1:] - goal.numpy(), axis=1)
    np.testing.assert_allclose(rollouts.rewards[0, 0, : len(path) - 1], -distances, atol=1e-6)
    assert not torch.equal(ways.found.moments[0].rollouts.actions, rollouts.actions)
    again = navigation_paths.Ways(record)
    assert np.array_equal(path, again.path(1, 0))


def test_the_steps_are_those_of_the_evaluation(walks):
    (record,) = records(walks[0])
    found = episodes.adapted(record, lambda problem: torch.tensor([[0.3, 0.3]]), 2)
    start, first, second = (moment.params for moment in found.moments)
    rate = {"first": found.recipe.eval_lr, "later": found.recipe.eval_lr_later}
    assert rate == {"first": 0.5, "later": 0.25}
    learner = found.learner
    for before, after, size, moment in (
        (start, first, 0.5, found.moments[0]),
        (first, second, 0.25, found.moments[1]),
    ):
        support = [leaf[0] for leaf in learner.experience(moment.rollouts)[:4]]
        experience = learner.experience(moment.rollouts)._replace(
            **dict(zip(("observations", "actions", "advantages", "valid"), support, strict=True)),
            behaviour=type(moment.rollouts.behaviour)(*(leaf[0] for leaf in moment.rollouts.behaviour)),
        )
        params = {name: p[0] for name, p in before.items()}
        grads = torch.func.grad(learner.inner_loss)(params, experience)
        for name, p in params.items():
            torch.testing.assert_close(after[name][0], p - size * grads[name])


def test_an_untrained_policy_is_another_for_each_task_as_in_the_evaluation(walks):
    _, _, record = records(*walks)
    found = episodes.adapted(record, lambda problem: torch.tensor([[0.3, 0.3], [0.3, 0.3]]), 1)
    first, second = found.moments[0].params["body.0.weight"]
    assert not torch.equal(first, second)


def test_navigation_shows_maml_above_pretrained(walks):
    maml, pretrained, _ = records(*walks)
    (picture,) = navigation_paths.pictures([pretrained, maml])
    with matplotlib.rc_context(Look().settings):  # where titles are
        axes = picture.draw(Look()).axes
    titles = [ax.get_title("left") for ax in axes]
    assert titles[:4] == [f"MAML, goal {goal}" for goal in range(1, 5)]
    assert titles[4:] == [f"pretrained, goal {goal}" for goal in range(1, 5)]
    goals = [line.get_xydata()[0] for line in axes[0].get_lines() if line.get_marker() == "*"]
    assert np.abs(goals).max() <= 0.5
    assert "MAML: goal 1 return −" in picture.alt


def test_goals_are_not_those_of_training(walks):
    goals = navigation_paths._goals(Navigation())
    assert goals.shape == (4, 2)
    assert torch.equal(goals, navigation_paths._goals(Navigation(oracle=True)))


# Robots


def test_tasks_are_spread_over_what_is_drawn():
    pytest.importorskip("mujoco", reason="robots need the extra rl")
    pytest.importorskip("gymnasium", reason="robots need the extra rl")
    from headstart.rl.envs import HalfCheetahDirection, HalfCheetahVelocity

    assert episodes.spread_tasks(HalfCheetahDirection(), 2).tolist() == [[-1.0], [1.0]]
    slow, fast = episodes.spread_tasks(HalfCheetahVelocity(), 2).flatten().tolist()
    assert 0.2 < slow < 0.8
    assert 1.2 < fast < 1.8


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory) -> Run:
    pytest.importorskip("mujoco", reason="robots need the extra rl")
    pytest.importorskip("gymnasium", reason="robots need the extra rl")
    return train(tmp_path_factory.mktemp("robots"), CHEETAH, threads=1)


def test_filmstrips_show_each_task_before_and_after_a_step(cheetah, monkeypatch):
    drawn = []

    class Painter:
        def __init__(self, problem, size):
            self.size = size

        def draw(self, task, observation):
            drawn.append((float(task), observation))
            return np.zeros((*self.size, 3), np.uint8)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(filmstrips, "Painter", Painter)
    (picture,), notes = filmstrips.pictures(records(cheetah))
    assert notes == []
    assert [task for task, _ in drawn] == 2 * filmstrips.FRAMES * [-1.0] + 2 * filmstrips.FRAMES * [1.0]
    assert "Backward, before: " in picture.alt
    assert "Forward, after 1 step: " in picture.alt
    figure = picture.draw(Look())
    assert len(figure.axes) == 4 * filmstrips.FRAMES
    first, last = figure.axes[0].texts[0].get_text(), figure.axes[filmstrips.FRAMES - 1].texts[0].get_text()
    assert first.startswith("0.00 s, x = ")
    assert last.startswith("0.09 s, x = ")  # ten steps of 0.01 s
    assert len(picture.draw(Look(narrow=True)).axes) == 4 * len(filmstrips._NARROW_FRAMES)


def test_mean_velocity_is_between_first_and_last_frame():
    pixels = np.zeros((2, 2, 3), np.uint8)
    frames = tuple(
        filmstrips.Frame(pixels, seconds, metres) for seconds, metres in ((0.0, 0.5), (1.0, 0.0), (2.0, -1.5))
    )
    strip = filmstrips.Strip("Backward", 1, 12.34, frames)
    assert strip.told() == "Backward, after 1 step: −1.0 m/s, return 12.3"


def test_where_nothing_can_be_drawn_a_sentence_says_why(cheetah, monkeypatch, tmp_path):
    def without(*_):
        raise RenderingError("There is no OpenGL.")

    monkeypatch.setattr(filmstrips, "Painter", without)
    text = write_report([cheetah], tmp_path).read_text()
    assert f"{CHEETAH} is not shown in motion: There is no OpenGL." in text
    assert "filmstrip" not in {path.name.split("-")[0] for path in (tmp_path / "figures").iterdir()}


def test_a_real_filmstrip_moves(cheetah):
    (record,) = records(cheetah)
    found = episodes.adapted(record, lambda problem: torch.tensor([[1.0]]), steps=1)
    try:
        Studio(found.learner.problem.robot, (8, 8)).close()
    except RenderingError as error:
        pytest.skip(f"nothing can be rendered here: {error}")
    before, after = filmstrips.strips(found)
    assert (before.step, after.step) == (0, 1)
    assert len({frame.pixels.tobytes() for frame in before.frames}) == filmstrips.FRAMES


# The page


def test_the_page_has_it_all(walks, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.report.picture._DPI", 50)
    text = write_report(walks, tmp_path).read_text()
    names = {path.stem for path in (tmp_path / "figures").iterdir() if not path.stem.endswith("-dark")}
    assert names == {
        "return-per-step",
        "navigation-navigation-2d",
        "learning-curve-navigation-2d",
        "learning-curve-navigation-2d-pretrained",
    }
    assert "Return: mean over held-out tasks" in text
    assert "not at all: the initialisation" in text
    assert f"headstart evaluate {walks[0].path} --num-tasks 4" in text
