"""Image files to uint8 tensors, one way for prepared data sets and for a user's own files."""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 80_000_000
"""Larger images are refused before they are decoded; just below the size at which Pillow itself warns."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not EPS and the like, which run other programs

# What Pillow's decoders raise on damaged files.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, ArithmeticError, LookupError, TypeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),
)


def read_image(
    source: Path | BinaryIO,
    size: int,
    ink: bool,
    channels: Literal[1, 3] = 1,
    name: str = "",
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """An image as uint8 [channels, size, size]: upright, on white paper, resized by Lanczos.

    Args:
        source: A path or an open binary file.
        size: Height and width to resize to, in pixels.
        ink: Store 255 - value, so that dark strokes on light paper become 1 after division by 255; and fit an
            image that is not square onto a square of paper, where otherwise it is stretched.
        channels: 1 for grey, 3 for RGB.
        name: How errors call the image; the path, if there is one, by default.
        max_pixels: Larger images are refused before they are decoded.

    Raises:
        ValueError: If the file is no image of a known format, is damaged or too large.
        FileNotFoundError: If the path does not exist.
    """
    return to_tensor(open_image(source, channels, name, max_pixels), size, ink)


def open_image(
    source: Path | BinaryIO, channels: Literal[1, 3] = 1, name: str = "", max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """A decoded grey ("L") or "RGB" image: upright by its EXIF orientation, transparency laid over white paper.

    Raises:
        ValueError: As for `read_image`.
        FileNotFoundError: If the path does not exist.
    """
    name = name or (str(source) if isinstance(source, Path) else "the image")
    try:
        with Image.open(source, formats=_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise ValueError(f"{image.width}x{image.height} pixels, more than the {max_pixels} allowed")
            return _on_paper(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        reason = "it is not one" if isinstance(error, UnidentifiedImageError) else error  # which names objects
        raise ValueError(f"cannot read {name} as an image ({', '.join(_FORMATS)}): {reason}") from error


def pixels(source: BinaryIO) -> int:
    """Pixels of an image as its header says, undecoded; 0 where there is no such header."""
    try:
        with Image.open(source, formats=_FORMATS) as image:
            return image.width * image.height
    except _DAMAGE:
        return 0


def to_tensor(image: Image.Image, size: int, ink: bool) -> Tensor:
    """What `open_image` gave, as uint8 [channels, size, size]; see `read_image`.

    >>> to_tensor(Image.new("L", (105, 105), 255), size=2, ink=True)
    tensor([[[0, 0],
             [0, 0]]], dtype=torch.uint8)
    """
    if ink:
        resized = ImageOps.pad(image, (size, size), Image.Resampling.LANCZOS, color="white")
    else:
        resized = image.resize((size, size), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(resized)).reshape(size, size, -1).permute(2, 0, 1).contiguous()
    return 255 - values if ink else values


def _on_paper(image: Image.Image, mode: Literal["L", "RGB"]) -> Image.Image:
    """The image in `mode`, never "1" or "P": Pillow resizes those by nearest neighbour whatever filter it is given."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 rather than scale
        image = Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
