"""What can be told to be wrong with a command before any work begins."""

import json
from pathlib import Path
from typing import Any, Literal

import torch

from headstart.recipes import Recipe
from headstart.training.run import Run

Device = Literal["auto", "cpu", "cuda"]


class UsageError(ValueError):
    """The command was called in a way that cannot work."""


def check_idle(settings: Recipe[Any], usual: Recipe[Any]) -> None:
    """A setting that was given must not be one that changes nothing."""
    for name, reason in settings.idle.items():
        if getattr(settings, name) != getattr(usual, name):
            raise UsageError(f"{flag(name)} would change nothing here: {reason}. Leave it out, or change that.")


def check_data(data: Path | None, recipe: Recipe[Any], name: str) -> None:
    """A folder of data sets must be of use."""
    if data is not None and not recipe.reads_data:
        raise UsageError(f"--data: {name} reads no data. Leave it out.")


def check_same_settings(run: Run, config: dict[str, Any], recipe: Recipe[Any]) -> None:
    """A resumed run must be the run that was started, longer at most."""
    before, now = run.config(), json.loads(json.dumps(config))
    if before["recipe"] != now["recipe"]:
        raise UsageError(f"{run.path} holds a run of {before['recipe']}, not of {now['recipe']}: choose another --out.")
    changed = [k for k, v in now["settings"].items() if k != "iterations" and before["settings"].get(k) != v]
    longer = before["settings"]["iterations"] != now["settings"]["iterations"]
    if longer and not recipe.lengthens:
        raise UsageError(
            f"The {now['settings']['schedule']} schedule of {run.path} is made for "
            f"{before['settings']['iterations']} iterations: their number cannot change on --resume."
        )
    if changed:
        told = ", ".join(f"{k} {before['settings'].get(k)!r} -> {now['settings'][k]!r}" for k in changed)
        raise UsageError(f"{run.path} was started with other settings ({told}): give the same ones, or another --out.")


def device_for(name: Device, recipe: Recipe[Any]) -> torch.device:
    """The device asked for; auto is a GPU if there is one that the recipe can use."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() and "cuda" in recipe.devices else "cpu"
    if name not in recipe.devices:
        raise UsageError(f"--device {name}: such a recipe is computed on {' or '.join(recipe.devices)} only.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no GPU here. Use --device cpu or auto.")
    return torch.device(name)


def flag(name: str) -> str:
    """The option that sets `name`."""
    return f"--{name.replace('_', '-')}"
