"""Figures of a comparison of learners: how good, how fast, and how training went."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from headstart.report import comparisons, words
from headstart.report.axes import iteration_axis, metric_axis
from headstart.report.comparisons import Compared, Entry, View
from headstart.report.picture import METHODS, Look, Picture
from headstart.report.records import MAML, PRETRAINED
from headstart.training.evaluate import StepResult

_COLOURS = tuple(METHODS.values())
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
"""With the colours: a line of its own for each of two dozen learners."""
_VIEWS = ((MAML, "o"), (PRETRAINED, "D"))
"""Colour and marker of each number that a learner is measured by."""
_TOWERING = 5.0
"""An error so many times the largest before adaptation is written at the edge, not reached by the axis."""
_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0)
_ROW = 0.235
"""Height of a learner's row, in inches."""


def pictures(compared: Compared) -> list[Picture]:
    """What can be drawn of a comparison: results, where there are any, and validation, where the runs are there."""
    made = []
    if any(view.of(entry) for entry in compared.entries for view in compared.views):
        made.append(_results_picture(compared))
    curves = _curves(compared)
    if curves:
        made.append(_curves_picture(compared, curves))
    return made


def _results_picture(compared: Compared) -> Picture:
    first, *others = compared.views
    told = [
        f"{entry.learner} {words.value(compared.metric, result.mean)}"
        for entry in compared.entries
        if (result := first.of(entry)) is not None
    ]
    second = f" Diamonds: {others[0].name}." if others else ""
    scale = "on a scale logarithmic in the error" if compared.metric == "accuracy" else "on a logarithmic scale"
    return Picture(
        name=f"comparison-{compared.label}",
        title=f"Learners compared: {compared.recipe}",
        alt=f"A row of dots with intervals for each learner. {first.name.capitalize()}, best first: {', '.join(told)}.",
        caption=(
            f"Left: mean over {compared.num_tasks:,} held-out tasks with its 95 % confidence interval, {scale}. Dots: "
            f"{first.name}, which ranks{' by its median' if compared.metric == 'mse' else ''}.{second} Right: "
            "milliseconds per meta-iteration in training, median over the logged spans."
        ),
        commands=(comparisons.command(compared),),
        draw=lambda look: _draw_results(look, compared),
    )


def _draw_results(look: Look, compared: Compared) -> Figure:
    entries = compared.entries
    height = _ROW * len(entries) + 0.75
    shape = (2, 1) if look.narrow else (1, 2)
    figure = Figure(figsize=(look.width, shape[0] * height + 0.45), layout="constrained")
    grid = figure.subplots(*shape, squeeze=False, width_ratios=[1] if look.narrow else [2.2, 1])
    left, right = grid.flatten().tolist()
    _draw_numbers(left, look, compared)
    _draw_times(right, look, entries)
    for ax in (left, right):
        ax.set_ylim(len(entries) - 0.5, -0.5)  # the best on top
        labelled = ax is left or look.narrow
        ax.set_yticks(range(len(entries)), [entry.learner if labelled else "" for entry in entries])
        ax.grid(visible=False, axis="y")
        ax.spines["left"].set_visible(False)
        for row in range(0, len(entries), 2):
            ax.axhspan(row - 0.5, row + 0.5, color=look.shade(look.faint, 0.45), linewidth=0, zorder=0)
    left.tick_params(axis="y", labelcolor=look.ink)
    right.tick_params(axis="y", labelcolor=look.ink)
    handles = [
        Line2D([], [], color=look.method(method), marker=marker, linewidth=0, label=view.name)
        for view, (method, marker) in zip(compared.views, _VIEWS, strict=False)
    ]
    handles.append(Line2D([], [], color=look.muted, linewidth=1.4, label="95 % interval"))
    figure.legend(handles=handles, loc="outside upper left", ncols=2 if look.narrow else 3, columnspacing=1.2)
    return figure


def _draw_numbers(ax: Axes, look: Look, compared: Compared) -> None:
    limit = _highest(compared)
    shift = 0.17 if len(compared.views) > 1 else 0.0
    reached: list[float] = []
    for view, (method, marker), offset in zip(compared.views, _VIEWS, (-shift, shift), strict=False):
        colour = look.method(method)
        for row, entry in enumerate(compared.entries):
            result = view.of(entry)
            if result is not None and result.mean is not None and result.mean <= limit:
                low, high = _interval(result, compared.metric)
                ax.plot([low, high], [row + offset] * 2, color=colour, linewidth=1.4, solid_capstyle="butt", zorder=3)
                ax.plot(result.mean, row + offset, marker, color=colour, markersize=4.5, zorder=4)
                reached += [result.mean, low, min(high, 2 * limit)]
            elif told := _instead(view, entry, result):
                ax.annotate(
                    told,
                    (1, row if told.isalpha() else row + offset),
                    xycoords=("axes fraction", "data"),
                    color=colour,
                    fontsize=7,
                    ha="right",
                    va="center",
                )
    (_accuracy_axis if compared.metric == "accuracy" else _error_axis)(ax, reached)
    ax.set_title("accuracy" if compared.metric == "accuracy" else "mean squared error")


def _instead(view: View, entry: Entry, result: StepResult | None) -> str:
    """What is written where there is no dot."""
    if result is not None:
        return f"{words.value('mse', result.mean)} →" if result.mean is not None else "diverged"
    if view.step == 1 or view.protocol != comparisons.PUBLISHED:
        return ""
    return "failed" if entry.error else "not finished" if entry.iteration < entry.planned else "not measured"


def _highest(compared: Compared) -> float:
    """The largest number to be drawn: errors of a few divergent tasks have no bound."""
    if compared.metric == "accuracy":
        return 1.0
    before = [row.mean for entry in compared.entries if (row := entry.at(comparisons.PUBLISHED, 0)) is not None]
    return _TOWERING * max((mean for mean in before if mean is not None), default=math.inf)


def _interval(result: StepResult, metric: str) -> tuple[float, float]:
    """Ends of the confidence interval, within what the metric can be; an error's lower end stays above zero."""
    assert result.mean is not None
    spread = result.ci95 or 0.0
    if metric == "accuracy":
        return max(0.0, result.mean - spread), min(1.0, result.mean + spread)
    return max(result.mean - spread, 0.3 * result.mean), result.mean + spread


def _draw_times(ax: Axes, look: Look, entries: Sequence[Entry]) -> None:
    times = [entry.ms_per_iteration for entry in entries]
    known = [(row, ms) for row, ms in enumerate(times) if ms]
    ax.set_title("ms per iteration")
    if not known:
        ax.set_xticks([])
        return
    largest = max(ms for _, ms in known)
    for row, ms in known:
        ax.barh(row, ms, height=0.5, color=look.shade(look.muted, 0.55), zorder=3)
        told = f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2g}"
        ax.text(ms + 0.02 * largest, row, told, fontsize=7.5, color=look.ink, va="center", zorder=4)
    ax.set_xlim(0, 1.18 * largest)
    ax.xaxis.set_major_locator(MaxNLocator(4))


def _accuracy_axis(ax: Axes, values: Sequence[float]) -> None:
    """As much room from 98 to 99 % as from 80 to 90 %; even where nothing comes near 90 %."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high < 0.85:
        ax.margins(x=0.05)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    else:
        rest = 0.002  # no error at all has a place, too
        ax.set_xscale(
            "function",
            functions=(lambda x: -np.log10(np.maximum(1 + rest - x, rest / 2)), lambda t: 1 + rest - 10.0**-t),
        )
        ax.set_xlim(low - 0.15 * (1 - low), min(1.0, high + 0.3 * (1 - high)))
        ax.xaxis.set_major_locator(FixedLocator(_ticks(*ax.get_xlim())))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g} %"))


def _ticks(low: float, high: float) -> list[float]:
    """Accuracies to name between two: the usual ones, or evenly spaced where there are fewer than three."""
    found = [tick for tick in _TICKS if low <= tick <= high]
    return found if len(found) > 2 else [float(tick) for tick in MaxNLocator(4).tick_values(low, high)]


def _error_axis(ax: Axes, values: Sequence[float]) -> None:
    ax.set_xscale("log")
    low, high = min(values, default=0.1) / 1.2, max(values, default=1.0) * 1.2
    ax.set_xlim(low, high)
    subs = (1, 2, 5) if high / low < 200 else (1,)
    ax.xaxis.set_major_locator(LogLocator(10, subs=subs) if high / low > 6 else MaxNLocator(5))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _curves(compared: Compared) -> dict[str, np.ndarray]:
    """Iterations and validation means of each learner, `[2, validations]`, best learner first."""
    found = {}
    for entry in compared.entries:
        lines = [line for line in compared.run(entry).metrics("validation") if line["mean"] is not None]
        if lines:
            found[entry.learner] = np.array([(line["iteration"], line["mean"]) for line in lines], dtype=float).T
    return found


def _curves_picture(compared: Compared, curves: dict[str, np.ndarray]) -> Picture:
    told = [f"{name} {words.value(compared.metric, float(curve[1, -1]))}" for name, curve in curves.items()]
    shown = "accuracy" if compared.metric == "accuracy" else "mean squared error"
    return Picture(
        name=f"comparison-validation-{compared.label}",
        title=f"Validation while training: {compared.recipe}",
        alt=f"A line for each learner against the iteration. At last: {', '.join(told)}.",
        caption=(
            f"Mean {shown} on the same validation tasks each time, after the inner steps that choose the checkpoint. "
            f"{len(curves)} learners; the names stand in the order of the last values."
        ),
        commands=(comparisons.command(compared),),
        draw=lambda look: _draw_curves(look, compared.metric, curves),
    )


def _draw_curves(look: Look, metric: str, curves: dict[str, np.ndarray]) -> Figure:
    height = max(2.6, 0.17 * len(curves) + 1.0)
    figure = Figure(figsize=(look.width, height + 0.3), layout="constrained")
    ax = figure.subplots()
    means = [curve[1] for curve in curves.values()]
    highest = _TOWERING * max(float(mean[0]) for mean in means) if metric == "mse" else math.inf
    metric_axis(ax, metric, [float(v) for mean in means for v in mean if v <= highest])
    iteration_axis(ax, None, look.muted)
    last = max(float(curve[0, -1]) for curve in curves.values())
    first = min(float(curve[0, 0]) for curve in curves.values())
    ax.set_xlim(first if last > first else 0, last)
    colours = {}
    for number, (name, (iterations, mean)) in enumerate(curves.items()):
        colours[name] = _COLOURS[number % len(_COLOURS)][look.dark]
        dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        dot = "o" if len(iterations) < 3 else ""
        ax.plot(iterations, mean, linestyle=dashes, marker=dot, markersize=2.5, color=colours[name], linewidth=0.95)
    ax.set_title("validation accuracy" if metric == "accuracy" else "validation error")
    figure.draw_without_rendering()  # where the lines end, in pixels, is known only then
    _label_ends(ax, look, curves, colours)
    return figure


def _label_ends(ax: Axes, look: Look, curves: dict[str, np.ndarray], colours: dict[str, str]) -> None:
    """Write each line's name at its right end, the names moved apart where lines end together."""
    ends = {name: _place(ax, float(curve[1, -1])) for name, curve in curves.items()}
    names = sorted(ends, key=ends.__getitem__)
    room = 10.5 / 72 * ax.figure.dpi / ax.bbox.height  # a line of text, as a share of the axis
    for name, place in zip(names, spread([ends[name] for name in names], room), strict=True):
        ax.annotate(
            name,
            (1, ends[name]),
            (1.06, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colours[name],
            fontsize=7.5,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": look.shade(colours[name], 0.5),
                "linewidth": 0.6,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )


def _place(ax: Axes, value: float) -> float:
    """Where on the y axis a value is, 0 at the bottom, 1 at the top."""
    pixels = ax.transData.transform((ax.get_xlim()[1], value))
    return float(np.clip(ax.transAxes.inverted().transform(pixels)[1], 0.0, 1.0))


def spread(places: Iterable[float], room: float) -> list[float]:
    """Sorted places moved as little as will do, so that neighbours are `room` apart.

    >>> [round(place, 3) for place in spread([0.1, 0.5, 0.5, 0.9], 0.2)]
    [0.1, 0.4, 0.6, 0.9]
    """
    groups: list[tuple[float, int]] = []  # centre and number of those that stand together
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1:
            (below, n), (above, m) = groups[-2:]
            if above - below >= room * (n + m) / 2 - 1e-9:
                break
            groups[-2:] = [((n * below + m * above) / (n + m), n + m)]
    return [centre + room * (k - (size - 1) / 2) for centre, size in groups for k in range(size)]
