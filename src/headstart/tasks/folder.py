"""Your images: a folder with one sub-folder of images per class, of any sizes and formats, and any number in each."""

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from headstart.tasks.cache import Prepared, cached_images
from headstart.tasks.episodes import RaggedStore
from headstart.tasks.images import read_image

Part = Literal["train", "val", "test"]

SHARES: Mapping[Part, float] = {"val": 0.16, "test": 0.2}
"""Of the classes; the rest is to train on. As in miniImageNet: 64, 16 and 20 of 100 (Ravi and Larochelle 2017)."""

_TOLD = 5
"""Names given in a message; of the others, how many there are."""

_log = logging.getLogger(__name__)


def load(path: Path, size: int, channels: Literal[1, 3] = 3) -> RaggedStore:
    """All images of a folder's class folders, by class: upright, on white paper, stretched to `size` x `size`.

    The first call decodes them and keeps them in the cache; later ones map that into memory, as long as no file's
    name, size or time of change is another. Files that cannot be read as images are left out and named in a warning.
    Hidden files are ignored, as is what lies deeper than the class folders.

    Args:
        path: A folder; the names of its sub-folders are the classes'.
        size: Height and width of the images returned, in pixels.
        channels: 1 for grey, 3 for colour.

    Raises:
        ValueError: If there is no such folder, or there are no images in its sub-folders.
    """
    found = _listed(path)
    key = hashlib.sha256(f"folder 1 {size} {channels} {state(path)}".encode()).hexdigest()
    images, about = cached_images("folder", key, lambda: _prepare(path, found, size, channels))
    if about["unread"]:
        _log.warning(
            "%d files in %s cannot be read as images and are left out: %s.",
            len(about["unread"]),
            path,
            told(about["unread"]),
        )
    if not len(images):
        raise ValueError(
            f"{path} has no images in its {len(found)} sub-folders: give a folder with one sub-folder of images for "
            "each class, the images directly in it."
        )
    starts = accumulate(about["counts"][:-1], initial=0)
    return RaggedStore(images, tuple(starts), tuple(about["counts"]), tuple(about["names"]))


def state(path: Path) -> str:
    """What changes with a folder's path and with the names, sizes and times of change of its classes' files: 64 digits.

    Raises:
        ValueError: If there is no such folder, or it has no sub-folders.
    """
    key = hashlib.sha256(os.fsencode(path.resolve()))
    for name, files in _listed(path).items():
        for file in files:
            found = file.lstat() if file.is_symlink() and not file.exists() else file.stat()
            key.update(b"\n" + os.fsencode(f"{name}/{file.name} {found.st_size} {found.st_mtime_ns}"))
    return key.hexdigest()


def with_enough(store: RaggedStore, examples: int) -> RaggedStore:
    """The classes of `store` that have at least so many examples; the others are named in a warning."""
    wanted = [index for index, count in enumerate(store.counts) if count >= examples]
    if len(wanted) == len(store.names):
        return store
    small = [f"{name} ({n})" for name, n in zip(store.names, store.counts, strict=True) if n < examples]
    _log.warning(
        "%d of %d classes are left out, for they have fewer than the %d images that a task takes of each: %s.",
        len(small),
        len(store.names),
        examples,
        told(small),
    )
    return store.select(wanted)


def split(
    names: Sequence[str], least: int, given: Mapping[Part, Sequence[str]] | None = None
) -> dict[Part, tuple[str, ...]]:
    """Which classes are to train on, to validate on and to test on: about 64, 16 and 20 %, at least `least` each.

    Which is which depends on the names alone.

    Args:
        names: Of the classes.
        least: Classes that each part has at the least.
        given: Classes of a part, where it is not to be chosen here.

    Raises:
        ValueError: If there are too few classes, or what is given is not among `names` or in two parts.

    >>> parts = split([f"class {index}" for index in range(30)], least=5)
    >>> {part: len(classes) for part, classes in parts.items()}
    {'train': 19, 'val': 5, 'test': 6}
    """
    parts: dict[Part, tuple[str, ...]] = {p: tuple((given or {}).get(p, ())) for p in ("train", "val", "test")}
    taken = [name for part in parts.values() for name in part]
    unknown = [name for name in taken if name not in names]
    if unknown:
        raise ValueError(f"There are no usable classes {told(unknown)}: choose among {told(sorted(names))}.")
    if len(set(taken)) < len(taken):
        twice = sorted({name for name in taken if taken.count(name) > 1})
        raise ValueError(f"The classes {told(twice)} are given twice: each belongs to one part.")
    rest = sorted(set(names) - set(taken), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    for part, share in SHARES.items():
        if not parts[part]:
            count = max(least, round(share * len(names)))
            parts[part], rest = tuple(rest[:count]), rest[count:]
    parts["train"] = parts["train"] or tuple(rest)
    if min(map(len, parts.values())) < least:
        counts = ", ".join(f"{len(classes)} to {part}" for part, classes in parts.items())
        raise ValueError(
            f"{len(names)} usable classes are too few ({counts}): with {least} ways each of the three parts needs "
            f"{least}. Add classes, {3 * least} in all, or give fewer --ways; {max(len(names) // 3, 2)} of "
            f"{max(len(names) // 3, 2) * 3} classes would do."
        )
    return {part: tuple(sorted(classes)) for part, classes in parts.items()}


def tell_parts(what: str, parts: Mapping[Part, Sequence[str]]) -> None:
    """Log how many of `what` (classes, say) each part has, and which are not to train on."""
    train, val, test = (parts[part] for part in ("train", "val", "test"))
    _log.info(
        "%d %s to train on, %d to choose the best checkpoint by (%s), %d to test on (%s).",
        *(len(train), what, len(val), told(val), len(test), told(test)),
    )


def told(names: Sequence[str]) -> str:
    """The first few of `names`, and how many more there are.

    >>> told(["a", "b"]), told("abcdefgh")
    ('a, b', 'a, b, c, d, e and 3 more')
    """
    more = len(names) - _TOLD
    return ", ".join(names[:_TOLD]) + (f" and {more} more" if more > 0 else "")


def _listed(path: Path) -> dict[str, list[Path]]:
    """The files of each class folder, in the order of their names."""
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {what}: give a folder with one sub-folder of images for each class.")
    folders = [each for each in _seen(path) if each.is_dir()]
    if not folders:
        raise ValueError(f"{path} has no sub-folders: give a folder with one sub-folder of images for each class.")
    return {folder.name: [file for file in _seen(folder) if not file.is_dir()] for folder in folders}


def _seen(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _prepare(path: Path, found: Mapping[str, Sequence[Path]], size: int, channels: Literal[1, 3]) -> Prepared:
    """All that can be read, in one tensor; about it the names and numbers of the classes, and what cannot be read."""
    total = sum(map(len, found.values()))
    _log.info("Preparing %d files of %d classes in %s, once.", total, len(found), path)
    images = torch.empty(total, channels, size, size, dtype=torch.uint8)
    about: dict[str, Any] = {"names": list(found), "counts": [], "unread": []}
    filled = 0
    for name, files in found.items():
        before = filled
        for file in files:
            image = _image(file, size, channels)
            if image is None:
                about["unread"].append(f"{name}/{file.name}")
            else:
                images[filled] = image
                filled += 1
        about["counts"].append(filled - before)
    return Prepared(images[:filled], about)


def _image(file: Path, size: int, channels: Literal[1, 3]) -> Tensor | None:
    """The image in `file`; None if there is none. Only ordinary files are opened: a pipe would wait for ever."""
    if not file.is_file():
        return None
    try:
        return read_image(file, size, ink=False, channels=channels)
    except (ValueError, OSError):
        return None
