"""What a figure of the report is, and how all of them look: one palette, one encoding, four renderings."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from headstart.report.records import AVERAGE, CONTEXT, FIRST_ORDER, MAML, ORACLE, PRETRAINED, RANDOM, SUCCESSOR

_DPI = 200
_COLOURS = 128  # of the PNG palette: curves need no more, and files are a third as large

# Okabe and Ito's palette, which the common forms of colour blindness tell apart; brighter on dark paper.
METHODS = {
    MAML: ("#0072B2", "#56B4E9"),
    FIRST_ORDER: ("#A8558A", "#E39CC4"),
    CONTEXT: ("#8A7400", "#DCC24A"),
    SUCCESSOR: ("#3B8EA5", "#7FD0E6"),
    PRETRAINED: ("#C65300", "#F08C3C"),
    AVERAGE: ("#9C4F2E", "#D99A7A"),
    RANDOM: ("#6B737E", "#A9B1BC"),
    ORACLE: ("#00805C", "#35C99F"),
}
_MARKERS = {
    MAML: "o",
    FIRST_ORDER: "D",
    CONTEXT: "v",
    SUCCESSOR: "P",
    PRETRAINED: "s",
    AVERAGE: "X",
    RANDOM: "^",
    ORACLE: "",
}


class Look(NamedTuple):
    """On which paper, and how wide, a figure is drawn."""

    dark: bool = False
    narrow: bool = False

    @property
    def paper(self) -> str:
        """Background."""
        return "#15181d" if self.dark else "#ffffff"

    @property
    def ink(self) -> str:
        """Text and what was observed."""
        return "#e6e8eb" if self.dark else "#1b1e23"

    @property
    def muted(self) -> str:
        """Axes and notes."""
        return "#a3abb6" if self.dark else "#59616d"

    @property
    def faint(self) -> str:
        """Grid lines and frames."""
        return "#2c313a" if self.dark else "#e2e5e9"

    @property
    def bad(self) -> str:
        """What is wrong; never said by colour alone."""
        return "#F08C3C" if self.dark else "#C65300"

    @property
    def width(self) -> float:
        """Width of a figure, in inches; a narrow one fills a phone's screen at the same size of text."""
        return 3.7 if self.narrow else 8.0

    def method(self, name: str) -> str:
        """Colour of a method."""
        return METHODS[name][self.dark]

    def shade(self, colour: str, strength: float) -> str:
        """`colour` mixed into the paper; 1 leaves it as it is."""
        (r, g, b), (paper_r, paper_g, paper_b) = to_rgb(colour), to_rgb(self.paper)
        rest = 1 - strength
        return to_hex((strength * r + rest * paper_r, strength * g + rest * paper_g, strength * b + rest * paper_b))

    @property
    def settings(self) -> dict[Any, Any]:
        """Matplotlib's settings while such a figure is drawn."""
        return {
            "font.family": "DejaVu Sans",
            "font.size": 8.5,
            "text.usetex": False,
            "axes.titlesize": 9.0,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 8.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.faint,
            "grid.linewidth": 0.7,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "legend.handlelength": 2.3,
            "lines.linewidth": 1.7,
            "lines.markersize": 4.0,
            "xtick.major.size": 0.0,
            "ytick.major.size": 0.0,
            "ytick.minor.size": 0.0,
            "text.color": self.ink,
            "axes.labelcolor": self.muted,
            "axes.titlecolor": self.ink,
            "axes.edgecolor": self.shade(self.muted, 0.5),
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "axes.facecolor": self.paper,
            "figure.facecolor": self.paper,
        }


LOOKS = tuple(Look(dark, narrow) for narrow in (False, True) for dark in (False, True))


@dataclass(frozen=True)
class Picture:
    """A figure that can be drawn in any look, and the words that go with it."""

    name: str
    """File name, without folder and suffix."""
    title: str
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str
    commands: tuple[str, ...]
    """What made it."""
    draw: Callable[[Look], Figure]

    def png(self, look: Look) -> bytes:
        """The figure as a PNG file."""
        with matplotlib.rc_context(look.settings):
            figure = self.draw(look)
            figure.set_dpi(_DPI)
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        file = io.BytesIO()
        image.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, "png", optimize=True)
        return file.getvalue()


def panels(
    look: Look, rows: int, columns: int, height: float, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `rows` times `columns` panels, each `height` inches high, and its panels by row.

    Args:
        look: How it is to look.
        rows: Panels from top to bottom.
        columns: Panels from left to right.
        height: Of one panel with its labels, in inches.
        sharex: One x axis for all.
        sharey: One y axis for all.
    """
    figure = Figure(figsize=(look.width, rows * height + 0.45), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex, sharey=sharey).tolist()


def marker(method: str) -> str:
    """Marker of a method, so that it is known by more than its colour."""
    return _MARKERS[method]
