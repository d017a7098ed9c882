"""What a run needs to go on as if it had never stopped, in one file; and the parameters alone, to be used.

`checkpoints/last.safetensors` and `best.safetensors` hold the learner's parameters, with `.json` beside them
for people. `last.resume.safetensors` holds everything: parameters, optimiser, schedule, random states,
iteration. It is one file, replaced in one step, so that a kill between two writes cannot mix two moments.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from headstart.training.files import read_tensors, write_json, write_tensors

RESUME = "last.resume.safetensors"


def save_parameters(folder: Path, name: str, parameters: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write `NAME.safetensors`, and `NAME.json` with the same facts for people."""
    write_tensors(folder / f"{name}.safetensors", parameters, about)
    write_json(folder / f"{name}.json", about)


def load_parameters(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parameters by name, and what was noted about them, their `iteration` at least."""
    return read_tensors(folder / f"{name}.safetensors")


def save_state(folder: Path, state: Any) -> None:
    """Write a tree of dicts, lists, tensors and JSON values: the state to resume from."""
    tensors: dict[str, Tensor] = {}
    tree = _without_tensors(state, tensors)
    write_tensors(folder / RESUME, tensors, tree)


def load_state(folder: Path) -> Any:
    """The tree that `save_state` wrote."""
    tensors, tree = read_tensors(folder / RESUME)
    return _with_tensors(tree, tensors)


def _without_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON, its tensors moved to `tensors`. Dicts become pairs: optimisers number their keys."""
    if isinstance(tree, Tensor):
        tensors[name := str(len(tensors))] = tree
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"pairs": [[key, _without_tensors(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, (list, tuple)):
        return {"list": [_without_tensors(value, tensors) for value in tree]}
    return tree


def _with_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    match tree:
        case {"tensor": name}:
            return tensors[name]
        case {"pairs": pairs}:
            return {key: _with_tensors(value, tensors) for key, value in pairs}
        case {"list": values}:
            return [_with_tensors(value, tensors) for value in values]
    return tree
