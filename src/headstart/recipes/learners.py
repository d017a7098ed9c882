"""The learners by their names: which class each is, and which of a recipe's settings it looks at."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from torch import nn

from headstart import algorithms
from headstart.algorithms.maml import MAML

LearnerName = Literal[
    "maml",
    "fomaml",
    "anil",
    "boil",
    "meta-sgd",
    "maml++",
    "meta-curvature",
    "alfa",
    "reptile",
    "imaml",
    "cavia",
    "lora",
    "film",
    "bias-only",
    "shared-head",
    "zero-head",
    "protonet",
    "proto-maml",
]
LEARNERS: tuple[LearnerName, ...] = get_args(LearnerName)


class Entry(NamedTuple):
    """A learner: its class, the recipe settings that are its own, and which of the common ones it has no use for."""

    cls: Callable[..., MAML]
    own: Callable[[Any], dict[str, Any]] = lambda recipe: {}
    reads: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    learned_rule: bool = False
    """Whether it makes its inner optimiser itself, from `inner_lr`."""


def _layers(recipe: Any) -> dict[str, Any]:
    return {"layers": recipe.adapter_layers}


def _classes(recipe: Any) -> dict[str, Any]:
    return {"ways": recipe.classes}


_PLUS = ("step_rates", "multi_step_loss", "first_order_share", "step_norms")


def _plus(recipe: Any) -> dict[str, Any]:
    return {
        "step_rates": recipe.step_rates,
        "step_norms": recipe.step_norms,
        "multi_step_loss": round(recipe.multi_step_loss * recipe.iterations),
        "first_order_until": round(recipe.first_order_share * recipe.iterations),
    }


_REGISTER: dict[LearnerName, Entry] = {
    "maml": Entry(algorithms.MAML),
    "fomaml": Entry(algorithms.MAML, lambda recipe: {"first_order": True}, without=("first_order",)),
    "anil": Entry(algorithms.ANIL, without=("adapt_only",)),
    "boil": Entry(algorithms.BOIL),
    "meta-sgd": Entry(algorithms.MetaSGD, learned_rule=True),
    "maml++": Entry(algorithms.MAMLPlusPlus, _plus, _PLUS, ("first_order",), learned_rule=True),
    "meta-curvature": Entry(algorithms.MetaCurvature, learned_rule=True),
    "alfa": Entry(algorithms.ALFA, learned_rule=True),
    "reptile": Entry(algorithms.Reptile, without=("first_order", "recompute")),
    "imaml": Entry(
        algorithms.IMAML,
        lambda recipe: {"strength": recipe.strength, "solver_steps": recipe.solver_steps},
        ("strength", "solver_steps"),
        ("first_order", "recompute"),
    ),
    "cavia": Entry(algorithms.CAVIA, reads=("context_size",), without=("adapt_only",)),
    "lora": Entry(
        algorithms.LoRA, lambda r: {**_layers(r), "rank": r.rank}, ("adapter_layers", "rank"), ("adapt_only",)
    ),
    "film": Entry(algorithms.FiLM, _layers, ("adapter_layers",), ("adapt_only",)),
    "bias-only": Entry(algorithms.BiasOnly, without=("adapt_only",)),
    "shared-head": Entry(algorithms.SharedHead, _classes),
    "zero-head": Entry(algorithms.ZeroHead, _classes),
    "protonet": Entry(
        algorithms.ProtoNet,
        _classes,
        without=(
            "steps",
            "eval_steps",
            "select_step",
            "inner",
            "inner_lr",
            "tune_inner_lr",
            "first_order",
            "recompute",
        ),
    ),
    "proto-maml": Entry(algorithms.ProtoMAML, _classes),
}

ANY_WAYS: tuple[LearnerName, ...] = ("shared-head", "zero-head", "protonet", "proto-maml")
"""Learners that make the head for each task: their models are evaluated on any number of classes."""

IMAML_ON_IMAGES: Mapping[str, Any] = {
    "steps": 16,
    "eval_steps": 16,
    "select_step": 16,
    "inner_lr": 0.05,
    "strength": 0.5,
    "solver_steps": 2,
}
"""iMAML on images, measured on characters with Conv-4 (`docs/lab-log.md`): steps of 0.2 swing about the minimum, where
H + lambda I need not be positive definite, so that with more than two products the solver goes too far."""

OWN_SETTINGS = tuple(dict.fromkeys(name for entry in _REGISTER.values() for name in entry.reads))


def build(recipe: Any, model: nn.Module) -> MAML:
    """The learner that `recipe` names, on `model`."""
    entry = _REGISTER[recipe.learner]
    names = ("norm", "steps", "first_order", "recompute")
    settings = {name: getattr(recipe, name) for name in names if name not in entry.without}
    if "adapt_only" not in entry.without:
        settings["adapt_only"] = recipe.adapted_patterns
    settings["chunk_size"] = None if recipe.chunk_size == "auto" else recipe.chunk_size
    if entry.learned_rule:
        settings["lr"] = recipe.inner_lr
    elif "inner" not in entry.without:
        settings["inner"] = recipe.inner_optimizer()
    return entry.cls(model, recipe.criterion, **settings, **entry.own(recipe))


def idle(learner: LearnerName) -> dict[str, str]:
    """Settings that change nothing for that learner, and why."""
    entry = _REGISTER[learner]
    unread = [name for name in OWN_SETTINGS if name not in entry.reads]
    return dict.fromkeys((*unread, *entry.without), f"the learner is {learner}")


def check(recipe: Any) -> None:
    """See that the recipe's other settings go with its learner.

    Raises:
        ValueError: They do not.
    """
    name = recipe.learner
    if name not in _REGISTER:
        raise ValueError(f"learner must be one of {', '.join(LEARNERS)}, got {name!r}.")
    if _REGISTER[name].learned_rule and (recipe.inner != "sgd" or recipe.tune_inner_lr):
        raise ValueError(
            f"The learner {name} makes its own inner optimiser: leave inner at sgd, and tune_inner_lr empty."
        )
    if name in ANY_WAYS and recipe.metric_name != "accuracy":
        raise ValueError(f"The learner {name} makes a head with a row per class; for regression choose another.")
    if recipe.steps < 1 and name not in ("maml", "protonet"):
        raise ValueError(f"The learner {name} is about inner steps, and steps is {recipe.steps} here: choose maml.")
    if recipe.first_order and name != "fomaml" and "first_order" in _REGISTER[name].without:
        raise ValueError(f"The learner {name} has no first-order variant by first_order: leave that out.")
    if name == "protonet" and (recipe.steps or recipe.eval_steps or recipe.select_step):
        raise ValueError("The learner protonet takes no inner steps: steps, eval_steps and select_step must be 0.")
