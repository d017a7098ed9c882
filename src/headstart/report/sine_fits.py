"""Figure 2 of the paper: what a few gradient steps make of a few points of a sine wave."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from headstart.recipes import SinusoidRecipe
from headstart.recipes.work import trained
from headstart.report import words
from headstart.report.commands import commands
from headstart.report.picture import Look, Picture, panels
from headstart.report.records import FIRST_ORDER, MAML, PRETRAINED, RunRecord
from headstart.tasks import Sinusoids
from headstart.tasks.sinusoid import curve
from headstart.types import Batch, Task, generator

SEED = 0
"""Seed of the known points; they are the first it gives, not chosen."""
SHARES = ((0.75, 0.25), (0.5, 0.75), (0.25, 1.0))
"""Amplitude and phase of each wave, as shares of their ranges: spread over both, and none the average wave."""
Line = Literal[":", "--", "-"]
_GRID_POINTS = 201
_STYLES: tuple[tuple[int, Line, float, float], ...] = (
    (0, ":", 0.60, 1.5),
    (1, "--", 0.80, 1.5),
    (2, "-", 1.0, 2.1),
)  # order, line, strength, width


@dataclass(frozen=True)
class Wave:
    """A sine wave, and the points of it that are known."""

    where: str
    known: tuple[float, float]
    """Range of x the points are from."""
    support: Batch
    """Inputs and targets `[points, 1]`."""
    x: Tensor
    """`[grid, 1]`."""
    y: Tensor
    """True values there, `[grid, 1]`."""


@dataclass(frozen=True)
class Fits:
    """What one method predicts for each wave."""

    method: str
    steps: tuple[int, ...]
    curves: Tensor
    """`[waves, steps, grid, 1]`."""

    def errors(self, wave: int, y: Tensor) -> list[float]:
        """Mean squared error on the curve, per number of steps."""
        return [float((fit - y).square().mean()) for fit in self.curves[wave]]


def pictures(records: Sequence[RunRecord], data: Path | None) -> list[Picture]:
    """One figure for each meta-trained sinusoid run with a checkpoint, beside its pretrained counterpart if there."""
    runs = [r for r in records if r.kind == "sinusoid" and r.checkpoint]
    shown = []
    for record in runs:
        if record.method in (MAML, FIRST_ORDER):
            baseline = [r for r in runs if r.method == PRETRAINED and r.settings["shots"] == record.settings["shots"]]
            shown.append(_picture([record, *baseline[:1]], data))
    return shown


def waves(source: Sinusoids) -> list[Wave]:
    """Three waves: known by points from the right half of the range, from the left half, and from all of it."""
    low, high = source.x
    halves = {"right half": ((low + high) / 2, high), "left half": (low, (low + high) / 2), "anywhere": (low, high)}
    x = torch.linspace(low, high, _GRID_POINTS).unsqueeze(1)
    found = []
    for (where, known), (amplitude_share, phase_share) in zip(halves.items(), SHARES, strict=True):
        amplitude, phase = _within(source.amplitude, amplitude_share), _within(source.phase, phase_share)
        rng = generator(SEED, f"points of the report, {where}")
        points = torch.empty(source.shots, 1).uniform_(*known, generator=rng)
        support = Batch(points, curve(points, amplitude, phase))
        found.append(Wave(where, known, support, x, curve(x, amplitude, phase)))
    return found


def _within(bounds: tuple[float, float], share: float) -> float:
    return bounds[0] + share * (bounds[1] - bounds[0])


def fits(record: RunRecord, shown: Sequence[Wave], steps: tuple[int, ...], data: Path | None) -> Fits:
    """What the run's learner makes of each wave after each of `steps` gradient steps."""
    assert record.checkpoint is not None
    recipe, learner, _ = trained(record.run, record.checkpoint)
    assert isinstance(recipe, SinusoidRecipe)
    recipe.with_tuned_rate(learner, data, steps[-1])
    support = Batch(*(torch.stack(leaves) for leaves in zip(*(wave.support for wave in shown), strict=True)))
    query = Batch(torch.stack([wave.x for wave in shown]), torch.stack([wave.y for wave in shown]))
    outputs = learner.predict(Task(support, query), steps[-1])
    return Fits(record.method, steps, outputs[:, list(steps)])


def _picture(records: Sequence[RunRecord], data: Path | None) -> Picture:
    record = records[0]
    assert record.checkpoint is not None
    recipe, _, iteration = trained(record.run, record.checkpoint)
    assert isinstance(recipe, SinusoidRecipe)
    shown = waves(recipe.source("test"))
    last, points = recipe.eval_steps, recipe.shots
    steps = tuple(sorted({0, min(1, last), last}))
    each = [fits(r, shown, steps, data) for r in records]
    return Picture(
        name=f"sine-fits-{record.label}",
        title=f"Fits to {points} points: {record.label}",
        alt=_alt(shown, each, points),
        caption=(
            f"Three waves never seen in training, {points} points of each, after {_listed(steps)} gradient steps. "
            "Where the points are all in one half of the range (tinted), the other half can only be right if the "
            f"network has learned that the curve is a sine wave. As Figure 2 of the paper, with {record.label} at "
            f"iteration {iteration:,}. The waves are spread over the ranges of amplitude and phase; their points are "
            f"the first that seed {SEED} gives, not chosen. In the corner: the mean squared error over the whole curve."
        ),
        commands=commands(records),
        draw=lambda look: _draw(look, shown, each),
    )


def _alt(shown: Sequence[Wave], each: Sequence[Fits], points: int) -> str:
    parts = []
    for index, wave in enumerate(shown):
        told = [f"{fit.method} {', '.join(map(words.brief, fit.errors(index, wave.y)))}" for fit in each]
        parts.append(f"{points} points, {wave.where}: {'; '.join(told)}")
    steps = _listed(each[0].steps)
    return f"Sine waves and fits to them. Mean squared error after {steps} gradient steps: {'. '.join(parts)}."


def _listed(steps: Sequence[int]) -> str:
    return " and ".join([", ".join(map(str, steps[:-1])), str(steps[-1])] if len(steps) > 1 else [str(steps[0])])


def _draw(look: Look, shown: Sequence[Wave], each: Sequence[Fits]) -> Figure:
    rows, columns = (len(shown), len(each)) if look.narrow else (len(each), len(shown))
    figure, axes = panels(look, rows, columns, 1.75 if look.narrow else 1.95, sharex=True, sharey=True)
    for m, fit in enumerate(each):
        for w, wave in enumerate(shown):
            _panel(axes[w][m] if look.narrow else axes[m][w], look, wave, fit, w)
    limit = 1.45 * max(float(wave.y.abs().max()) for wave in shown)
    low, high = float(shown[0].x[0]), float(shown[0].x[-1])
    axes[0][0].set(xlim=(low, high), ylim=(-limit, limit), xticks=(low, low / 2, 0, high / 2, high))
    axes[0][0].xaxis.set_major_formatter("{x:g}")
    figure.legend(handles=_legend(look, each[0].steps), loc="outside upper left", ncols=2 if look.narrow else 5)
    return figure


def _panel(ax: Axes, look: Look, wave: Wave, fit: Fits, index: int) -> None:
    colour = look.method(fit.method)
    title = f"{fit.method}, {wave.where}"
    ax.set_title(title if len(title) < 24 or not look.narrow else title.replace(", ", ",\n"), color=colour)
    x = wave.x.squeeze(1).numpy()
    if wave.where != "anywhere":
        ax.axvspan(*wave.known, color=look.shade(look.muted, 0.09), linewidth=0, zorder=0)
    ax.plot(x, wave.y.squeeze(1).numpy(), color=look.shade(look.muted, 0.45), linewidth=4, solid_capstyle="round")
    for (order, line, strength, width), values in zip(_styles(len(fit.steps)), fit.curves[index], strict=True):
        shade = look.shade(colour, strength)
        ax.plot(x, values.squeeze(1).numpy(), line, color=shade, linewidth=width, zorder=3 + order)
    ax.plot(
        *(leaf.squeeze(1).numpy() for leaf in wave.support),
        "^",
        color=look.ink,
        markersize=6,
        markeredgecolor=look.paper,
        markeredgewidth=0.8,
        zorder=8,
        clip_on=False,
    )
    errors = " → ".join(words.brief(error) for error in fit.errors(index, wave.y))
    ax.text(0.03, 0.03, f"MSE {errors}", transform=ax.transAxes, fontsize=7, color=look.muted, zorder=9)


def _styles(count: int) -> list[tuple[int, Line, float, float]]:
    """As many line styles as there are fits, the last of them always the strongest."""
    return [*_STYLES[: count - 1], _STYLES[-1]]


def _legend(look: Look, steps: Sequence[int]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=look.shade(look.muted, 0.45), linewidth=4, label="true curve"),
        Line2D([], [], color=look.ink, marker="^", markersize=6, linewidth=0, label="known points"),
    ]
    for (_, line, strength, width), step in zip(_styles(len(steps)), steps, strict=True):
        shade = look.shade(look.ink, strength)
        handles.append(Line2D([], [], color=shade, linestyle=line, linewidth=width, label=words.steps(step)))
    return handles
