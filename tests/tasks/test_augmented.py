import torch

from headstart.tasks.augmented import SHIFT, Augmented, augmented
from headstart.types import Batch, Task, TaskSource


def numbered(examples: int, size: int) -> torch.Tensor:
    """Images that know their pixels: two channels, of which the second is the first and a thousand."""
    first = torch.arange(float(size * size)).reshape(1, 1, size, size)
    return torch.cat([first, first + 1000], 1).repeat(examples, 1, 1, 1)


def test_images_are_mirrored_and_shifted_and_nothing_else():
    size, images = 16, numbered(200, 16)
    found = augmented(images, torch.Generator().manual_seed(0))
    assert found.shape == images.shape
    torch.testing.assert_close(found[:, 1], found[:, 0] + 1000)  # channels move together
    inner = found[:, 0, 4:12, 4:12]
    across, down = inner[:, 0, 1] - inner[:, 0, 0], inner[:, 1, 0] - inner[:, 0, 0]
    assert (down == size).all()  # never upside down
    assert set(across.tolist()) == {1.0, -1.0}
    assert 0.35 < (across > 0).float().mean() < 0.65
    moved = (inner[across > 0, 0, 0] // size - 4).unique().tolist()
    assert moved == [float(shift) for shift in range(-(size // SHIFT), size // SHIFT + 1)]


class Plain(TaskSource):
    def sample(self, size, generator):
        batch = Batch(numbered(3, 16).expand(size, -1, -1, -1, -1), torch.arange(3).expand(size, -1))
        return Task(batch, batch)


def test_tasks_keep_their_shapes_and_targets_and_repeat():
    first, second = (Augmented(Plain()).sample(4, torch.Generator().manual_seed(1)) for _ in range(2))
    torch.testing.assert_close(first, second)
    assert first.support.inputs.shape == (4, 3, 2, 16, 16)
    assert not torch.equal(first.support.inputs, first.query.inputs)
    torch.testing.assert_close(first.query.targets, torch.arange(3).expand(4, -1))
