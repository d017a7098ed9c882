"""The experiments: every setting of each, with the published number beside it. The one place where parts meet."""

import difflib
from typing import Any

from headstart.recipes import averages, characters, control_experiments, intents, my_images, my_table, sinusoid
from headstart.recipes.averages import AveragedSinusoidRecipe
from headstart.recipes.characters import CharacterRecipe
from headstart.recipes.control import ControlRecipe
from headstart.recipes.intents import IntentRecipe, OwnTextRecipe
from headstart.recipes.my_images import ImageRecipe
from headstart.recipes.my_table import TableRecipe
from headstart.recipes.recipe import Experiment, Published, Recipe
from headstart.recipes.sinusoid import SinusoidRecipe
from headstart.recipes.supervised import SupervisedRecipe

__all__ = [
    "AveragedSinusoidRecipe",
    "CharacterRecipe",
    "ControlRecipe",
    "Experiment",
    "ImageRecipe",
    "IntentRecipe",
    "OwnTextRecipe",
    "Published",
    "Recipe",
    "SinusoidRecipe",
    "SupervisedRecipe",
    "TableRecipe",
    "experiment",
    "experiments",
    "restore",
]


def experiments() -> dict[str, Experiment]:
    """Every experiment, by name."""
    sources = (sinusoid, averages, characters, intents, my_images, my_table, control_experiments)
    return {e.name: e for source in sources for e in source.experiments()}


def experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: There is none; the message names those that are close.
    """
    known = experiments()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise ValueError(f"There is no recipe {name!r}.{hint} `headstart list` shows all.")
    return known[name]


def restore(config: dict[str, Any]) -> Recipe[Any]:
    """The recipe that a run's `config.json` describes."""
    own = (ImageRecipe, TableRecipe, IntentRecipe, OwnTextRecipe)
    known = (SinusoidRecipe, AveragedSinusoidRecipe, CharacterRecipe, *own, ControlRecipe)
    kinds = {cls.kind: cls for cls in known}
    try:
        return kinds[config["kind"]].from_config(config["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"This was not written by this version of Headstart: no recipe can be made of it ({error})."
        ) from error
