"""Figure 5 of the paper in part: what a robot does on a new task, before a gradient step and after it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from headstart.recipes import ControlRecipe, restore
from headstart.report import words
from headstart.report.commands import commands
from headstart.report.episodes import SEED, Adapted, adapted, spread_tasks
from headstart.report.picture import Look, Picture
from headstart.report.records import CONTEXT, FIRST_ORDER, MAML, RunRecord
from headstart.rl.envs.extra import MissingExtraError
from headstart.rl.envs.locomotion import Locomotion
from headstart.rl.envs.rendering import Painter
from headstart.rl.envs.studio import RenderingError

TASKS = 2
FRAMES = 6
RENDERED = (300, 400)
"""Height and width of what is rendered, in pixels, of which a frame is the middle: the camera keeps its distance."""
_MIDDLE = (slice(75, 285), slice(60, 340))
PIXELS = (210, 280)
"""Height and width of a frame."""
_NARROW_FRAMES = (0, 2, 5)
_LINE = 0.17  # inches of a line of text


class Frame(NamedTuple):
    """A moment of an episode."""

    pixels: NDArray[np.uint8]
    seconds: float
    metres: float
    """How far the body's centre of mass is along x."""


class Strip(NamedTuple):
    """One episode in frames, spread evenly over it."""

    task: str
    step: int
    mean_return: float
    """Over all episodes at this step."""
    frames: tuple[Frame, ...]

    @property
    def speed(self) -> float:
        """Mean velocity along x from the first frame to the last, m/s."""
        first, last = self.frames[0], self.frames[-1]
        return (last.metres - first.metres) / max(last.seconds - first.seconds, 1e-9)

    def told(self) -> str:
        """What the strip shows, in a line."""
        return f"{self.task}, {words.steps(self.step)}: {_number(self.speed)} m/s, return {_number(self.mean_return)}"


def pictures(records: Sequence[RunRecord]) -> tuple[list[Picture], list[str]]:
    """One figure for each robot's run that adapts and has a checkpoint; and why, where there is none."""
    made, notes = [], []
    for record in records:
        if record.kind == "control" and record.checkpoint and record.method in (MAML, FIRST_ORDER, CONTEXT):
            try:
                if _has_robots(record):
                    made.append(_picture(record))
            except (MissingExtraError, RenderingError) as error:
                notes.append(f"{record.label} is not shown in motion: {error}")
    return made, notes


def _has_robots(record: RunRecord) -> bool:
    recipe = restore(record.run.config())
    return isinstance(recipe, ControlRecipe) and isinstance(recipe.family(), Locomotion)


def strips(found: Adapted) -> list[Strip]:
    """The first episode of each task, before adaptation and after each step.

    Raises:
        RenderingError: Nothing can be drawn here.
    """
    problem = found.learner.problem
    assert isinstance(problem, Locomotion)
    made = []
    with Painter(problem, RENDERED) as painter:
        for index, task in enumerate(found.tasks):
            for moment in found.moments:
                episode = moment.rollouts.observations[index, 0][moment.rollouts.valid[index, 0]]
                shown = tuple(
                    _frame(painter, problem, task, episode, int(time))
                    for time in np.linspace(0, len(episode) - 1, FRAMES).round()
                )
                made.append(Strip(problem.goal.words(float(task)), moment.step, moment.mean_return(index), shown))
    return made


def _frame(painter: Painter, problem: Locomotion, task: Tensor, episode: Tensor, time: int) -> Frame:
    centre = problem.robot.observation_size - 3  # its place is the last that robots observe of themselves
    seconds = time * problem.step_s
    return Frame(painter.draw(task, episode[time])[_MIDDLE], seconds, float(episode[time, centre]))


def _picture(record: RunRecord) -> Picture:
    assert record.checkpoint is not None
    found = adapted(record, lambda problem: spread_tasks(problem, TASKS), steps=1)
    shown = strips(found)
    problem = found.learner.problem
    assert isinstance(problem, Locomotion)
    falls = " Its episode ends when the robot falls." if problem.robot.fallen is not None else ""
    return Picture(
        name=f"filmstrip-{record.label}",
        title=f"Before and after one gradient step: {record.label}",
        alt=f"Frames of episodes. {'; '.join(strip.told() for strip in shown)}.",
        caption=(
            f"An episode on each of {TASKS} tasks, before adaptation and after one policy-gradient step on "
            f"{words.counted(found.recipe.eval_rollouts, 'rollout')}; the camera follows. Under a frame: the time, and "
            f"how far the centre of mass is along x, which counts as forward.{falls} Over a strip: the mean velocity "
            f"in that episode, and the mean return over all. {record.label} at iteration {found.iteration:,}. The "
            f"tasks are quartiles of 64 drawn ones, the episodes the first that seed {SEED} gives, not chosen."
        ),
        commands=commands([record]),
        draw=lambda look: _draw(look, shown),
    )


def _draw(look: Look, shown: Sequence[Strip]) -> Figure:
    places = _NARROW_FRAMES if look.narrow else tuple(range(FRAMES))
    across = look.width / len(places)
    high = across * PIXELS[0] / PIXELS[1]
    row = high + 2.4 * _LINE
    height = row * len(shown)
    figure = Figure(figsize=(look.width, height))
    for index, strip in enumerate(shown):
        top = 1 - index * row / height
        size = 7.5 if look.narrow else 8.5
        figure.text(0.004, top - 0.65 * _LINE / height, strip.told(), fontweight="bold", fontsize=size, va="center")
        for column, place in enumerate(places):
            bottom = top - (1.25 * _LINE + high) / height
            box = (column / len(places) + 0.003, bottom, 1 / len(places) - 0.006, high / height)
            _show(figure.add_axes(box), look, strip.frames[place])
    return figure


def _show(ax: Axes, look: Look, frame: Frame) -> None:
    ax.imshow(frame.pixels, aspect="auto", interpolation="lanczos")
    ax.set(xticks=(), yticks=())
    for spine in ax.spines.values():
        spine.set(visible=True, color=look.faint)
    told = f"{frame.seconds:.2f} s, x = {_number(frame.metres)} m"
    ax.text(0.5, -0.04, told, transform=ax.transAxes, fontsize=7.5, color=look.muted, ha="center", va="top")


def _number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".replace("-", "−")  # + 0.0: no minus before zero
