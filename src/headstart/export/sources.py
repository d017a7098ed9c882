"""What is exported of a run and of an adapted model, and what is told of it in JSON beside it."""

import json
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from headstart import layers
from headstart.adapted import Adapted, Trained
from headstart.export.program import ArgumentError, Exported, ExportError, adaptation, predictor
from headstart.inputs import InputError, Inputs
from headstart.recipes.learners import ANY_WAYS
from headstart.types import Batch

SHOTS, QUERIES = 3, 4
"""How many examples are recorded where any number may be given: not one, whose axis would be taken for a broadcast."""


def of_adapted(adapted: Adapted) -> tuple[Exported, dict[str, Any]]:
    """The adapted model as a predictor, and what is told of it.

    Raises:
        ExportError: It cannot be exported.
    """
    exported = predictor(adapted.model, _blank(adapted.inputs, QUERIES), len(adapted.classes), adapted.inputs.unit)
    about = {"exports": "predictor", **adapted.about, "classes": list(adapted.classes)}
    return exported, _told(exported, about, adapted.inputs)


def of_run(
    trained: Trained,
    *,
    steps: int | None = None,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
) -> tuple[Exported, dict[str, Any]]:
    """A run's adaptation itself, and what is told of it.

    Args:
        trained: From `load_run`.
        steps: Gradient steps; None for the number the recipe evaluates with.
        ways: Classes, in classification; None for the recipe's.
        shots: Support examples (per class); None for any number.
        queries: Queries; None for any number.

    Raises:
        ArgumentError: It cannot be exported for so many classes.
        ExportError: It cannot be exported.
    """
    recipe = trained.recipe
    steps = recipe.eval_steps if steps is None else steps
    ways = _checked_ways(trained, ways)
    inputs = _blank(trained.inputs, (ways or 1) * (shots or SHOTS))
    support = Batch(inputs, _targets(trained, inputs, ways))
    asked = _blank(trained.inputs, queries or QUERIES)
    exported = adaptation(
        trained.learner,
        support,
        asked,
        steps,
        unit=trained.inputs.unit,
        open_support=shots is None,
        open_queries=queries is None,
    )
    about = {"exports": "adaptation", **trained.about, "learner": recipe.learner, "steps": steps, "norm": "support"}
    return exported, _told(exported, about | ({} if ways is None else {"ways": ways}), trained.inputs)


def _checked_ways(trained: Trained, ways: int | None) -> int | None:
    own = trained.recipe.classes
    if ways is None or ways == own:
        return own
    if own is None:
        raise ArgumentError("This run is of regression, which has no classes: leave --ways out.")
    if ways < 2:
        raise ArgumentError(f"--ways must be at least 2, got {ways}: there is nothing to tell apart.")
    if trained.recipe.learner not in ANY_WAYS:
        raise ArgumentError(
            f"This run tells {own} classes apart, and --ways is {ways}: leave it out, or train with --learner "
            f"{', '.join(ANY_WAYS)}, which take any number."
        )
    return ways


def _blank(inputs: Inputs, count: int) -> Any:
    try:
        return inputs.blank(count)
    except InputError as error:
        raise ExportError(str(error)) from error


@torch.no_grad()
def _targets(trained: Trained, inputs: Any, ways: int | None) -> Tensor:
    """Targets of the support set's shape: labels, each as often, or zeros."""
    count = len(pytree.tree_leaves(inputs)[0])
    if ways is not None:
        return torch.arange(ways).repeat(count // ways)
    model = trained.learner.model
    outputs, _ = layers.run(model, {}, inputs)
    return torch.zeros_like(outputs)


def _told(exported: Exported, about: dict[str, Any], inputs: Inputs) -> dict[str, Any]:
    """All that somebody without the run needs to know, as JSON values."""
    kept = asdict(inputs) if is_dataclass(inputs) else {}
    shapes = {
        "inputs": _described(exported, exported.program.graph_signature.user_inputs, exported.inputs),
        "outputs": _described(exported, exported.program.graph_signature.user_outputs, exported.outputs),
    }
    scaled = [name for name in (*exported.inputs, *exported.outputs) if name in ("support_targets", "outputs")]
    told = {
        **about,
        **shapes,
        **({} if inputs.unit is None else {"scaled_in_graph": scaled}),
        "preprocessing": {"kind": type(inputs).__name__, **kept},
        "headstart": version("headstart"),
    }
    return json.loads(json.dumps(told, default=str))


def _described(exported: Exported, nodes: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    values = {node.name: node.meta["val"] for node in exported.program.graph.nodes if "val" in node.meta}
    symbols = {
        str(values[node].shape[0]): axis
        for node, axis in zip(exported.program.graph_signature.user_inputs, exported.axes, strict=True)
    }
    return [
        {
            "name": name,
            "shape": [size if isinstance(size, int) else symbols[str(size)] for size in values[node].shape],
            "dtype": str(values[node].dtype).removeprefix("torch."),
        }
        for name, node in zip(names, nodes, strict=True)
    ]
