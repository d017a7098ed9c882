"""How training went, from each run's `metrics.jsonl`."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from headstart.report import words
from headstart.report.axes import iteration_axis, metric_axis
from headstart.report.commands import commands
from headstart.report.picture import Look, Picture, panels
from headstart.report.records import RunRecord

_SMOOTHED_OVER = 0.03  # of the run


def pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """One figure for each run that learns from examples and has logged anything."""
    return [_picture(record) for record in records if record.kind != "control" and record.training]


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Centred moving average over `width` values, over fewer at the ends.

    >>> smooth(np.array([0.0, 3.0, 6.0, 3.0]), 3)
    array([1.5, 3. , 4. , 4.5])
    """
    kernel = np.ones(max(1, width))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def _picture(record: RunRecord) -> Picture:
    last, metric = record.training[-1], _metric(record)
    shown = "accuracy" if metric == "accuracy" else "mean squared error"
    told = f"The meta-loss was {record.training[0]['meta_loss']:.3g} at first and {last['meta_loss']:.3g} at last."
    if record.validations:
        final = record.validations[-1]
        told += f" The validation {shown} is {words.value(metric, final['mean'], final['ci95'])} at last."
    time = words.duration(record.seconds)
    best = record.best_iteration
    chosen = "" if best is None else f" Vertical line: the checkpoint best on validation, iteration {best:,}."
    return Picture(
        name=f"learning-curve-{record.label}",
        title=f"Learning curve: {record.label}",
        alt=f"Two curves against the iteration, up to {record.iteration:,}. {told}",
        caption=(
            f"Left: meta-loss, as logged (light) and its moving average. Right: {shown} on the same "
            f"validation tasks each time{validated_after(record)}, mean with 95 % confidence "
            f"interval{', and median (dotted)' if metric == 'mse' else ''}.{chosen} "
            f"{record.iteration:,} iterations in {time}."
        ),
        commands=commands([record]),
        draw=lambda look: _draw(look, record),
    )


def validated_after(record: RunRecord) -> str:
    """After how many gradient steps validation measured, to go on with in a sentence; empty where that is not noted."""
    step = record.validations[-1].get("step") if record.validations else None
    return "" if step is None else f" {words.steps(step)}" if step else " without a gradient step"


def _metric(record: RunRecord) -> str:
    return record.validations[-1]["metric"] if record.validations else "mse"


def _draw(look: Look, record: RunRecord) -> Figure:
    rows, columns = (2, 1) if look.narrow else (1, 2)
    figure, axes = panels(look, rows, columns, 2.1, sharex=True)
    left, right = [ax for row in axes for ax in row]
    colour = look.method(record.method)
    _losses(left, look, record, colour)
    _validations(right, look, record, colour)
    for ax in (left, right):
        iteration_axis(ax, record.best_iteration, look.muted)
    handles = [
        Line2D([], [], color=look.shade(colour, 0.35), linewidth=1, label="as logged"),
        Line2D([], [], color=colour, label="average"),
    ]
    if _metric(record) == "mse":
        handles.append(Line2D([], [], color=colour, linestyle=":", linewidth=1.2, label="median"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3, columnspacing=1.2)
    return figure


def _losses(ax: Axes, look: Look, record: RunRecord, colour: str) -> None:
    iterations = np.array([line["iteration"] for line in record.training])
    losses = np.array([line["meta_loss"] for line in record.training])
    ax.plot(iterations, losses, color=look.shade(colour, 0.35), linewidth=0.8)
    ax.plot(iterations, smooth(losses, int(_SMOOTHED_OVER * len(losses))), color=colour)
    metric_axis(ax, "mse", losses)
    ax.set_title("meta-loss")


def _validations(ax: Axes, look: Look, record: RunRecord, colour: str) -> None:
    metric = _metric(record)
    rows = [(line["iteration"], line["mean"], line["ci95"], line["median"]) for line in record.validations]
    iterations, mean, ci95, median = np.array(rows, dtype=float).reshape(-1, 4).T
    metric_axis(ax, metric, [*mean, *median] if metric == "mse" else mean)
    ax.fill_between(iterations, mean - ci95, mean + ci95, color=colour, alpha=0.18, linewidth=0)
    dot = "o" if len(iterations) < 12 else ""
    ax.plot(iterations, mean, color=colour, marker=dot)
    if metric == "mse":
        ax.plot(iterations, median, ":", color=colour, linewidth=1.2)
    ax.set_title("validation accuracy" if metric == "accuracy" else "validation error")
