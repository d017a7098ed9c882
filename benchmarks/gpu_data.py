"""Omniglot as one small file, for a machine that has neither the archives nor what is needed to read them.

`prepare` writes `omniglot-28.u8`, the bytes of all images `[characters, drawings, 1, 28, 28]`, and beside it
`omniglot-28.json`: shape, names, digest, and the characters of each part of the released split.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_files import read_raw, write_json, write_raw
from headstart.tasks import ClassStore, glyphs

PREPARED = Path(__file__).parent / "data" / "omniglot-28.u8"
"""Where the data is looked for; git ignores the folder."""
SIZE = 28
GLYPHS: dict[glyphs.Part, int] = {"train": 1100, "val": 100, "test": 423}
"""Generated characters instead, as many as Omniglot has in each part."""
FEW_GLYPHS: dict[glyphs.Part, int] = {"train": 30, "val": 20, "test": 20}


class Characters(NamedTuple):
    """Images to train, validate and test on, and where they are from."""

    train: ClassStore
    val: ClassStore
    test: ClassStore
    source: str


def prepare(path: Path = PREPARED) -> Path:
    """Write the prepared data from where Headstart finds Omniglot: the folder HEADSTART_DATA, or its home."""
    from headstart.tasks import omniglot  # needs more than PyTorch: imported only here

    whole = omniglot.load()
    parts = {part: list(omniglot.split(whole, "released", part).names) for part in GLYPHS}
    write_raw(path, whole.images)
    header = {"shape": list(whole.images.shape), "names": list(whole.names), "parts": parts, "sha256": _digest(path)}
    write_json(path.with_suffix(".json"), header)
    return path


def characters(path: Path = PREPARED, few: bool = False) -> Characters:
    """The prepared data; generated characters where there is none.

    Args:
        path: What `prepare` wrote.
        few: Generate few characters, for a trial.

    Raises:
        ValueError: The file is damaged.
    """
    if path.exists():
        return _read(path, json.loads(path.with_suffix(".json").read_text()))
    counts = FEW_GLYPHS if few else GLYPHS
    stores = {part: glyphs.store(count, size=SIZE, part=part) for part, count in counts.items()}
    return Characters(**stores, source=f"generated characters, since {path.name} is not there")


def _read(path: Path, header: dict[str, Any]) -> Characters:
    if _digest(path) != header["sha256"]:
        raise ValueError(f"{path} is damaged: write it again with `python -m benchmarks.gpu prepare`.")
    names = tuple(header["names"])
    whole = ClassStore(read_raw(path, tuple(header["shape"]), torch.uint8), names)
    number = {name: i for i, name in enumerate(names)}
    stores = {part: whole.select([number[name] for name in chosen]) for part, chosen in header["parts"].items()}
    return Characters(**stores, source="Omniglot, released split")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
