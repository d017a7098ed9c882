"""The files of an export: the program, and beside it a JSON file that says what goes in and comes out.

    mine.onnx         the program
    mine.onnx.json    what is told of it

The description takes the program's whole name: `mine.json` may be somebody else's.
"""

import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from headstart.export.onnx_file import check_installed, onnx_bytes
from headstart.export.program import ArgumentError, Exported
from headstart.training.files import write_atomically, write_json

SUFFIXES = (".onnx", ".pt2")
"""Endings of the files that can be written."""


def check(path: Path) -> None:
    """See, before the work, that `path` names a kind of file that can be written here.

    Raises:
        ArgumentError: It does not.
        ExportError: The extra that it needs is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ArgumentError(f"{path} must end in .onnx (for ONNX Runtime) or .pt2 (for torch.export.load).")
    for file in (path, _described(path)):
        if file.is_dir():
            raise ArgumentError(f"{file} is a folder: name another file to write.")
    if path.suffix == ".onnx":
        check_installed()


def write(path: Path, exported: Exported, about: dict[str, Any]) -> tuple[Path, Path]:
    """Write the program to `path` and `about` beside it; returns both paths. `about` is in the program's file too.

    Both are there afterwards, or neither is and what was there is unchanged.

    Raises:
        ArgumentError: The path has another ending.
        ExportError: The model has no counterpart in ONNX.
        FileError: The place cannot be written to.
    """
    check(path)
    content = onnx_bytes(exported, about) if path.suffix == ".onnx" else _pt2_bytes(exported, about)
    described = _described(path)
    staged = described.with_name(f".{described.name}.part")
    write_json(staged, about)  # first, so that what may fail for want of space is done before anything is replaced
    try:
        write_atomically(path, content)
        os.replace(staged, described)
    finally:
        staged.unlink(missing_ok=True)
    return path, described


def _described(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _pt2_bytes(exported: Exported, about: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own parts
        torch.export.save(exported.program, buffer, extra_files={"headstart.json": json.dumps(about, allow_nan=False)})
    return buffer.getvalue()
