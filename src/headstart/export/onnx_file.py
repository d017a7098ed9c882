"""A program as ONNX: one small file that ONNX Runtime executes, in a browser too."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from headstart.export.program import Exported, ExportError
from headstart.training.tracing import first_line

OPSET = 18
"""Version of ONNX's operations: of late 2022, known to every runtime in use."""


def onnx_bytes(exported: Exported, about: dict[str, Any]) -> bytes:
    """An ONNX file with `about` in its metadata, each value as JSON.

    Raises:
        ExportError: An operation has no counterpart in ONNX, or the extra is not installed.
    """
    model = _translated(exported)
    _stripped(model)
    _named_axes(model, exported)
    for key, value in about.items():
        model.metadata_props.add(key=key, value=json.dumps(value, allow_nan=False))
    return model.SerializeToString(deterministic=True)


def check_installed() -> None:
    """See that the exporter's parts are there.

    Raises:
        ExportError: They are not.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401 (the exporter asks for it)
    except ImportError as error:
        raise ExportError(
            "ONNX files need an extra: pip install 'headstart[export]'. A .pt2 file needs none."
        ) from error


def _translated(exported: Exported) -> Any:
    check_installed()
    try:
        with _quiet():
            program = torch.onnx.export(
                exported.program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(exported.inputs),
                output_names=list(exported.outputs),
                verbose=False,
            )
    except Exception as error:  # whatever its parts raise
        raise ExportError(f"The model has no counterpart in ONNX: {_reason(error)}") from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of each constant that it merges, of parts of torchvision that are not there, and of itself."""
    loggers = [logging.getLogger(name) for name in ("onnx_ir", "onnxscript", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: Exception) -> str:
    """Which operation it is, where the exporter says it: its message is many lines, and the cause of a cause."""
    told = first_line(error)
    cause: BaseException | None = error.__cause__ or error.__context__
    while cause is not None:
        found = re.search(r"for\s+<OpOverload\(op='([\w.]+)'|'?(aten\.[\w.]+)", str(cause))
        if found:
            return f"there is none for the operation {found[1] or found[2]}."
        cause = cause.__cause__ or cause.__context__
    return told


def _stripped(model: Any) -> None:
    """Leave out what is for reading only: two thirds of the file, and names of files of this machine."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.value_info[:]
    for entry in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del entry.metadata_props[:]
        entry.ClearField("doc_string")
    for node in graph.node:
        node.ClearField("name")
    _shortened(graph)


def _shortened(graph: Any) -> None:
    """Give every value inside the graph a short name, and keep equal constants once."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    renamed: dict[str, str] = {}
    known: dict[bytes, str] = {}
    unique = []
    for constant in graph.initializer:
        name, constant.name = constant.name, ""
        content = constant.SerializeToString(deterministic=True)
        if content not in known:
            known[content] = f"c{len(known)}"
            unique.append(constant)
        renamed[name] = constant.name = known[content]
    del graph.initializer[:]
    graph.initializer.extend(unique)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        for index, name in enumerate(node.output):
            if name and name not in kept:
                node.output[index] = renamed[name] = f"v{len(renamed)}"


def _named_axes(model: Any, exported: Exported) -> None:
    """Name the open axes as the program does, in place of the exporter's symbols."""
    symbols: dict[str, str] = {}
    for value, axis in zip(model.graph.input, exported.axes, strict=True):
        first = value.type.tensor_type.shape.dim[0]
        if axis is not None:
            symbols[first.dim_param] = axis
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = symbols.get(dim.dim_param, dim.dim_param)
