"""Files that are there whole or not at all: JSON and safetensors, written atomically. No pickle anywhere."""

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class FileError(RuntimeError):
    """A file could not be written or read; the message says which, why, and what to do."""


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: a reader, or a crash, sees the old file or the new one.

    Raises:
        FileError: The disk is full or the folder not writable. What was at `path` is untouched.
    """
    temporary: str | None = None
    with _told(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)  # mkstemp's files are for their owner only
            os.replace(temporary, path)
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` once all is written: there is never half of it.

    Args:
        folder: Where it goes. What is replaced is nothing, an empty folder, or an earlier one of its kind.
        names: What folders of this kind hold; one that holds anything else is not replaced.

    Raises:
        FileError: The place holds something else, or the disk is full or not writable. What was there is unchanged.
    """
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file: choose another name for the folder to write.")
    others = sorted({each.name for each in folder.iterdir()} - set(names)) if folder.is_dir() else []
    if others:
        raise FileError(f"{folder} holds other files ({others[0]}): choose a new folder, or an empty one.")
    with _told(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
    try:
        yield new
        with _told(folder):
            _swap(new, folder, old)
    finally:
        if not old.exists() or folder.exists():
            shutil.rmtree(temporary, ignore_errors=True)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """`new` in the place of `folder`, which becomes `old`; if that fails, all is as it was."""
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the system, told with what to do about them."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"Cannot write {path}: {error.strerror or error}. What was there before is unchanged; free space, "
            "change permissions or choose another folder, then try again."
        ) from error


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON; refuses NaN and infinity, which are not JSON."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """What the JSON file at `path` holds.

    Raises:
        FileError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise FileError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise FileError(f"Cannot read {path}: {error}.") from error


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: Any) -> None:
    """Tensors, and JSON about them in the same file's header, so that the two cannot disagree."""
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    contents = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, safetensors.torch.save(contents, {"json": json.dumps(meta, allow_nan=False)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file that `write_tensors` wrote, and its JSON.

    Raises:
        FileError: The file is missing, damaged, or not one of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["json"])
            return {name: file.get_tensor(name) for name in file.keys()}, meta  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise FileError(f"There is no file {path}.") from error
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise FileError(f"{path} is damaged or was not written by Headstart: {error}.") from error
