"""What can be told to be wrong with a command before any work begins."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import torch

from headstart.recipes import Recipe, SupervisedRecipe, restore
from headstart.recipes.learners import LEARNERS, LearnerName
from headstart.training.run import Run

Device = Literal["auto", "cpu", "cuda"]


class UsageError(ValueError):
    """The command was called in a way that cannot work."""


def with_learner(recipe: SupervisedRecipe, arguments: list[str]) -> SupervisedRecipe:
    """The recipe for the learner that `arguments` name: what is usual for it are then the defaults."""
    given = [argument.partition("=")[2] for argument in arguments if argument.startswith("--learner=")]
    given += [after for flag, after in pairwise(arguments) if flag == "--learner"]
    if not given or given[-1] not in LEARNERS:  # which tyro refuses
        return recipe
    try:
        return recipe.with_learner(cast(LearnerName, given[-1]))
    except ValueError as error:
        raise UsageError(str(error)) from error


def usual_recipe(recipe: Recipe[Any], settings: Recipe[Any]) -> Recipe[Any]:
    """The recipe as it is for the learner of `settings`."""
    if isinstance(recipe, SupervisedRecipe) and isinstance(settings, SupervisedRecipe):
        return recipe.with_learner(settings.learner)
    return recipe


def check_idle(settings: Recipe[Any], usual: Recipe[Any]) -> None:
    """A setting that was given must not be one that changes nothing."""
    for name, reason in settings.idle.items():
        if getattr(settings, name) != getattr(usual, name):
            raise UsageError(f"{flag(name)} would change nothing here: {reason}. Leave it out, or change that.")


def check_named(settings: Recipe[Any], usual: Recipe[Any], name: str) -> None:
    """A recipe must stay what its name says."""
    for setting in settings.named:
        own, given = getattr(usual, setting), getattr(settings, setting)
        if given != own:
            raise UsageError(
                f"{flag(setting)} {given}: the recipe {name} is of {own}, and that cannot be overridden. "
                f"`headstart list` shows the recipes of {given}."
            )


def check_data(data: Path | None, recipe: Recipe[Any], name: str) -> None:
    """A folder of data sets must be of use, and a person's own data be named."""
    if recipe.own_data and data is None:
        raise UsageError(f"{name} learns from your own data: say where it is by --data.")
    if data is not None and not recipe.reads_data:
        raise UsageError(f"--data: {name} reads no data. Leave it out.")


def check_same_settings(run: Run, config: dict[str, Any], recipe: Recipe[Any]) -> None:
    """A resumed run must be the run that was started, but for its length and what changes speed only.

    What its config.json does not know is newer than the run, which is then as the setting's default has it.
    """
    started = run.config()
    if started["recipe"] != config["recipe"]:
        raise UsageError(
            f"{run.path} holds a run of {started['recipe']}, not of {config['recipe']}: choose another --out."
        )
    before, now = (json.loads(json.dumps(asdict(r))) for r in (restore(started), recipe))
    changed = [name for name in now if name not in ("iterations", *recipe.speed) and before.get(name) != now[name]]
    if before["iterations"] != now["iterations"] and recipe.length_bound:
        raise UsageError(
            f"The number of iterations of {run.path}, {before['iterations']}, cannot change on --resume: "
            f"{recipe.length_bound}."
        )
    if changed:
        told = ", ".join(f"{name} {before.get(name)!r} -> {now[name]!r}" for name in changed)
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
