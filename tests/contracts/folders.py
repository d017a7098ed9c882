"""What a person may have in a folder: data in order, and data that is wrong in one way each."""

import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from headstart.tasks import glyphs

CURVE = "x,y\n-1,0.5\n2,1.5\n"
FLEET = "device,heat,place,y\n" + "".join(
    f"d{task},{row / 7 + task},{'north' if task % 2 else 'south'},{task + 2 * row}\n"
    for task in range(12)
    for row in range(12)
)
CLASSES = (
    FLEET.splitlines()[0]
    + "\n"
    + "".join(
        f"{line.rsplit(',', 1)[0]},{'high' if index % 2 else 'low'}\n"
        for index, line in enumerate(FLEET.splitlines()[1:])
    )
)

Setup = Callable[[Path, dict[str, Path]], object]
"""Puts something into a folder, given what is in order, by name."""


def drawn(folder: Path, classes: int, images: int) -> Path:
    """A folder for each class, with images of it."""
    store = glyphs.store(classes, examples=max(images, 1), size=16, part="test").images
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for which in range(images):
            Image.fromarray(255 - store[label, which, 0].numpy()).save(folder / f"class{label}" / f"{which}.png")
    return folder


def bomb(file: Path) -> None:
    """A PNG of a kilobyte that says it is 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 1_000_000)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def text(name: str, content: str) -> Setup:
    return lambda folder, good: (folder / name).write_text(content)


def raw(name: str, content: bytes) -> Setup:
    return lambda folder, good: (folder / name).write_bytes(content)


def folders(*names: str) -> Setup:
    return lambda folder, good: [(folder / name).mkdir(parents=True) for name in names]


def classes(count: int, images: int) -> Setup:
    return lambda folder, good: drawn(folder / "photos", count, images)


def corrupt(folder: Path, good: dict[str, Path]) -> None:
    for file in drawn(folder / "photos", 6, 3).glob("*/*.png"):
        file.write_bytes(b"no image")


def only_bombs(folder: Path, good: dict[str, Path]) -> None:
    for file in drawn(folder / "photos", 6, 1).glob("*/*.png"):
        bomb(file)


def damaged(name: str, file: str, content: bytes | None) -> Setup:
    """A copy of something in order, one file of which is cut in half or replaced."""

    def setup(folder: Path, good: dict[str, Path]) -> None:
        shutil.copytree(good[name], folder / "copy")
        whole = (folder / "copy" / file).read_bytes()
        (folder / "copy" / file).write_bytes(whole[: len(whole) // 2] if content is None else content)

    return setup


def module(source: str) -> Setup:
    def setup(folder: Path, good: dict[str, Path]) -> None:
        name = f"own_{abs(hash(source))}"
        (folder / f"{name}.py").write_text(source)
        (folder / "name").write_text(name)

    return setup


def weights(folder: Path, good: dict[str, Path]) -> None:
    save_file({"other": torch.zeros(3)}, folder / "other.safetensors")


def nothing(folder: Path, good: dict[str, Path]) -> None:
    pass
