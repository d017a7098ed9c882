"""Figures 4 and 5 of the paper: the return of each method after each gradient step, a panel for each problem."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from headstart.recipes import experiments
from headstart.report import words
from headstart.report.axes import return_axis, step_axis
from headstart.report.commands import commands
from headstart.report.picture import METHODS, Look, Picture, marker, panels
from headstart.report.records import ORACLE, Result, RunRecord, by_the_papers_protocol

_RUN_LINES = ("-", "-.", (0, (6, 1.5, 1, 1.5, 1, 1.5)))
"""Lines of several runs of one method. Dashes are for what was published."""
_PUBLISHED = 0.55  # of a method's colour


class Series(NamedTuple):
    """One run of a method, by the evaluation that speaks for it."""

    name: str
    record: RunRecord
    result: Result
    line: int
    """Which run of its method this is."""

    def measured(self, steps: int) -> np.ndarray:
        """Steps, means and intervals, `[3, steps + 1]`; an oracle, which has nothing to adapt to, throughout."""
        first = self.result.per_step[0]
        shown = [first, first._replace(step=steps)] if self.record.method == ORACLE else self.result.per_step
        return np.array([(s.step, s.mean, s.ci95) for s in shown], dtype=float).T

    def published(self, steps: int) -> np.ndarray:
        """Steps and published means up to `steps`, `[2, ...]`; none beside an evaluation of another kind."""
        known = self.result.published if by_the_papers_protocol(self.result) else ()
        rows = [(number.step, number.value) for number in known if number.step <= steps]
        if self.record.method == ORACLE:
            rows = [(step, value) for _, value in rows[:1] for step in (0, steps)]
        return np.array(rows, dtype=float).reshape(-1, 2).T


class Panel(NamedTuple):
    """The runs on one problem, which are drawn together."""

    problem: str
    series: tuple[Series, ...]

    @property
    def steps(self) -> int:
        """The last step of all of them."""
        return max(1, *(s.result.steps for s in self.series))

    @property
    def published(self) -> bool:
        """Whether a published curve stands beside one of them."""
        return any(s.published(self.steps).size for s in self.series)


def pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """One figure of all control runs that were evaluated."""
    found: dict[str, list[RunRecord]] = {}
    for record in records:
        if record.kind == "control" and record.main_result() is not None:
            found.setdefault(problem(record), []).append(record)
    return [_picture([Panel(name, _series(runs)) for name, runs in found.items()])] if found else []


def problem(record: RunRecord) -> str:
    """The family of environments, with what makes it another than the paper's."""
    name = record.settings["problem"]
    usual = experiments()[name].recipe if name in experiments() else None
    changes = []
    for setting in ("horizon", "frame_skip", "timestep", "velocity"):
        value = record.settings.get(setting)
        if usual is not None and value is not None and value != getattr(usual, setting):
            changes.append(f"{setting.replace('_', ' ')} {value}")
    return ", ".join([name, *changes])


def _series(records: Sequence[RunRecord]) -> tuple[Series, ...]:
    """The runs in the order of their methods; each named by its method, and by its folder where that is not enough."""
    order = list(METHODS)
    methods, made = [record.method for record in records], []
    for record in sorted(records, key=lambda record: order.index(record.method)):
        result = record.main_result()
        assert result is not None
        alike = sum(series.record.method == record.method for series in made)
        single = methods.count(record.method) == 1
        made.append(Series(record.method if single else f"{record.method} ({record.label})", record, result, alike))
    return tuple(made)


def _picture(drawn: Sequence[Panel]) -> Picture:
    series = [s for panel in drawn for s in panel.series]
    beside = " Dashed, with open markers: the published curves." if any(panel.published for panel in drawn) else ""
    tasks = " and ".join(dict.fromkeys(f"{s.result.num_tasks:,}" for s in series))
    flat = any(s.record.method == ORACLE for s in series)
    oracle = " The oracle sees the task and takes no step: its line is its return before any." if flat else ""
    return Picture(
        name="return-per-step",
        title="Return after each gradient step",
        alt=" ".join(_alt(panel) for panel in drawn),
        caption=(
            f"Undiscounted return of an episode after each policy-gradient step on a held-out task: the mean over "
            f"{tasks} tasks, with its 95 % confidence interval as a band.{beside}{oracle} More is better."
        ),
        commands=commands([s.record for s in series], [(s.record, s.result) for s in series]),
        draw=lambda look: _draw(look, drawn),
    )


def _alt(panel: Panel) -> str:
    told = []
    for s in panel.series:
        shown = s.result.per_step[:1] if s.record.method == ORACLE else s.result.per_step
        text = f"{s.name} {', '.join(words.value('return', result.mean) for result in shown)}"
        published = [words.published("return", value) for value in s.published(panel.steps)[1]][: len(shown)]
        told.append(f"{text} (published {', '.join(published)})" if published else text)
    return f"Lines of the return in {panel.problem} after 0 to {panel.steps} gradient steps. {'; '.join(told)}."


def _draw(look: Look, drawn: Sequence[Panel]) -> Figure:
    columns = 1 if look.narrow or len(drawn) == 1 else 2
    height = 3.0 if look.narrow else 3.6 if len(drawn) == 1 else 2.8
    figure, axes = panels(look, -(-len(drawn) // columns), columns, height)
    flat = [ax for row in axes for ax in row]
    for ax, panel in zip(flat, drawn, strict=False):
        for s in reversed(panel.series):  # MAML on top
            _lines(ax, look, s, panel.steps)
        ax.set_title(panel.problem)
        step_axis(ax, panel.steps)
        return_axis(ax)
        ax.set_xticks(range(panel.steps + 1))
    for ax in flat[len(drawn) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel("return")
    handles = _legend(look, drawn)
    figure.legend(
        handles=handles, loc="outside upper left", ncols=2 if look.narrow else 4, columnspacing=1.4, handlelength=2.8
    )
    return figure


def _lines(ax: Axes, look: Look, series: Series, steps: int) -> None:
    colour, sign = look.method(series.record.method), marker(series.record.method)
    pale = look.shade(colour, _PUBLISHED)
    known = series.published(steps)
    ax.plot(*known, "--", color=pale, marker=sign, markerfacecolor=look.paper, markersize=5, linewidth=1.3, zorder=3)
    step, mean, ci95 = series.measured(steps)
    ax.fill_between(step, mean - ci95, mean + ci95, color=colour, alpha=0.16, linewidth=0, zorder=2)
    line = _RUN_LINES[series.line % len(_RUN_LINES)]
    ax.plot(step, mean, linestyle=line, color=colour, marker=sign, zorder=4)


def _legend(look: Look, drawn: Sequence[Panel]) -> list[Line2D | Patch]:
    order = list(METHODS)
    runs = {(s.name, s.record.method, s.line) for panel in drawn for s in panel.series}
    handles: list[Line2D | Patch] = []
    for name, method, line in sorted(runs, key=lambda run: (order.index(run[1]), run[2], run[0])):
        style = _RUN_LINES[line % len(_RUN_LINES)]
        handles.append(Line2D([], [], color=look.method(method), marker=marker(method), linestyle=style, label=name))
    handles.append(Patch(color=look.shade(look.muted, 0.25), label="95 % interval of the mean"))
    if any(panel.published for panel in drawn):
        pale = look.shade(look.muted, _PUBLISHED)
        handles.append(
            Line2D([], [], color=pale, linestyle="--", marker="o", markerfacecolor=look.paper, label="published")
        )
    return handles
