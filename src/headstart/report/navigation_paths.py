"""Figure 4 of the paper in part: the ways a policy takes to goals it is not shown, before and after gradient steps."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from headstart.report import words
from headstart.report.commands import commands
from headstart.report.episodes import SEED, Adapted, adapted
from headstart.report.picture import Look, Picture, panels
from headstart.report.records import CONTEXT, FIRST_ORDER, MAML, PRETRAINED, RunRecord
from headstart.rl.problem import Problem
from headstart.types import generator

GOALS = 4
STEPS = 3
_SHOWN: tuple[tuple[int, Literal[":", "--", "-"], float, float], ...] = (
    (0, ":", 0.6, 1.2),
    (1, "--", 0.75, 1.0),
    (STEPS, "-", 1.0, 1.2),
)  # step, line, strength, width


class Ways:
    """What one run's policy does about each goal."""

    def __init__(self, record: RunRecord):
        self.record = record
        self.found: Adapted = adapted(record, _goals, STEPS)

    def path(self, step: int, goal: int) -> np.ndarray:
        """Positions of the first episode from the start on, `[time, 2]`; not where its last action led."""
        seen = self.found.moments[step].rollouts
        return seen.observations[goal, 0][seen.valid[goal, 0]][:, :2].numpy()

    def told(self, goal: int) -> str:
        """The mean returns of the steps shown."""
        values = (self.found.moments[step].mean_return(goal) for step, *_ in _SHOWN)
        return f"return {' → '.join(f'{value:.1f}'.replace('-', '−') for value in values)}"


def pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """One figure for each navigation run that adapts and has a checkpoint, beside its pretrained counterpart."""
    runs = [r for r in records if r.kind == "control" and r.settings.get("problem") == "navigation-2d" and r.checkpoint]
    baseline = [r for r in runs if r.method == PRETRAINED][:1]
    shown = [r for r in runs if r.method in (MAML, FIRST_ORDER, CONTEXT)] or baseline
    return [_picture([r, *(b for b in baseline if b is not r)]) for r in shown]


def _goals(problem: Problem) -> Tensor:
    return problem.sample(GOALS, generator(SEED, "goals of the report"))


def _picture(records: Sequence[RunRecord]) -> Picture:
    ways = [Ways(record) for record in records]
    steps = f"before and after {_SHOWN[1][0]} and {_SHOWN[2][0]} gradient steps"
    rates = "; ".join(f"{w.record.label} at iteration {w.found.iteration:,}" for w in ways)
    return Picture(
        name=f"navigation-{records[0].label}",
        title=f"Ways to unseen goals: {records[0].label}",
        alt=_alt(ways),
        caption=(
            f"{GOALS} goals never seen in training (stars), and an episode towards each, {steps}. Every episode starts "
            "at the dot in the middle; the policy sees its position alone, and learns of the goal through the rewards "
            f"of the episodes before. Over a panel: the mean return at those steps, over all episodes. {rates}. The "
            f"goals and episodes are the first that seed {SEED} gives, not chosen."
        ),
        commands=commands(records),
        draw=lambda look: _draw(look, ways),
    )


def _alt(ways: Sequence[Ways]) -> str:
    told = []
    for w in ways:
        returns = ", ".join(f"goal {goal + 1} {w.told(goal)}" for goal in range(GOALS))
        told.append(f"{w.record.method}: {returns}")
    steps = ", ".join(str(step) for step, *_ in _SHOWN)
    return f"Paths of a point to {GOALS} goals. The mean return after {steps} gradient steps: {'; '.join(told)}."


def _draw(look: Look, ways: Sequence[Ways]) -> Figure:
    columns = 2 if look.narrow else GOALS
    rows = len(ways) * (GOALS // columns)
    figure, axes = panels(look, rows, columns, 2.0 if look.narrow else 2.35, sharex=True, sharey=True)
    flat = [ax for row in axes for ax in row]
    for index, ax in enumerate(flat):
        _panel(ax, look, ways[index // GOALS], index % GOALS)
    limit = _limit(ways)
    ticks = (-0.5, 0, 0.5)
    flat[0].set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=ticks, yticks=ticks)
    for axis in (flat[0].xaxis, flat[0].yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    for ax in axes[-1]:
        ax.set_xlabel("x")
    for row in axes:
        row[0].set_ylabel("y")
    figure.legend(handles=_legend(look), loc="outside upper left", ncols=2 if look.narrow else 5)
    return figure


def _limit(ways: Sequence[Ways]) -> float:
    """Half the side of a panel: the goals' square, and most of what the paths reach; a far stray leaves the panel."""
    reached = [np.abs(w.path(step, goal)).max() for w in ways for step, *_ in _SHOWN for goal in range(GOALS)]
    return float(np.clip(1.08 * np.quantile(reached, 0.9), 0.65, 1.6))


def _panel(ax: Axes, look: Look, ways: Ways, goal: int) -> None:
    colour = look.method(ways.record.method)
    ax.set_title(f"{ways.record.method}, goal {goal + 1}", color=colour, pad=16)
    ax.text(0, 1.025, ways.told(goal), transform=ax.transAxes, fontsize=7.5, color=look.muted)
    ax.set_aspect("equal")
    for order, (step, line, strength, width) in enumerate(_SHOWN):
        path = ways.path(step, goal)
        ax.plot(*path.T, line, color=look.shade(colour, strength), linewidth=width, zorder=3 + order)
    ax.plot(0, 0, "o", color=look.ink, markersize=3.5, zorder=7)
    x, y = ways.found.tasks[goal].tolist()
    ax.plot(x, y, "*", color=look.ink, markersize=11, markeredgecolor=look.paper, markeredgewidth=0.9, zorder=8)


def _legend(look: Look) -> list[Line2D]:
    handles = [
        Line2D([], [], color=look.ink, marker="*", markersize=10, linewidth=0, label="goal"),
        Line2D([], [], color=look.ink, marker="o", markersize=3.5, linewidth=0, label="start"),
    ]
    for step, line, strength, width in _SHOWN:
        shade = look.shade(look.ink, strength)
        handles.append(Line2D([], [], color=shade, linestyle=line, linewidth=width, label=words.steps(step)))
    return handles
