"""What a recipe is: every setting of an experiment, and how its parts are put together."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from torch import nn

from headstart.algorithms.maml import MAML
from headstart.inner import SGD, Adam, InnerOptimizer, Momentum
from headstart.layers import Norm
from headstart.losses import Criterion
from headstart.training.engine import Engine, Precision
from headstart.training.evaluate import Metric
from headstart.training.gradient import GradientUpdater, Schedule
from headstart.training.tuning import Choice, ModeOrAuto, choose
from headstart.types import Task, TaskSource

Part = Literal["train", "val", "test"]


class Published(NamedTuple):
    """A number from the literature: the metric after `step` inner steps."""

    step: int
    value: float
    source: str


@dataclass(frozen=True)
class Recipe(ABC):
    """Settings that every experiment has. Subclasses add their problem's."""

    iterations: int
    """Meta-updates."""
    meta_batch: int
    """Tasks per meta-update."""
    shots: int
    """Support examples per task (per class, in classification)."""
    queries: int
    """Query examples per task (per class, in classification), in training."""
    steps: int
    """Inner steps in training. 0 trains on all tasks jointly, without adaptation."""
    inner_lr: float
    """Inner step size, for the mean loss."""
    meta_lr: float = 1e-3
    """Step size of the meta-optimiser, Adam."""
    schedule: Schedule = "constant"
    """How the meta step size changes over the run: constant, cosine or linear, the last two down to 0."""
    clip_value: float | None = None
    """Bound on each element of the meta-gradient."""
    clip_norm: float | None = None
    """Bound on the norm of the meta-gradient."""
    inner: Literal["sgd", "momentum", "adam"] = "sgd"
    """Inner optimiser."""
    first_order: bool = False
    """Treat inner gradients as constants (first-order MAML)."""
    adapt_only: tuple[str, ...] = ("*",)
    """Name patterns of the parameters that adapt; one that starts with ! takes its matches out."""
    norm: Norm = "batch"
    """Where batch norm takes its statistics from: batch (transductive, as published), support or running."""
    mode: ModeOrAuto = "auto"
    """How meta-gradients are computed: eager, compiled, graphed (CUDA), or auto: what is fastest for this run."""
    precision: Precision = "float32"
    """Type of products and convolutions; bfloat16 keeps parameters, norms and losses in float32."""
    chunk_size: int | Literal["auto"] | None = "auto"
    """Tasks computed together (auto: measured at the start; None: all); changes speed, memory, dropout's draws."""
    recompute: bool | Literal["auto"] = "auto"
    """Compute each inner step again backwards, for memory flat in steps; auto: where they are many."""
    seed: int = 0
    """Seed of the initialisation and of the training tasks."""
    eval_steps: int = 10
    """Inner steps in evaluation and, unless said otherwise there, in adaptation."""
    eval_queries: int = 10
    """Query examples per task (per class, in classification), in evaluation."""
    select_step: int = 1
    """Validation after this many inner steps chooses the best checkpoint."""
    select_by: Literal["mean", "median"] = "mean"
    """Statistic over validation tasks that chooses the best checkpoint; the median ignores divergent tasks."""
    val_tasks: int = 200
    """Validation tasks, the same each time."""
    validate_every: int = 1000
    """Iterations between validations."""
    checkpoint_every: int = 1000
    """Iterations between checkpoints."""
    log_every: int = 100
    """Iterations between lines of metrics."""
    tune_inner_lr: tuple[float, ...] = ()
    """Step sizes of which evaluation takes the one best on validation tasks; none: `inner_lr` as it is."""

    def __post_init__(self):
        counts = ("meta_batch", "shots", "queries", "eval_queries", "val_tasks")
        for name in (*counts, "iterations", "validate_every", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("steps", "eval_steps", "select_step"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if isinstance(self.chunk_size, int) and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be 'auto' or at least 1, got {self.chunk_size}.")
        for name in ("inner_lr", "meta_lr", "clip_value", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, got {value}.")

    kind: ClassVar[str]
    metric_name: ClassVar[Literal["accuracy", "mse"]]

    @abstractmethod
    def model(self) -> nn.Module:
        """The network, freshly initialised."""

    @abstractmethod
    def source(
        self, part: Part, data: Path | None = None, shots: int | None = None, queries: int | None = None
    ) -> TaskSource:
        """Tasks of one part of the data, with this recipe's numbers of examples or others."""

    @property
    @abstractmethod
    def criterion(self) -> Criterion:
        """The loss of a task."""

    @property
    @abstractmethod
    def metric(self) -> Metric:
        """What evaluation measures."""

    @property
    def better(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return 1 if self.metric_name == "accuracy" else -1

    def learner(self, model: nn.Module | None = None) -> MAML:
        """MAML on this recipe's network, or on a given one."""
        return MAML(
            self.model() if model is None else model,
            self.criterion,
            inner=self.inner_optimizer(),
            steps=self.steps,
            first_order=self.first_order,
            adapt_only=self.adapt_only,
            norm=self.norm,
            chunk_size=None if self.chunk_size == "auto" else self.chunk_size,
            recompute=self.recompute,
        )

    def examples(self, shots: int | None, queries: int | None) -> tuple[int, int]:
        """Shots and queries: those given, else the recipe's for training."""
        return self.shots if shots is None else shots, self.queries if queries is None else queries

    def inner_optimizer(self) -> InnerOptimizer:
        """The inner optimiser by its name."""
        return {"sgd": SGD, "momentum": Momentum, "adam": Adam}[self.inner](lr=self.inner_lr)

    def choice(self, learner: MAML, tasks: Task) -> Choice:
        """The fastest way to compute this recipe's meta-gradients, as far as the recipe leaves it open."""
        return choose(
            learner,
            tasks,
            mode=self.mode,
            chunk_size=self.chunk_size,
            precision=self.precision,
            iterations=self.iterations,
        )

    def updater(self, learner: MAML, choice: Choice | None = None) -> GradientUpdater:
        """The learner with its meta-optimiser; eager, and all tasks at once, unless another choice is given."""
        engine = None
        if choice is not None:
            engine = Engine(learner, mode=choice.mode, chunk_size=choice.chunk_size, precision=choice.precision)
        return GradientUpdater(
            learner,
            engine,
            meta_lr=self.meta_lr,
            schedule=self.schedule,
            iterations=self.iterations,
            clip_value=self.clip_value,
            clip_norm=self.clip_norm,
        )

    def smoke(self) -> "Recipe":
        """The same work at its smallest: a few iterations and tasks of everything that a full run does."""
        return replace(
            self,
            iterations=4,
            meta_batch=min(self.meta_batch, 2),
            val_tasks=4,
            validate_every=2,
            checkpoint_every=2,
            log_every=1,
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Recipe":
        """The recipe whose fields are `config`, as JSON gives them back."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
        return cls(**values)


class Experiment(NamedTuple):
    """A recipe by its name, with what the literature says it gives."""

    name: str
    summary: str
    recipe: Recipe
    published: tuple[Published, ...] = ()

    def measured_alike(self, shots: int, queries: int, norm: str, protocol: str) -> bool:
        """Whether an evaluation was made under the conditions of the published numbers.

        The number of queries does not matter in regression: they sample the same curve.
        """
        recipe = self.recipe
        regression = recipe.metric_name == "mse"
        same = regression or (queries, norm) == (recipe.eval_queries, recipe.norm)
        return same and shots == recipe.shots and protocol == "sampled"

    def trained_alike(self, recipe: Recipe) -> bool:
        """Whether a recipe, its settings perhaps overridden, is still about the published numbers' problem."""
        own = {field.name for field in fields(recipe)} - {field.name for field in fields(Recipe)}
        conditions = own | {"shots", "steps", "first_order", "norm"}
        return recipe.kind == self.recipe.kind and all(
            getattr(recipe, name) == getattr(self.recipe, name) for name in conditions
        )
