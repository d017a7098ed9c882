"""Plots of measured times and memory."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

WRONG, RIGHT, OURS = "tab:red", "tab:gray", "tab:blue"


def speed(result: dict[str, Any], wrong: dict[str, set[str]], path: Path) -> None:
    """Bars of milliseconds, a panel per work; red where the meta-gradient is off."""
    works = result["works"]
    columns = min(3, len(works))
    rows = -(-len(works) // columns)
    drawing = Figure(figsize=(max(7.0, 5.2 * columns), 3.6 * rows), layout="constrained")
    grid = drawing.subplots(rows, columns, squeeze=False).flat
    for (name, work), axes in zip(works.items(), grid, strict=False):
        measured = {s: r for s, r in work["systems"].items() if "ms" in r}
        colours = [WRONG if s in wrong[name] else OURS if s.startswith("Headstart") else RIGHT for s in measured]
        axes.barh(list(measured), [r["ms"] for r in measured.values()], color=colours)
        for at, r in enumerate(measured.values()):
            axes.plot(r["ms_range"], [at, at], color="black", linewidth=1)
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.invert_yaxis()
        axes.set_title(name)
        axes.set_xlabel("ms per meta-iteration")
        axes.tick_params(axis="y", labelsize=8)
    for axes in list(grid):
        axes.set_visible(False)
    drawing.suptitle(
        f"{result['date']}, {result['environment']['processor']}; blue Headstart, red inexact meta-gradient"
    )
    _save(drawing, path)


def growth(result: dict[str, Any], path: Path) -> None:
    """Time above, memory below, an axis per column."""
    grown = result["works"]
    drawing = Figure(figsize=(4.6 * len(grown), 6.5), layout="constrained")
    panels = drawing.subplots(2, len(grown), squeeze=False)
    for column, (name, axis) in enumerate(grown.items()):
        systems = dict.fromkeys(system for point in axis["points"].values() for system in point)
        for row, (field, label) in enumerate((("ms", "ms per meta-iteration"), ("peak_mib", "peak MiB"))):
            axes = panels[row][column]
            for system in systems:
                points = [(int(at), p[system][field]) for at, p in axis["points"].items() if "ms" in p.get(system, {})]
                axes.plot(*zip(*sorted(points), strict=True), marker="o", label=system) if points else None
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel=label)
            _plain_numbers(axes.xaxis)
            _plain_numbers(axes.yaxis)
        panels[0][column].set_title(f"{name} ({axis['work']})")
    panels[0][0].legend(fontsize=8)
    drawing.suptitle(f"{result['date']}, {result['environment']['processor']}")
    _save(drawing, path)


def _plain_numbers(axis: Axis) -> None:
    """1, 2, 5, 10, ...: powers of ten say little where all is within one of them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def _save(drawing: Figure, path: Path) -> None:
    with mpl.rc_context({"savefig.dpi": 110}):
        drawing.savefig(path, metadata={"Software": None})
