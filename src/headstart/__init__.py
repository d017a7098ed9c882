"""Headstart: meta-learn an initialisation that gives any model a head start on a new task."""

from pathlib import Path
from typing import TYPE_CHECKING

from headstart import tasks
from headstart.adapt import adapt, inner_step, trajectory
from headstart.algorithms import (
    ALFA,
    ANIL,
    BOIL,
    CAVIA,
    IMAML,
    MAML,
    BiasOnly,
    FiLM,
    LoRA,
    MAMLPlusPlus,
    MetaCurvature,
    MetaSGD,
    ProtoMAML,
    ProtoNet,
    Reptile,
    SharedHead,
    ZeroHead,
)
from headstart.inner import SGD, Adam, Momentum
from headstart.training.engine import Engine
from headstart.types import Batch, LossFn, Params, Task, TaskSource

if TYPE_CHECKING:
    from headstart.adapted import Adapted

__all__ = [
    "ALFA",
    "ANIL",
    "BOIL",
    "CAVIA",
    "IMAML",
    "MAML",
    "SGD",
    "Adam",
    "Batch",
    "BiasOnly",
    "Engine",
    "FiLM",
    "LoRA",
    "LossFn",
    "MAMLPlusPlus",
    "MetaCurvature",
    "MetaSGD",
    "Momentum",
    "Params",
    "ProtoMAML",
    "ProtoNet",
    "Reptile",
    "SharedHead",
    "Task",
    "TaskSource",
    "ZeroHead",
    "adapt",
    "inner_step",
    "load",
    "tasks",
    "trajectory",
]


def load(folder: Path | str) -> "Adapted":
    """The adapted model that `headstart adapt`, or `Adapted.save`, wrote to `folder`; see `headstart.adapted.load`."""
    from headstart import adapted  # with all that reads files, which the core does without

    return adapted.load(folder)
