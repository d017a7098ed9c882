"""A network of somebody's own: made by a function that is named, with weights from a file."""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from headstart.algorithms.names import head_of
from headstart.layers import evaluating

_log = logging.getLogger(__name__)


def look_here() -> None:
    """Look for modules in the current folder too, as `python -m` does and a program's own script does not.

    For training alone: what is loaded may come from somebody else, and its folder then could bring code.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


class Logits(nn.Module):
    """A module whose outputs are those that `model` calls its logits, as the models of Hugging Face do."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """`[examples, ...]` to `[examples, outputs]`."""
        return self.model(inputs).logits


def imported(name: str, outputs: int, example: Tensor) -> nn.Module:
    """The network that the factory `name` makes, a module from inputs to `[examples, outputs]`.

    The contract: `name` is `package.module:factory`, looked for where Python looks. It is
    called as `factory(outputs=outputs)` and returns an `nn.Module`. Called with one tensor such as `example`, the
    module returns a tensor `[examples, outputs]`, or an object that has it as the attribute `logits`.

    Args:
        name: Import path of the factory.
        outputs: Number of outputs.
        example: Inputs of two examples, on which the network is tried.

    Raises:
        ValueError: There is no such factory, or it fails, or what it makes keeps another contract.
    """
    factory = _factory(name)
    try:
        model = factory(outputs=outputs)
    except Exception as error:  # it may raise anything
        raise ValueError(f"{name}(outputs={outputs}) failed: {_told(error)}.") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name}(outputs={outputs}) gave a {type(model).__name__}: return a torch.nn.Module.")
    shape = list(example.shape)
    try:
        with torch.no_grad(), evaluating(model):
            result = model(example)
    except Exception as error:
        raise ValueError(f"The network that {name} makes fails on inputs of shape {shape}: {_told(error)}.") from error
    if isinstance(getattr(result, "logits", None), Tensor):
        model, result = Logits(model), result.logits
    if not isinstance(result, Tensor):
        raise ValueError(
            f"The network that {name} makes returns a {type(result).__name__}: return the logits, a tensor, or an "
            "object with the attribute logits."
        )
    if list(result.shape) != [len(example), outputs]:
        raise ValueError(
            f"The network that {name} makes gives outputs of shape {list(result.shape)} for inputs of shape {shape}: "
            f"they must be {[len(example), outputs]}, one for each of the {outputs} classes."
        )
    return model


def load_weights(model: nn.Module, file: Path) -> None:
    """Give `model` the tensors of a safetensors file, in place.

    Names and shapes must be the model's (for a wrapped model those of the model inside), with one exception: the last
    linear layer stays as it is if the file has none or one of another size, for the classes are others.

    Raises:
        ValueError: The file is none, or does not fit.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"Cannot read {file} as safetensors, the one format for weights here: {error}.") from error
    inner = model.model if isinstance(model, Logits) else model
    own = inner.state_dict()
    head = {name for name in own if name.rpartition(".")[0] == head_of(inner)}
    fresh = sorted(name for name in head if name not in tensors or tensors[name].shape != own[name].shape)
    problems = {
        "it lacks": sorted(own.keys() - tensors.keys() - head),
        "the network has no": sorted(tensors.keys() - own.keys()),
        "of another shape are": [
            f"{name} {list(tensors[name].shape)} for {list(own[name].shape)}"
            for name in sorted(own.keys() & tensors.keys() - head)
            if tensors[name].shape != own[name].shape
        ],
    }
    found = [
        f"{what} {names[0]}" + (f" and {len(names) - 1} more" if names[1:] else "")
        for what, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(f"The weights in {file} are not this network's: {'; '.join(found)}.")
    inner.load_state_dict({**own, **{name: value for name, value in tensors.items() if name not in fresh}})
    if fresh:
        _log.info("The head (%s) is new; all else is from %s.", ", ".join(fresh), file)


def _factory(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # the module is somebody's own and may raise anything
        raise ValueError(
            f"{name} cannot be imported: {_told(error)}. Give package.module:factory of an installed module, in "
            "training of one in the current folder too; the environment variable PYTHONPATH names other folders."
        ) from error
    if not callable(factory):
        raise ValueError(f"{name} is a {type(factory).__name__}: name a function that makes the network.")
    return factory


def _told(error: Exception) -> str:
    """An error of somebody's own code in a few words."""
    text = (str(error) or type(error).__name__).strip().splitlines()[0]
    return f"{type(error).__name__}: {text}".rstrip(".")
