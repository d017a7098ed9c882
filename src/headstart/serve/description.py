"""What the page is told about the models, before it asks anything of them."""

from typing import Any

from headstart.adapted import Adapted, Trained
from headstart.serve import limits
from headstart.serve.uploads import most_classes
from headstart.serve.workers import Models
from headstart.shipped import ShippedName, shipped_evaluation


def description(models: Models) -> dict[str, Any]:
    """JSON values: what each model is, how good it was on test tasks, and what may be asked."""
    characters = models.characters
    per_step = _per_step("characters", "support")
    return {
        "characters": {
            "size": limits.SIZE,
            "steps": characters.recipe.eval_steps,
            "ways": [limits.MIN_WAYS, limits.MAX_WAYS],
            "shots": [1, limits.MAX_SHOTS],
            **_origin(characters.about),
            "accuracy": None if per_step is None else per_step[-1],
        },
        "curve": {
            "steps": limits.MAX_CURVE_STEPS,
            "x": [-limits.X_LIMIT, limits.X_LIMIT],
            "y": [-limits.Y_LIMIT, limits.Y_LIMIT],
            "points": [1, limits.MAX_POINTS],
            "maml": _curve(models.maml, "curve-maml"),
            "pretrained": _curve(models.pretrained, "curve-pretrained"),
        },
        "run": _run(models),
    }


def _curve(trained: Trained, name: ShippedName) -> dict[str, Any]:
    measured = _per_step(name, trained.recipe.norm)
    return {**_origin(trained.about), "inner_lr": trained.about["inner_lr"], "mse": measured}


def _run(models: Models) -> dict[str, Any] | None:
    run = models.run
    if run is None:
        return None
    adapted = isinstance(run, Adapted)
    return {
        "recipe": run.about["recipe"],
        "kind": run.recipe.kind,
        "classes": list(run.classes) if adapted else None,
        "classes_limit": most_classes(run),
        "steps": run.about["steps"] if adapted else run.recipe.eval_steps,
        "limits": {
            "support": 0 if adapted else limits.RUN_SUPPORT,
            "queries": limits.RUN_QUERIES,
            "file_bytes": limits.FILE_BYTES,
            "upload_bytes": limits.UPLOAD_BYTES,
        },
    }


def _origin(about: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": about["recipe"], "iteration": about["iteration"]}


def _per_step(name: ShippedName, norm: str) -> list[float | None] | None:
    """A shipped run's test metric after 0, 1, 2 ... steps; None where it was not measured."""
    evaluation = shipped_evaluation(name, norm)
    return None if evaluation is None else [step["mean"] for step in evaluation["per_step"]]
