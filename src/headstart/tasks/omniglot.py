"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each (Lake, Salakhutdinov, Tenenbaum 2015)."""

import hashlib
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from headstart.tasks.archives import discard_downloads, entries, locate
from headstart.tasks.cache import cached, source_key
from headstart.tasks.episodes import ClassStore
from headstart.tasks.images import open_image, to_tensor
from headstart.types import Batch, Task

Part = Literal["train", "val", "trainval", "test"]

SIZE = 28

_HOME = "https://github.com/brendenlake/omniglot/raw/master/python"
_ARCHIVES = {f"{name}.zip": f"{_HOME}/{name}.zip" for name in ("images_background", "images_evaluation")}
_RUNS = {"one_shot_all_runs.zip": f"{_HOME}/one-shot-classification/all_runs.zip"}

_DRAWN_SIZE = 105
_ENTRY_BYTES = 1 << 16  # a drawing takes about 300 bytes


@dataclass(frozen=True)
class Content:
    """What the two archives must hold, whoever packed them."""

    characters: tuple[int, ...]
    """Characters in each archive."""

    drawings: int
    """Drawings of each character."""

    digest: str
    """SHA-256 of the sorted names and decoded drawings, as `prepare` computes it."""


OFFICIAL = Content((964, 659), 20, "308ac7ccbf96c742c7087faf6866e19deb5e15033216577fc806ecb136c55892")


def load(data: Path | None = None, content: Content = OFFICIAL) -> ClassStore:
    """All 1623 characters as ink (1 = stroke) of 28x28 pixels, sorted by name `<Alphabet>/characterNN`.

    The first call prepares a cache of 25 MB, in under a minute; later calls map it into memory.

    Args:
        data: A folder that contains `omniglot/images_background.zip` and `omniglot/images_evaluation.zip`; by
            default the environment variable HEADSTART_DATA, else they are downloaded once.
        content: What the archives are checked against; only tests need another.

    Raises:
        DataNotFound: If the archives are not there and cannot be downloaded; the message says what to do.
        ValueError: If an archive is damaged or holds something else.
    """
    archives = locate("omniglot", _ARCHIVES, data)
    key = source_key(f"omniglot 1 {content}", archives)
    try:
        return cached("omniglot", key, lambda: prepare(archives, content))
    except ValueError:
        discard_downloads(archives)
        raise


def prepare(archives: Sequence[Path], content: Content = OFFICIAL) -> ClassStore:
    """What `load` caches, read from the archives themselves.

    Raises:
        ValueError: If an archive is damaged or holds something else than `content`.
    """
    drawings: dict[str, dict[str, bytes]] = {}
    for archive, characters in zip(archives, content.characters, strict=True):
        found = _drawings(archive)
        counts = {len(drawn) for drawn in found.values()}
        if len(found) != characters or counts != {content.drawings}:
            raise ValueError(
                f"{archive} holds {len(found)} characters of {sorted(counts)} drawings; "
                f"Omniglot has {characters} of {content.drawings} there: fetch it again"
            )
        drawings |= found
    digest = hashlib.sha256()
    classes: list[Tensor] = []
    for name in sorted(drawings):
        digest.update(name.encode())
        images = [_open(drawn, f"{name}/{drawer}") for drawer, drawn in sorted(drawings[name].items())]
        for image in images:
            digest.update(_bits(image))
        classes.append(torch.stack([to_tensor(image, SIZE, ink=True) for image in images]))
    if digest.hexdigest() != content.digest:
        raise ValueError(
            f"the drawings in {' and '.join(map(str, archives))} are not Omniglot's (digest {digest.hexdigest()}, "
            f"expected {content.digest}): fetch the archives again"
        )
    return ClassStore(torch.stack(classes), tuple(sorted(drawings)))


def split(store: ClassStore, name: Literal["released", "vinyals"], part: Part) -> ClassStore:
    """The characters of one part of a published split; the parts are disjoint.

    `released`: 1100 train, 100 val, 423 test, as in the paper's released code. That code shuffles the listing of the
    character folders by `random.seed(1)`, in whatever order the file system lists them, so its split differed from
    machine to machine; here the listing is sorted first.

    `vinyals`: 1028 train, 172 val, 423 test, the lists used for Matching and Prototypical Networks. There a rotated
    character is a class of its own: sample with `rotations="classes"`.

    `trainval` is train and val together.

    Raises:
        ValueError: If the store is not the whole one from `load`, or the name or the part is unknown.
    """
    whole = len(store.names) == sum(OFFICIAL.characters) and list(store.names) == sorted(store.names)
    if not whole:
        raise ValueError(f"a store of {len(store.names)} characters: split takes the whole store that load() returns")
    if name == "released":
        parts = _released_parts(len(store.names))
    elif name == "vinyals":
        parts = _vinyals_parts(store.names)
    else:
        raise ValueError(f"split name {name!r}: choose 'released' or 'vinyals'")
    parts["trainval"] = sorted(parts["train"] + parts["val"])
    if part not in parts:
        raise ValueError(f"part {part!r}: choose 'train', 'val', 'trainval' or 'test'")
    return store.select(parts[part])


def one_shot_runs(data: Path | None = None) -> Task:
    """The data set's own 20 runs of within-alphabet 20-way one-shot classification, as one meta-batch.

    Args:
        data: A folder that contains `omniglot/one_shot_all_runs.zip`; otherwise as for `load`.

    Returns:
        Support and query inputs float32 [20, 20, 1, 28, 28] in [0, 1] and targets int64 [20, 20]; a run's label
        is the index of its training image.

    Raises:
        DataNotFound: If the archive is not there and cannot be downloaded.
        ValueError: If the archive is damaged or incomplete.
    """
    (archive,) = locate("omniglot", _RUNS, data)
    pattern = r"(run(?:0[1-9]|1\d|20)/(?:training/class\d\d\.png|test/item\d\d\.png|class_labels\.txt))"
    files = {match[1]: content for match, content in entries(archive, pattern, _ENTRY_BYTES)}
    try:
        runs = [_one_shot_run(files, f"run{run:02d}") for run in range(1, 21)]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{archive} is not Omniglot's one-shot runs: {error}; fetch it again") from error
    support, query, targets = (torch.stack(column) for column in zip(*runs, strict=True))
    labels = torch.arange(20).repeat(20, 1)
    return Task(Batch(support.float() / 255, labels), Batch(query.float() / 255, targets))


def _one_shot_run(files: Mapping[str, bytes], run: str) -> tuple[Tensor, Tensor, Tensor]:
    """One run's training images, test images (each uint8 [20, 1, 28, 28]) and the test images' labels [20]."""
    answers = dict(line.split() for line in files[f"{run}/class_labels.txt"].decode().splitlines())
    training = [f"{run}/training/class{index:02d}.png" for index in range(1, 21)]
    test = [f"{run}/test/item{index:02d}.png" for index in range(1, 21)]
    support, query = (
        torch.stack([to_tensor(_open(files[path], path), SIZE, ink=True) for path in paths])
        for paths in (training, test)
    )
    return support, query, torch.tensor([training.index(answers[path]) for path in test])


def _drawings(archive: Path) -> dict[str, dict[str, bytes]]:
    """An archive's PNG files, by character `<Alphabet>/characterNN` and drawer `01` to `20`."""
    drawings: dict[str, dict[str, bytes]] = {}
    for match, content in entries(archive, r"[^/]+/([^/.][^/]*/character\d\d)/\d{4}_(\d\d)\.png", _ENTRY_BYTES):
        drawings.setdefault(match[1], {})[match[2]] = content
    return drawings


def _open(drawing: bytes, name: str) -> Image.Image:
    return open_image(io.BytesIO(drawing), name=name, max_pixels=_DRAWN_SIZE**2)


def _bits(image: Image.Image) -> bytes:
    """One bit per pixel, whichever of its equivalent forms the file had."""
    return np.packbits(np.asarray(image) > 127).tobytes()


def _released_parts(count: int) -> dict[str, list[int]]:
    order = list(range(count))
    random.Random(1).shuffle(order)
    return {"train": sorted(order[:1100]), "val": sorted(order[1100:1200]), "test": sorted(order[1200:])}


# The lists (jakesnell/prototypical-networks, data/omniglot/splits/vinyals, MIT) hold whole alphabets, except for
# Gurmukhi: its first 41 characters are for training, the others for testing.
_VINYALS_VAL = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
_VINYALS_TEST = {
    *("Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)", "Oriya", "Sylheti"),
    *("Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"),
    *(f"Gurmukhi/character{number}" for number in range(42, 46)),
}


def _vinyals_parts(names: Sequence[str]) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for index, name in enumerate(names):
        alphabet = name.partition("/")[0]
        test = alphabet in _VINYALS_TEST or name in _VINYALS_TEST
        parts["test" if test else "val" if alphabet in _VINYALS_VAL else "train"].append(index)
    return parts
