"""From a recipe to a run folder and back: what is written of it, a trained learner, an evaluation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from headstart.recipes import experiments, restore
from headstart.recipes.recipe import TEST_SEED, VALIDATION_SEED, Published, Recipe
from headstart.training.checkpoint import load_parameters
from headstart.training.files import FileError, write_json
from headstart.training.run import Run

__all__ = [
    "TEST_SEED",
    "VALIDATION_SEED",
    "Checkpoint",
    "config_of",
    "data_of",
    "evaluate_run",
    "keep_evaluation",
    "trained",
]

Checkpoint = Literal["best", "last"]


def config_of(name: str, recipe: Recipe[Any], data: Path | None = None) -> dict[str, Any]:
    """What a run folder's `config.json` holds: where the data is, too, if they are a person's own."""
    own = {"data": str(data.resolve())} if recipe.own_data and data is not None else {}
    return {"recipe": name, "kind": recipe.kind, "settings": asdict(recipe), **own}


def data_of(run: Run, given: Path | None) -> Path | None:
    """The folder of data sets that was given, else the own data that a run was trained on."""
    kept = run.config().get("data")
    return Path(kept) if given is None and kept is not None else given


def trained(
    run: Run, checkpoint: Checkpoint = "best", device: torch.device | str = "cpu"
) -> tuple[Recipe[Any], Any, int]:
    """A run's recipe, its learner with the parameters of a checkpoint, and their iteration.

    Raises:
        FileError: The run has no such checkpoint, or it does not fit the recipe's network.
    """
    recipe = restore(run.config())
    if not (run.checkpoints / f"{checkpoint}.safetensors").exists():
        other = "last" if checkpoint == "best" else "best"
        raise FileError(
            f"{run.path} has no checkpoint {checkpoint!r} yet: the best is first kept at the first "
            f"validation, the last at the first checkpoint. Try --checkpoint {other}, or train on with --resume."
        )
    parameters, about = load_parameters(run.checkpoints, checkpoint)
    learner = recipe.restored(run).to(device)
    try:
        learner.load_state_dict(parameters)
    except RuntimeError as error:
        raise FileError(f"The checkpoint {checkpoint!r} of {run.path} does not fit its config.json: {error}") from error
    return recipe, learner.eval(), about["iteration"]


def evaluate_run(
    run: Run,
    *,
    checkpoint: Checkpoint = "best",
    data: Path | None = None,
    device: torch.device | str = "cpu",
    **asked: Any,
) -> dict[str, Any]:
    """A run measured on held-out tasks, as the JSON object that `headstart evaluate --json` prints.

    Args:
        run: A trained run.
        checkpoint: Which parameters.
        data: Folder of data sets.
        device: Where to compute.
        asked: What the recipe's `conditions` name; the rest is as its published protocol has it.
    """
    recipe, learner, iteration = trained(run, checkpoint, device)
    name = run.config()["recipe"]
    result = {
        "recipe": name,
        "checkpoint": checkpoint,
        "iteration": iteration,
        "metric": recipe.metric_name,
        **recipe.evaluate(learner, recipe.conditions(**asked), data_of(run, data)),
    }
    return {**result, "published": [p._asdict() for p in _published(name, recipe, result)]}


def keep_evaluation(run: Run, result: dict[str, Any]) -> None:
    """Write an evaluation into its run's `evaluations/`, under a name of its own for each way to evaluate."""
    recipe = restore(run.config())
    write_json(run.path / "evaluations" / recipe.file_name(result), result)


def _published(name: str, recipe: Recipe[Any], result: dict[str, Any]) -> tuple[Published, ...]:
    """Published numbers, where run and evaluation are of the kind that they are for."""
    known = experiments().get(name)
    if known is None or not known.recipe.trained_alike(recipe) or not known.recipe.measured_alike(result):
        return ()
    return known.published
