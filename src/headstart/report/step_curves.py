"""Figure 3 of the paper: how good each method is after each gradient step, from the evaluations of the runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from headstart.recipes import Published
from headstart.report import words
from headstart.report.axes import metric_axis, step_axis
from headstart.report.commands import commands
from headstart.report.picture import METHODS, Look, Picture, marker, panels
from headstart.report.records import ORACLE, Result, RunRecord, by_the_papers_protocol

_TOWERING = 5
"""A mean error so many times that before the first step is written at the edge, not reached by the axis."""


class Series(NamedTuple):
    """One evaluation of one run: a line."""

    record: RunRecord
    result: Result


class Panel(NamedTuple):
    """The lines drawn together."""

    title: str
    series: tuple[Series, ...]


def error_pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """One figure of the errors of all regression runs that were evaluated: a panel per number of shots."""
    drawn = _error_panels([record for record in records if "sinusoid" in record.kind])
    return [_error_picture(drawn)] if drawn else []


def accuracy_pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """One figure of accuracies for each classification problem: a panel per set of conditions."""
    problems: dict[str, list[RunRecord]] = {}
    for record in records:
        if any(result.metric == "accuracy" for result in record.results):
            problems.setdefault(record.recipe.removesuffix("-first-order"), []).append(record)
    return [_accuracy_picture(problem, _accuracy_panels(runs)) for problem, runs in problems.items()]


def _error_panels(records: Sequence[RunRecord]) -> list[Panel]:
    made = []
    for shots in sorted({result.conditions["shots"] for record in records for result in record.results}):
        found = [(record, record.main_result(shots)) for record in records]
        series = tuple(Series(record, result) for record, result in found if result is not None)
        if series:
            made.append(Panel(f"{shots} point{'s' if shots > 1 else ''}", series))
    return made


def _accuracy_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """A panel for each set of conditions; of evaluations that differ in tasks or steps alone, the largest."""
    chosen: dict[tuple[str, str], Series] = {}
    for record in records:
        for result in record.results:
            key = "\n".join(words.conditions(record, result)), record.label
            old = chosen.get(key)
            if old is None or _weight(result) > _weight(old.result):
                chosen[key] = Series(record, result)
    panels_by_title = {title: [s for (other, _), s in chosen.items() if other == title] for title, _ in chosen}
    made = [Panel(title, tuple(series)) for title, series in panels_by_title.items()]
    return sorted(made, key=lambda panel: _order(panel.series[0].result))


def _weight(result: Result) -> tuple[bool, int, int]:
    return result.checkpoint == "best", result.num_tasks, result.steps


def _order(result: Result) -> tuple[bool, str, int]:
    return not by_the_papers_protocol(result), result.conditions["norm"], result.conditions["queries"]


def _error_picture(drawn: Sequence[Panel]) -> Picture:
    series = [s for panel in drawn for s in panel.series]
    return Picture(
        name="error-per-step",
        title="Error after each gradient step",
        alt=_alt(drawn),
        caption=(
            "Mean squared error on held-out sine waves, as Figure 3 of the paper, on a logarithmic scale. Thick: the "
            "mean over tasks with its 95 % confidence interval (where that is wider than the mean, a line for its "
            "upper half). Thin and dotted: the median. A few waves on which gradient descent diverges can own the "
            "mean; they do not move the median. The oracle knows the wave and needs no step: its line is its error "
            f"before any.{' Diamonds: published.' if _published(drawn) else ''}"
        ),
        commands=commands([s.record for s in series], series),
        draw=lambda look: _draw(look, drawn, columns=min(3, max(2, len(drawn))), height=2.9),
    )


def _accuracy_picture(problem: str, drawn: Sequence[Panel]) -> Picture:
    series = [s for panel in drawn for s in panel.series]
    return Picture(
        name=f"accuracy-per-step-{problem}",
        title=f"Accuracy after each gradient step: {problem}",
        alt=_alt(drawn),
        caption=(
            "Accuracy on tasks of characters never seen in training, mean with 95 % confidence interval, on a scale "
            "logarithmic in the error. Batch norm from the queries is how the literature measures: a prediction then "
            "depends on the other queries of its task; from the support set it does not."
            f"{' Diamonds: published, in the panel of the same conditions.' if _published(drawn) else ''}"
        ),
        commands=commands([s.record for s in series], series),
        draw=lambda look: _draw(look, drawn, columns=min(4, max(2, len(drawn))), height=2.5),
    )


def _alt(drawn: Sequence[Panel]) -> str:
    parts = []
    for panel in drawn:
        told = []
        for name, (_, result) in zip(_names(panel), panel.series, strict=True):
            ends = [step for step in (result.per_step[0], result.per_step[-1]) if not _flat(name) or step.step == 0]
            told.append(f"{name} " + ", ".join(f"{words.value(result.metric, s.mean)} after {s.step}" for s in ends))
        parts.append(f"{panel.title.replace(chr(10), ', ')}: {'; '.join(told)}")
    return "Lines by gradient step. " + ". ".join(parts) + "."


def _names(panel: Panel) -> list[str]:
    """A name for each line: the method, and the run where two have the same method."""
    methods = [series.record.method for series in panel.series]
    return [
        m if methods.count(m) == 1 else f"{m} ({s.record.label})" for m, s in zip(methods, panel.series, strict=True)
    ]


def _flat(name: str) -> bool:
    return name.startswith(ORACLE)


def _draw(look: Look, drawn: Sequence[Panel], columns: int, height: float) -> Figure:
    columns = columns if not look.narrow else min(2, len(drawn)) if _metric(drawn) == "accuracy" else 1
    rows = -(-len(drawn) // columns)
    figure, axes = panels(look, rows, columns, height, sharex=True, sharey=True)
    flat = [ax for row in axes for ax in row]
    results = [series.result for panel in drawn for series in panel.series]
    last = max(result.steps for result in results)
    step_axis(flat[0], last)
    metric_axis(flat[0], _metric(drawn), _values(drawn))
    for ax, panel in zip(flat, drawn, strict=False):
        _panel(ax, look, panel, last)
    for ax in flat[len(drawn) :]:
        ax.set_visible(False)
    for ax in flat[: len(drawn)]:
        ax.set_xlabel("gradient steps")
        ax.xaxis.set_tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("accuracy" if _metric(drawn) == "accuracy" else "mean squared error")
    figure.legend(handles=_legend(look, drawn), loc="outside upper left", ncols=2 if look.narrow else 4)
    return figure


def _panel(ax: Axes, look: Look, panel: Panel, last: int) -> None:
    ax.set_title(panel.title, **({"fontsize": 8, "fontweight": "normal"} if "\n" in panel.title else {}))
    seen: dict[str, int] = {}
    for record, result in panel.series:
        colour = look.method(record.method)
        line = ("-", "--", "-.", ":")[seen.setdefault(record.method, 0) % 4]
        seen[record.method] += 1
        steps, mean, ci95, median = _columns(record, result, last)
        tight = (ci95 < mean) | (result.metric == "accuracy")  # the others have no lower end on a logarithmic scale
        ax.fill_between(steps, mean - ci95, mean + ci95, where=tight, color=colour, alpha=0.18, linewidth=0)
        ax.vlines(steps[~tight], mean[~tight], (mean + ci95)[~tight], colors=colour, alpha=0.5, linewidth=1)
        ax.plot(steps, mean, line, color=colour, marker=marker(record.method), zorder=4)
        if result.metric == "mse":
            ax.plot(steps, median, ":", color=colour, linewidth=1.1, zorder=3)
            _say_what_is_above(ax, steps, mean, colour)
        for number in result.published if by_the_papers_protocol(result) else ():
            ax.plot(
                number.step,
                number.value,
                "D",
                color=look.paper,
                markeredgecolor=colour,
                markersize=6.5,
                markeredgewidth=1.5,
                zorder=5,
                clip_on=False,
            )


def _say_what_is_above(ax: Axes, steps: np.ndarray, mean: np.ndarray, colour: str) -> None:
    """Write the largest mean at the upper edge, where the axis does not reach it."""
    top = ax.get_ylim()[1]
    if (above := np.nanmax(mean, initial=0.0)) > top:
        told = f"↑ {words.value('mse', float(above))}"
        ax.text(float(steps[np.nanargmax(mean)]), top, told, color=colour, fontsize=7.5, ha="center", va="bottom")


def _columns(record: RunRecord, result: Result, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps, mean, interval and median as arrays; NaN, which is not drawn, where every task diverged.

    The oracle's, which takes no step, reach to the `last` step of the others.
    """
    per_step = result.per_step
    if record.method == ORACLE:
        per_step = [per_step[0], per_step[0]._replace(step=last)]
    rows = [(s.step, s.mean, s.ci95, s.median) for s in per_step]
    steps, mean, ci95, median = np.array(rows, dtype=float).T
    return steps, mean, ci95, median


def _metric(drawn: Sequence[Panel]) -> str:
    return drawn[0].series[0].result.metric


def _values(drawn: Sequence[Panel]) -> list[float]:
    """What the y axis must reach. Errors many times those before adaptation are left out: they have no bound."""
    found: list[float] = []
    for panel in drawn:
        for record, result in panel.series:
            _, mean, _, median = _columns(record, result, result.steps)
            found += [*mean] if result.metric == "accuracy" else [*mean[mean < _TOWERING * mean[0]], *median]
    return found + [number.value for number in _published(drawn)]


def _published(drawn: Sequence[Panel]) -> list[Published]:
    """The published numbers that belong into the figure."""
    results = [series.result for panel in drawn for series in panel.series]
    return [number for result in results if by_the_papers_protocol(result) for number in result.published]


def _legend(look: Look, drawn: Sequence[Panel]) -> list[Line2D | Patch]:
    methods = {series.record.method for panel in drawn for series in panel.series}
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=look.method(m), marker=marker(m), label=m) for m in METHODS if m in methods
    ]
    if _metric(drawn) == "mse":
        handles.append(Line2D([], [], color=look.muted, linestyle=":", linewidth=1.1, label="median"))
    handles.append(Patch(color=look.shade(look.muted, 0.25), label="95 % interval of the mean"))
    if _published(drawn):
        handles.append(
            Line2D(
                [],
                [],
                marker="D",
                color=look.paper,
                markeredgecolor=look.muted,
                markersize=6.5,
                markeredgewidth=1.5,
                linewidth=0,
                label="published",
            )
        )
    return handles
