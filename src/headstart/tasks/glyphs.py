"""Procedural hand-drawn-like characters: unlimited classes, and no data needed.

A class is a program for the pen: up to four strokes of up to three pieces. A piece has a length and turns by
an angle on its way (a line, an arc, a loop); a corner may come before it; a stroke begins at, ends at or
crosses a point of an earlier one. An example is the same program by another hand: every length, angle and
meeting point is off by a little, and so are slant, size and place.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from headstart.tasks.episodes import ClassStore
from headstart.types import generator

Part = Literal["train", "val", "test"]

_STROKES = 4
_PIECES = 3
_MOST = 8  # pieces in all: 3 and 3, or 2, 2, 2 and 2
_POINTS = 32  # per piece
_TRIES = 8  # programs per class, of which the clearest is kept
_CHUNK = 32  # classes rendered at once: 20 examples of them take 50 MiB

# Lengths are in widths of the frame, angles in radians.
_PEN = 0.025  # half the pen's width
_BLUR = 0.021
_MARGIN = 0.07
_LONGEST = 1.35  # piece; its points then lie closer than two blurs, and do not show

# Random numbers per class (of the whole, of each stroke, of each piece) and per example (likewise; normal). Those
# per example add up to a multiple of 16, for then torch gives the first examples the same ones however many follow.
_CLASS_DRAWS = (2, 8 * _STROKES, 8 * _STROKES * _PIECES)
_EXAMPLE_DRAWS = (16, 4 * _STROKES, 4 * _STROKES * _PIECES)


class Strokes(NamedTuple):
    """Pen programs; `...` stands for any leading axes."""

    length: Tensor
    """Of each piece [..., strokes, pieces]; 0 where there is none."""

    turn: Tensor
    """By how much each piece changes its direction, in radians [..., strokes, pieces]."""

    bend: Tensor
    """Whether a piece turns more at its start (negative) or its end, -1 to 1 [..., strokes, pieces]."""

    corner: Tensor
    """The change of direction before each piece, in radians [..., strokes, pieces]."""

    parent: Tensor
    """Which earlier stroke this one is attached to [..., strokes]."""

    at: Tensor
    """The point of that stroke where it is attached, counted from its start [..., strokes]."""

    own: Tensor
    """The point of this stroke that lies there, likewise [..., strokes]."""

    gap: Tensor
    """How far from it [..., strokes, 2]."""


def store(classes: int, examples: int = 20, size: int = 28, seed: int = 0, part: Part = "train") -> ClassStore:
    """Drawings of `classes` invented characters, with ink 255 on 0.

    A class depends only on the seed, the part and its own number: a larger store begins with the smaller one,
    and the parts share no class.

    Args:
        classes: As many as wanted.
        examples: Drawings of each class.
        size: Height and width in pixels, 8 or more.
        seed: Another seed gives another world of characters.
        part: `train`, `val` or `test`.

    Returns:
        Images uint8 [classes, examples, 1, size, size], named `<part>NNNNN`.

    Raises:
        ValueError: If a count or the size is too small, or the part unknown.

    >>> store(3, examples=2).images.shape
    torch.Size([3, 2, 1, 28, 28])
    """
    if part not in ("train", "val", "test"):
        raise ValueError(f"part={part!r}: choose 'train', 'val' or 'test'")
    for name, value, least in (("classes", classes, 1), ("examples", examples, 1), ("size", size, 8)):
        if value < least:
            raise ValueError(f"{name}={value}: give at least {least}")
    names = [f"{part}{index:05d}" for index in range(classes)]
    chunks = (names[start : start + _CHUNK] for start in range(0, classes, _CHUNK))
    images = torch.cat([_draw(chunk, examples, size, seed) for chunk in chunks])
    return ClassStore(images, tuple(names))


def _draw(names: list[str], examples: int, size: int, seed: int) -> Tensor:
    """Images uint8 [classes, examples, 1, size, size] of the named classes."""
    generators = [generator(seed, f"glyphs {name}") for name in names]
    uniform = torch.stack([torch.rand(_TRIES, sum(_CLASS_DRAWS), generator=rng) for rng in generators])
    normal = torch.stack([torch.randn(examples, sum(_EXAMPLE_DRAWS), generator=rng) for rng in generators])
    whole, strokes, pieces = uniform.split(_CLASS_DRAWS, dim=-1)
    whole = whole[:, :1].expand_as(whole)  # all tries have as many strokes, or the simplest would always win
    programs = _clearest(_programs(whole, strokes, pieces))
    hand, strokes, pieces = normal.split(_EXAMPLE_DRAWS, dim=-1)
    drawn = _by_another_hand(programs, strokes, pieces)
    return _ink(_place(_trace(drawn), hand), hand[..., 6], size)[:, :, None]


def _clearest(programs: Strokes) -> Strokes:
    """Of programs [classes, tries, ...] the one per class whose strokes overlap least: most ink per length."""
    points = _place(_trace(programs), torch.zeros(*programs.at.shape[:2], _EXAMPLE_DRAWS[0]))
    ink = _ink(points, torch.zeros(programs.at.shape[:2]), 28).sum((-1, -2))
    clearest = (ink / programs.length.sum((-1, -2))).argmax(dim=1)
    return Strokes(*(field[torch.arange(len(clearest)), clearest] for field in programs))


def _programs(whole: Tensor, strokes: Tensor, pieces: Tensor) -> Strokes:
    """Programs from uniform numbers [..., draws]; how often each kind of stroke occurs is tuned by eye to Omniglot."""
    count, extent = whole.unbind(-1)
    many, parent, place, place_own, at, apart, away, scale = strokes.unflatten(-1, (-1, _STROKES)).unbind(-2)
    kind, amount, sign, bend, cornered, angle, way, length = pieces.unflatten(-1, (-1, _STROKES, _PIECES)).unbind(-3)
    order = torch.arange(_STROKES)
    count = 1 + (count[..., None] > torch.tensor([0.15, 0.5, 0.82])).sum(-1, keepdim=True)
    many = 1 + (many > 0.5).long() + ((many > 0.85) & (count < 3)).long()
    many = torch.where((count == 1) & (many < _PIECES), many + 1, many)  # a lone line would be everybody's
    there = (order < count)[..., None] & (torch.arange(_PIECES) < many[..., None])

    side = torch.where(sign < 0.5, -1.0, 1.0)
    arc = side * (0.8 + 2.4 * amount)
    loop = side * (4.4 + 2.0 * amount)
    turn = torch.where(kind < 0.58, 0.3 * (amount - 0.5), torch.where(kind < 0.93, arc, loop))
    corner = torch.where(cornered < 0.25, 0.0, torch.where(way < 0.5, -1.0, 1.0) * (0.8 + 1.6 * angle))
    heading = math.pi / 4 * (8 * angle).floor() + 0.3 * (way - 0.5)
    corner = torch.cat([heading[..., :1], corner[..., 1:]], dim=-1)
    size = torch.where(order == 0, 1.0, 0.6 + 0.4 * scale)[..., None]
    length = there * size * (0.5 + 0.5 * length) * (1 + 0.3 * turn.abs())

    last = many * _POINTS - 1
    parent = (parent * order).long()
    last_parent = last.gather(-1, parent)
    at = torch.where(place < 0.25, 0.0, torch.where(place < 0.5, 1.0, at)) * last_parent
    own = torch.where(place_own < 0.55, 0.0, torch.where(place_own < 0.75, 1.0, 0.5)) * last
    direction = 2 * math.pi * away
    gap = torch.where(apart < 0.25, 0.25 + apart, 0.0)[..., None] * torch.stack(
        [direction.cos(), direction.sin()], dim=-1
    )
    programs = Strokes(length, turn, bend - 0.5, corner, parent, at, own, gap)
    points = _trace(programs)
    extent = (0.42 + 0.3 * extent + 0.05 * there.sum((-1, -2))).clamp(max=0.84)
    zoom = extent / (points.amax(-2) - points.amin(-2)).amax(-1)
    zoom = torch.minimum(zoom, _LONGEST / length.amax((-1, -2)))
    return programs._replace(length=length * zoom[..., None, None], gap=gap * zoom[..., None, None])


def _by_another_hand(programs: Strokes, strokes: Tensor, pieces: Tensor) -> Strokes:
    """The programs [classes, ...] with errors from normal numbers [classes, examples, draws]."""
    meant = Strokes(*(field[:, None] for field in programs))
    length, turn, bend, corner = pieces.unflatten(-1, (4, _STROKES, _PIECES)).unbind(-3)
    at, own, right, down = strokes.unflatten(-1, (4, _STROKES)).unbind(-2)
    return Strokes(
        length=meant.length * (0.12 * length).exp(),
        turn=meant.turn * (1 + 0.08 * turn) + 0.07 * turn,
        bend=meant.bend + 0.25 * bend,
        corner=meant.corner + 0.09 * corner,
        parent=meant.parent.expand_as(at),
        at=meant.at + 1.2 * at,
        own=meant.own + 1.2 * own,
        gap=meant.gap + 0.02 * torch.stack([right, down], dim=-1),
    )


def _trace(strokes: Strokes) -> Tensor:
    """Where the pen goes: [..., strokes * pieces * points, 2], x to the right and y down."""
    travelled = (torch.arange(_POINTS) + 0.5) / _POINTS
    start = (strokes.corner + strokes.turn).cumsum(-1) - strokes.turn
    bent = travelled + strokes.bend[..., None] * travelled * (travelled - 1)
    heading = start[..., None] + strokes.turn[..., None] * bent
    steps = strokes.length[..., None, None] / _POINTS * torch.stack([heading.cos(), heading.sin()], dim=-1)
    paths = steps.flatten(-3, -2).cumsum(-2)
    paths = paths - _pick(paths, strokes.own)[..., None, :]
    placed = [paths[..., 0, :, :]]
    for index in range(1, _STROKES):
        earlier = torch.stack(placed, dim=-3)
        parent = strokes.parent[..., index, None, None, None].expand(*earlier.shape[:-3], 1, *earlier.shape[-2:])
        meeting = _pick(earlier.gather(-3, parent).squeeze(-3), strokes.at[..., index]) + strokes.gap[..., index, :]
        placed.append(paths[..., index, :, :] + meeting[..., None, :])
    return torch.cat(placed, dim=-2)


def _pick(paths: Tensor, index: Tensor) -> Tensor:
    """The points [..., 2] of paths [..., points, 2] at the nearest whole number to `index` [...]."""
    index = index.round().long().clamp(0, paths.shape[-2] - 1)
    return paths.gather(-2, index[..., None, None].expand(*index.shape, 1, 2)).squeeze(-2)


def _place(points: Tensor, hand: Tensor) -> Tensor:
    """Points [..., points, 2] slanted, scaled and moved by normal numbers [..., 16], inside the frame."""
    turn, wide, high, slant = (hand[..., index, None] for index in range(4))
    x, y = points.unbind(-1)
    x = (0.12 * wide).exp() * x + 0.12 * slant * y
    y = (0.12 * high).exp() * y
    cos, sin = (0.08 * turn).cos(), (0.08 * turn).sin()
    points = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
    low, high = points.amin(-2, keepdim=True), points.amax(-2, keepdim=True)
    shrink = ((high - low) / (1 - 2 * _MARGIN)).amax(-1, keepdim=True).clamp(min=1)
    points, low, high = points / shrink, low / shrink, high / shrink
    shift = 0.5 + 0.05 * hand[..., None, 4:6] - (low + high) / 2
    return points + shift.clamp(_MARGIN - low, 1 - _MARGIN - high)


def _ink(points: Tensor, pressure: Tensor, size: int) -> Tensor:
    """Strokes drawn with a round pen: uint8 [..., size, size].

    Each point leaves a Gaussian blot, weighted so that along a straight stroke the blots add up to
    `exp(-distance**2 / (2 * blur**2))`. Blots are separable, so a drawing is one product of two matrices; inverting
    the formula gives each pixel's distance from the stroke, and from that anti-aliased ink.
    """
    points, apart = _drawn_points(points)
    weights = apart / (_BLUR * math.sqrt(2 * math.pi))
    centres = (torch.arange(size) + 0.5) / (size * _BLUR * math.sqrt(2))
    across, down = (axis[..., None] - centres for axis in (points / (_BLUR * math.sqrt(2))).unbind(-1))
    # In place, for this is most of the time.
    columns, rows = (offset.square_().neg_().exp_() for offset in (across, down))
    blots = (rows * weights[..., None]).transpose(-1, -2) @ columns
    distance = _BLUR * (-2 * blots.clamp(1e-6, 1).log()).sqrt()
    pen = _PEN * (0.06 * pressure).exp()[..., None, None]
    ink = ((pen - distance) * size + 0.5).clamp(0, 1)
    return (255 * ink).round().to(torch.uint8)


def _drawn_points(points: Tensor) -> tuple[Tensor, Tensor]:
    """The points of pieces that are there, and each one's distance from its neighbour: [..., points, 2], [..., points].

    No program has more than `_MOST` pieces; to draw no others saves a third of the time. As many points for every
    drawing, so that one does not depend, not even in its last bit, on what else is drawn with it.
    """
    pieces = points.unflatten(-2, (-1, _POINTS))
    apart = pieces.diff(dim=-2).norm(dim=-1)
    apart = torch.cat([apart[..., :1], apart], dim=-1)
    order = apart[..., -1].gt(0).byte().argsort(dim=-1, descending=True, stable=True)[..., :_MOST]
    apart = apart.gather(-2, order[..., None].expand(*order.shape, _POINTS))
    pieces = pieces.gather(-3, order[..., None, None].expand(*order.shape, _POINTS, 2))
    return pieces.flatten(-3, -2), apart.flatten(-2)
