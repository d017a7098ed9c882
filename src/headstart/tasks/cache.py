"""Prepared images, kept between runs in the user's cache folder."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from headstart.tasks.episodes import ClassStore

_log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """The environment variable HEADSTART_CACHE, else the user's cache folder for Headstart."""
    named = os.environ.get("HEADSTART_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("headstart"))


def source_key(version: str, paths: Sequence[Path]) -> str:
    """A key that changes with `version` and with any source file's path, size or content: 64 hex digits."""
    key = hashlib.sha256(version.encode())
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        key.update(f"\n{path.resolve()}\n{path.stat().st_size}\n{content}".encode())
    return key.hexdigest()


class Prepared(NamedTuple):
    """Images, and what is to be known of them.

    Attributes:
        images: uint8, of any shape.
        about: JSON values by name.
    """

    images: Tensor
    about: dict[str, Any]


def cached(name: str, key: str, build: Callable[[], ClassStore]) -> ClassStore:
    """The store that `build` makes, kept as `cached_images` keeps it."""

    def prepare() -> Prepared:
        store = build()
        return Prepared(store.images, {"names": store.names})

    images, about = cached_images(name, key, prepare)
    return ClassStore(images, tuple(about["names"]))


def cached_images(name: str, key: str, build: Callable[[], Prepared]) -> Prepared:
    """What `build` makes: memory-mapped from the cache if it is there and whole, else built and kept.

    A cache that cannot be written is a warning in the log and no error: the next run builds again.
    """
    path = cache_folder() / "prepared" / f"{name}-{key[:16]}.safetensors"
    if path.is_file():
        try:
            return _read(path, key)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            _log.warning("rebuilding the damaged cache file %s: %s", path, error)
    prepared = build()
    try:
        _write(path, key, prepared)
    except (OSError, SafetensorError) as error:
        _log.warning("going on without a cache: cannot write %s (set HEADSTART_CACHE to move it): %s", path, error)
    return prepared


def _read(path: Path, key: str) -> Prepared:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        images = file.get_tensor("images")
    about = {name: json.loads(value) for name, value in metadata.items() if name not in ("key", "digest")}
    if metadata["key"] != key or metadata["digest"] != _digest(images, about):
        raise ValueError("its content is not what was written")
    return Prepared(images, about)


def _write(path: Path, key: str, prepared: Prepared) -> None:
    """Write beside `path` and rename: readers and a second writer see the old file or the new one, never half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, about = prepared
    metadata = {"key": key, **{name: json.dumps(value) for name, value in about.items()}}
    metadata["digest"] = _digest(images, about)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    os.close(handle)
    try:
        save_file({"images": images}, part, metadata)
        os.replace(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def _digest(images: Tensor, about: Mapping[str, Any]) -> str:
    # In the order of the names: a file does not keep another.
    digest = hashlib.sha256(json.dumps([*(about[name] for name in sorted(about)), list(images.shape)]).encode())
    digest.update(images.numpy().data)
    return digest.hexdigest()
