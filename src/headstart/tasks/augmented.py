"""Images mirrored and shifted at random, each by itself: a few of them then go further in training."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.types import Task, TaskSource

SHIFT = 8
"""An image is shifted by up to its size divided by this, in each direction; what comes in is its mirrored edge."""


@dataclass(frozen=True)
class Augmented(TaskSource):
    """The tasks of another source, whose images `[tasks, examples, channels, height, width]` are changed.

    >>> augmented(torch.arange(4.0).reshape(1, 1, 2, 2), torch.Generator().manual_seed(0)).sort().values.shape
    torch.Size([1, 1, 2, 2])
    """

    source: TaskSource
    """Where tasks come from."""

    def sample(self, size: int, generator: torch.Generator) -> Task:
        """As the source's, each image mirrored with probability 1/2 and shifted."""
        tasks = self.source.sample(size, generator)
        changed = (
            batch._replace(inputs=augmented(batch.inputs.flatten(0, 1), generator).unflatten(0, batch.inputs.shape[:2]))
            for batch in tasks
        )
        return Task(*changed)


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each of `images` `[examples, channels, height, width]` mirrored or not, left to right, and shifted."""
    examples, _, height, width = images.shape
    device = generator.device
    mirrored = torch.rand(examples, 1, 1, 1, generator=generator, device=device) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    down, right = height // SHIFT, width // SHIFT
    padded = F.pad(images, (right, right, down, down), mode="reflect")
    top = torch.randint(2 * down + 1, (examples, 1), generator=generator, device=device)
    left = torch.randint(2 * right + 1, (examples, 1), generator=generator, device=device)
    rows, columns = top + torch.arange(height, device=device), left + torch.arange(width, device=device)
    which = torch.arange(examples, device=device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
