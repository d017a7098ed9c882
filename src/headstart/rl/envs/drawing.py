"""How a problem says what its observations look like, and what the plain pictures are made of.

A problem can be drawn if it has a method `artist`, as `Navigation` has:

>>> def artist(size: tuple[int, int]) -> Artist:
...     return Artist(lambda task, observation: blank(size))
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from headstart.rl.envs.robots import Floats

Picture = NDArray[np.uint8]
"""Red, green and blue, `[height, width, 3]`."""

PAPER, GRID, GOAL, AGENT = (255, 255, 255), (205, 210, 215), (46, 139, 87), (31, 90, 180)


def _nothing() -> None:
    """There is nothing to free."""


class Artist(NamedTuple):
    """Draws moments of one problem's environments."""

    draw: Callable[[Floats, Floats], Picture]
    """From a task, `[task]`, and what was observed, `[observation]`."""
    close: Callable[[], None] = _nothing
    """Frees what drawing holds."""


@runtime_checkable
class Drawable(Protocol):
    """A problem whose observations can be drawn."""

    def artist(self, size: tuple[int, int]) -> Artist:
        """Who draws it, `size` (height and width) in pixels."""
        ...


def blank(size: tuple[int, int]) -> Picture:
    """A picture of paper."""
    return np.full((*size, 3), PAPER, np.uint8)


def coordinates(size: tuple[int, int]) -> tuple[Floats, Floats]:
    """Each pixel's x, to the right, and y, upwards, with [-1, 1]^2 as large as it fits."""
    height, width = size
    right, up = np.arange(width) + 0.5 - width / 2, height / 2 - np.arange(height) - 0.5
    x, y = np.meshgrid(right * 2 / min(size), up * 2 / min(size))
    return x, y
