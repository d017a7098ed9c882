"""Images: a support set is a folder with one sub-folder of images per class, and a file is one image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from headstart.inputs.base import InputError, Inputs, Rows, Support
from headstart.tasks.images import MAX_PIXELS, read_image
from headstart.tasks.likeness import Likeness
from headstart.types import Batch

File = TypeVar("File")


@dataclass(frozen=True)
class ImageInputs(Inputs):
    """Images as float32 `[examples, channels, size, size]` in [0, 1].

    Args:
        size: Height and width, in pixels.
        channels: 1 for grey, 3 for RGB.
        ink: Dark strokes on light paper, which become 1 on 0; see `headstart.tasks.images.read_image`.
        likeness: What the training images look like, where that is known: others are noted.
    """

    size: int
    channels: Literal[1, 3] = 1
    ink: bool = True
    likeness: Likeness | None = None

    several: ClassVar[bool] = False

    def support(self, path: Path) -> Support:
        """The images of the class folders in `path`; their names are the classes'."""
        if not path.is_dir():
            raise InputError(f"{path} is not a folder. Give one with a sub-folder of images for each class.")
        folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
        if len(folders) < 2:
            raise InputError(f"{path} has {len(folders)} class folders: give 2 or more, with images of one class each.")
        found = {folder.name: _files(folder) for folder in folders}
        return self.examples(found, self.image)

    def examples(self, images: Mapping[str, Sequence[File]], read: Callable[[File], Tensor]) -> Support:
        """A support set from images by class, each of which `read` makes a tensor, as `image` does."""
        tensors, labels = [], []
        for label, (name, files) in enumerate(images.items()):
            if not files:
                raise InputError(f"The class {name} has no image: every class needs at least one.")
            tensors += [read(file) for file in files]
            labels += [label] * len(files)
        inputs = torch.stack(tensors)
        notes = () if self.likeness is None else self.likeness.notes(inputs, "support")
        return Support(Batch(inputs, torch.tensor(labels)), tuple(images), notes)

    def rows(self, path: Path) -> Rows:
        """The one image at `path`, with a note if it looks unlike the training images."""
        inputs = self.image(path).unsqueeze(0)
        unlike = [] if self.likeness is None else self.likeness.unlike(inputs)
        return Rows(inputs, [{"note": f"unlike the training images: {reason}"} for _, reason in unlike] or [{}])

    def blank(self, count: int) -> Tensor:
        """Images without ink."""
        return torch.zeros(count, self.channels, self.size, self.size)

    def image(self, source: Path | BinaryIO, name: str = "", max_pixels: int = MAX_PIXELS) -> Tensor:
        """One image, `[channels, size, size]`; called `name` in errors, and refused where it has too many pixels."""
        try:
            return read_image(source, self.size, self.ink, self.channels, name, max_pixels).float() / 255
        except FileNotFoundError as error:
            raise InputError(f"There is no file {source}.") from error
        except (ValueError, OSError) as error:
            raise InputError(f"{error}") from error


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise InputError(f"The class folder {folder} is empty: every class needs at least one image.")
    return files
