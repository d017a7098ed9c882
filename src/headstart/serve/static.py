"""`headstart serve --static OUT --runtime DIR`: the page as files; the networks learn in the visitor's browser.

Any static host serves the folder, at any path. In it are the page, adaptation of each shipped model as an ONNX graph,
and ONNX Runtime Web (MIT licence) to execute them.
"""

import shutil
from pathlib import Path

import torch

from headstart.export.onnx_file import onnx_bytes
from headstart.export.program import adaptation
from headstart.serve import limits
from headstart.serve.app import PAGE
from headstart.serve.description import description
from headstart.serve.workers import Models
from headstart.shipped import ShippedName, shipped
from headstart.training.files import whole_folder, write_atomically, write_json
from headstart.types import Batch

RUNTIME = {
    "ort.wasm.min.mjs": "ort.wasm.min.js",
    "ort-wasm-simd-threaded.mjs": "ort-wasm-simd-threaded.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
"""The runtime's files, and their names here: not every host knows that a file .mjs is a script."""

WAYS = 5
"""Classes on the page's characters."""

_SERVED = '<meta name="headstart-backend" content="server">'
_STATIC = '<meta name="headstart-backend" content="browser">'


def build(out: Path, runtime: Path) -> None:
    """Write the folder.

    Args:
        out: Its path; an earlier one there is replaced.
        runtime: The folder `dist` of the npm package onnxruntime-web.

    Raises:
        FileNotFoundError: The runtime's files are not in `runtime`.
        FileError: `out` holds something else, or cannot be written.
        ExportError: The extra `export` is not installed.
    """
    missing = [name for name in RUNTIME if not (runtime / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{runtime} has no {missing[0]}: give the folder dist of the npm package onnxruntime-web, "
            "as in `npm install onnxruntime-web` and then --runtime node_modules/onnxruntime-web/dist."
        )
    models = Models(shipped("characters"), shipped("curve-maml"), shipped("curve-pretrained"))
    graphs = {f"{name}.onnx": graph(name) for name in ("characters", "curve-maml", "curve-pretrained")}
    with whole_folder(out, ("index.html", "page")) as folder:
        shutil.copytree(PAGE, folder / "page", ignore=shutil.ignore_patterns("index.html"))
        index = (PAGE / "index.html").read_text(encoding="utf-8")
        assert _SERVED in index
        (folder / "index.html").write_text(index.replace(_SERVED, _STATIC), encoding="utf-8")
        for name, here in RUNTIME.items():
            (folder / "page" / "runtime").mkdir(exist_ok=True)
            shutil.copyfile(runtime / name, folder / "page" / "runtime" / here)
        (folder / "page" / "graphs").mkdir()
        for name, content in graphs.items():
            write_atomically(folder / "page" / "graphs" / name, content)
        write_json(folder / "page" / "static.json", description(models))


def graph(name: ShippedName) -> bytes:
    """Adaptation of a shipped model as ONNX: outputs before adaptation and after every step of the page's."""
    trained = shipped(name)
    if name == "characters":
        support = Batch(torch.zeros(WAYS, 1, limits.SIZE, limits.SIZE), torch.arange(WAYS))
        exported = adaptation(
            trained.learner,
            support,
            support.inputs[:1],
            trained.recipe.eval_steps,
            open_support=False,
            open_queries=False,
        )
    else:
        support, queries = Batch(torch.zeros(3, 1), torch.zeros(3, 1)), torch.zeros(limits.GRID, 1)
        exported = adaptation(trained.learner, support, queries, limits.MAX_CURVE_STEPS, open_queries=False)
    return onnx_bytes(exported, {"recipe": trained.about["recipe"], "iteration": trained.about["iteration"]})
