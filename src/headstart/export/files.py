"""The files of an export: the program, and beside it a JSON file that says what goes in and comes out."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from headstart.export.onnx_file import check_installed, onnx_bytes
from headstart.export.program import Exported, ExportError
from headstart.training.files import write_atomically, write_json

SUFFIXES = (".onnx", ".pt2")
"""Endings of the files that can be written."""


def check(path: Path) -> None:
    """See, before the work, that `path` names a kind of file that can be written here.

    Raises:
        ExportError: It does not.
    """
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path} must end in .onnx (for ONNX Runtime) or .pt2 (for torch.export.load).")
    if path.is_dir():
        raise ExportError(f"{path} is a folder: name the file to write.")
    if path.suffix == ".onnx":
        check_installed()


def write(path: Path, exported: Exported, about: dict[str, Any]) -> tuple[Path, Path]:
    """Write the program to `path` and `about` beside it; returns both paths. `about` is in the program's file too.

    Raises:
        ExportError: The path has another ending, or the model has no counterpart in ONNX.
        FileError: The place cannot be written to.
    """
    check(path)
    content = onnx_bytes(exported, about) if path.suffix == ".onnx" else _pt2_bytes(exported, about)
    described = path.with_suffix(".json")
    write_json(described, about)
    write_atomically(path, content)
    return path, described


def _pt2_bytes(exported: Exported, about: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own parts
        torch.export.save(exported.program, buffer, extra_files={"headstart.json": json.dumps(about, allow_nan=False)})
    return buffer.getvalue()
