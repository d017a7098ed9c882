"""Headstart: meta-learn an initialisation that gives any model a head start on a new task."""

from headstart import tasks
from headstart.adapt import adapt, inner_step, trajectory
from headstart.algorithms.maml import MAML
from headstart.inner import SGD, Adam, Momentum
from headstart.training.engine import Engine
from headstart.types import Batch, LossFn, Params, Task, TaskSource

__all__ = [
    "MAML",
    "SGD",
    "Adam",
    "Batch",
    "Engine",
    "LossFn",
    "Momentum",
    "Params",
    "Task",
    "TaskSource",
    "adapt",
    "inner_step",
    "tasks",
    "trajectory",
]
