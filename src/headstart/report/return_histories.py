"""How training on control problems went: returns before and after adaptation, and how far each update moved."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from headstart.report import words
from headstart.report.axes import iteration_axis, return_axis
from headstart.report.commands import commands
from headstart.report.learning_curves import smooth, validated_after
from headstart.report.picture import Look, Picture, panels
from headstart.report.records import RunRecord

_SMOOTHED_OVER = 0.05  # of the run
_BEFORE = 0.5  # of a method's colour


def pictures(records: Sequence[RunRecord]) -> list[Picture]:
    """One figure for each control run that has logged anything."""
    return [_picture(record) for record in records if record.kind == "control" and record.training]


def _picture(record: RunRecord) -> Picture:
    first, last = record.training[0], record.training[-1]
    adapts, validated = _adapts(record), bool(record.validations)
    told = f"The return of training episodes was {_return(first)} at first and {_return(last)} at last."
    if validated:
        final = record.validations[-1]
        told += f" On validation tasks it is {words.value('return', final['mean'], final['ci95'])} at last."
    left = "return of the training episodes, "
    left += "before adaptation (light) and after it (strong)" if adapts else "without adaptation"
    points = f"Points: validation tasks, the same each time,{validated_after(record)}, with 95 % confidence intervals. "
    best = record.best_iteration
    chosen = "" if best is None else f"Vertical line: the checkpoint best on validation, iteration {best:,}. "
    bound = "; dashed, its bound; crosses, updates that the line search gave up" if _bound(record) else ""
    return Picture(
        name=f"learning-curve-{record.label}",
        title=f"Learning curve: {record.label}",
        alt=f"Returns against the iteration, up to {record.iteration:,}. {told}",
        caption=(
            f"Left: {left}; thin as logged, thick their moving average. {points if validated else ''}{chosen}"
            f"Right: how far each meta-update moved the policies, as mean Kullback-Leibler divergence{bound}. "
            f"{record.iteration:,} iterations in {words.duration(record.seconds)}."
        ),
        commands=commands([record]),
        draw=lambda look: _draw(look, record),
    )


def _adapts(record: RunRecord) -> bool:
    """Whether there is a return after adaptation: not for what was trained on all tasks jointly."""
    return record.settings.get("steps") != 0


def _bound(record: RunRecord) -> float | None:
    """TRPO's bound on the divergence."""
    return record.settings.get("max_kl") if record.settings.get("meta_update", "trpo") == "trpo" else None


def _return(line: dict[str, float]) -> str:
    before, after = (words.value("return", line[name]) for name in ("return_before", "return_after"))
    return before if before == after else f"{before} before and {after} after adaptation"


def _draw(look: Look, record: RunRecord) -> Figure:
    rows, columns = (2, 1) if look.narrow else (1, 2)
    figure, axes = panels(look, rows, columns, 2.3, sharex=True)
    left, right = [ax for row in axes for ax in row]
    _returns(left, look, record)
    _divergences(right, look, record)
    for ax in (left, right):
        iteration_axis(ax, record.best_iteration, look.muted)
    figure.legend(handles=_legend(look, record), loc="outside upper left", ncols=2 if look.narrow else 4)
    return figure


def _returns(ax: Axes, look: Look, record: RunRecord) -> None:
    colour = look.method(record.method)
    iterations = np.array([line["iteration"] for line in record.training])
    names = {"return_before": _BEFORE, "return_after": 1.0} if _adapts(record) else {"return_after": 1.0}
    for name, strength in names.items():
        values = np.array([line[name] for line in record.training])
        ax.plot(iterations, values, color=look.shade(colour, 0.4 * strength), linewidth=0.7, zorder=2)
        width = int(_SMOOTHED_OVER * len(values))
        ax.plot(iterations, smooth(values, width), color=look.shade(colour, strength), zorder=3)
    rows = [(line["iteration"], line["mean"], line["ci95"]) for line in record.validations]
    at, mean, ci95 = np.array(rows, dtype=float).reshape(-1, 3).T
    ax.errorbar(
        at, mean, yerr=ci95, fmt="o", color=look.ink, markersize=3.2, elinewidth=0.9, markeredgewidth=0, zorder=4
    )
    return_axis(ax)
    ax.set_title("return")


def _divergences(ax: Axes, look: Look, record: RunRecord) -> None:
    colour, bound = look.method(record.method), _bound(record)
    iterations = np.array([line["iteration"] for line in record.training])
    values = np.array([line["kl"] for line in record.training])
    refused = np.array([line.get("accepted", 1.0) == 0 for line in record.training])
    ax.plot(iterations[~refused], values[~refused], color=colour, linewidth=1)
    if refused.any():  # an empty line that is not clipped counts as one at the figure's corner, for the layout
        ax.plot(iterations[refused], values[refused], "x", color=look.bad, markersize=4, clip_on=False)
    if bound is not None:
        ax.axhline(bound, color=look.muted, linestyle="--", linewidth=1.2)
    ax.set_ylim(0, 1.12 * max(bound or 0.0, float(values.max()), 1e-9))
    ax.set_title("KL divergence of each meta-update")


def _legend(look: Look, record: RunRecord) -> list[Line2D | Patch]:
    colour = look.method(record.method)
    if _adapts(record):
        handles: list[Line2D | Patch] = [
            Line2D([], [], color=look.shade(colour, _BEFORE), label="before adaptation"),
            Line2D([], [], color=colour, label="after adaptation"),
        ]
    else:
        handles = [Line2D([], [], color=colour, label="without adaptation")]
    if record.validations:
        handles.append(Line2D([], [], color=look.ink, marker="o", markersize=3.2, linewidth=0, label="validation"))
    if _bound(record) is not None:
        handles.append(Line2D([], [], color=look.muted, linestyle="--", linewidth=1.2, label="bound"))
    return handles
