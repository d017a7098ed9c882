"""Axes that several figures share: accuracy and error where differences show, and iterations."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

_ACCURACIES = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 1.0)
_ALMOST = 1e-3
"""Added to an error rate, so that no error at all has a place on a logarithmic scale."""


def metric_axis(ax: Axes, metric: str, values: Iterable[float]) -> None:
    """The y axis of `metric`, wide enough for `values`: both kinds are logarithmic in the error."""
    found = [value for value in values if np.isfinite(value)]
    if metric == "accuracy":
        _accuracy_axis(ax, found)
    else:
        _error_axis(ax, [value for value in found if value > 0])


def iteration_axis(ax: Axes, best: int | None, colour: str) -> None:
    """The x axis of meta-iterations, with a line at the best checkpoint, if one was chosen."""
    ax.set_xlabel("meta-iterations")
    ax.xaxis.set_tick_params(labelbottom=True)  # on every panel, although they share it
    if best is not None:
        ax.axvline(best, color=colour, linewidth=1, zorder=1)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}"))


def step_axis(ax: Axes, last: int) -> None:
    """The x axis of gradient steps."""
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.set_xlim(-0.03 * max(last, 1), 1.03 * max(last, 1))
    ax.set_xlabel("gradient steps")


def return_axis(ax: Axes) -> None:
    """The y axis of returns, which may be negative: linear."""
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,g}".replace("-", "−")))
    ax.margins(y=0.06)


def _error_axis(ax: Axes, values: list[float]) -> None:
    ax.set_yscale("log")
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    low, high = low / 1.5, high * 1.5
    ax.set_ylim(low, high)
    subs = (1, 2, 5) if high / low < 200 else (1, 3) if high / low < 5e3 else (1,)
    ax.yaxis.set_major_locator(LogLocator(10, subs=subs) if high / low > 6 else MaxNLocator(4))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}" if 1e-4 <= y < 1e4 else f"{y:.0e}"))


def _accuracy_axis(ax: Axes, values: list[float]) -> None:
    # As much room from 98 to 99 % as from 80 to 90 %.
    ax.set_yscale(
        "function",
        functions=(lambda y: -np.log10(np.maximum(1 + _ALMOST - y, _ALMOST / 2)), lambda t: 1 + _ALMOST - 10.0**-t),
    )
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    below = [tick for tick in _ACCURACIES if tick <= low]
    above = [tick for tick in _ACCURACIES if tick >= high]
    low, high = below[-1] if below else 0.0, above[0] if above else 1.0
    ax.set_ylim(low, high)
    ticks = [tick for tick in _ACCURACIES if low <= tick <= high]
    ax.yaxis.set_major_locator(FixedLocator(ticks) if len(ticks) > 3 else MaxNLocator(4))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:g} %"))
