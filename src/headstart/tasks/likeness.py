"""Whether images look like those a model was trained on: a few numbers of each, and their range in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from headstart.tasks.episodes import ClassStore, RaggedStore

SAMPLED = 2000
"""Images of a store that are looked at."""

TAIL = 0.01
"""Share of the training images left out at either end: a few odd ones must not make everything look usual."""

MARGIN = 0.5
"""How far outside that range a number may lie, as a share of its width."""


@dataclass(frozen=True)
class Likeness:
    """Usual ranges of a few numbers over the training images: how bright, contrasted, sharp and coloured they are.

    It tells photographs from drawings, or white on black from black on white. It does not tell cats from dogs.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, store: ClassStore | RaggedStore) -> "Likeness":
        """The ranges over a store's images, or over `SAMPLED` of them."""
        ranges = zip(store.starts, store.counts, strict=True)
        rows = torch.cat([torch.arange(start, start + count) for start, count in ranges])
        chosen = torch.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).long()
        numbers = _numbers(store.flat[rows[chosen]].float() / 255)
        low, high = (numbers.quantile(share, dim=0) for share in (TAIL, 1 - TAIL))
        return cls(tuple(low.tolist()), tuple(high.tolist()))

    @classmethod
    def from_json(cls, content: Any) -> "Likeness":
        """What `dataclasses.asdict` made."""
        return cls(tuple(content["low"]), tuple(content["high"]))

    def unlike(self, images: Tensor) -> list[tuple[int, str]]:
        """Which of `images` `[examples, channels, height, width]` in [0, 1] lie outside, and why."""
        low, high = torch.tensor(self.low), torch.tensor(self.high)
        slack = MARGIN * (high - low) + 0.01
        numbers = _numbers(images)
        found = []
        for index, row in enumerate(numbers):
            outside = ((row < low - slack) | (row > high + slack)).nonzero().flatten().tolist()
            if outside:
                which = outside[0]
                found.append(
                    (index, f"{NUMBERS[which]} {row[which]:.2f}, in training {low[which]:.2f} to {high[which]:.2f}")
                )
        return found

    def notes(self, images: Tensor, what: str) -> tuple[str, ...]:
        """A sentence about those of `images` that do not look like training images, if there are any."""
        found = self.unlike(images)
        if not found:
            return ()
        first, reason = found[0]
        return (
            f"{len(found)} of {len(images)} {what} images look unlike the training images, image {first + 1} for "
            f"one ({reason}): check that they are of the same sort, and which is ink and which paper.",
        )


NUMBERS: Sequence[str] = ("brightness", "contrast", "sharpness", "colour")


def _numbers(images: Tensor) -> Tensor:
    """Mean, deviation, mean difference of neighbours, and difference between channels: `[examples, 4]`."""
    grey = images.mean(1)
    across, down = (grey.diff(dim=dim).abs().mean((1, 2)) for dim in (1, 2))
    colour = (images - grey.unsqueeze(1)).abs().mean((1, 2, 3))
    return torch.stack([grey.mean((1, 2)), grey.std((1, 2)), (across + down) / 2, colour], 1)
