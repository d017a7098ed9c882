"""Recipes that learn from examples: their settings, how they are trained, and how they are measured."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn

from headstart.algorithms.maml import MAML
from headstart.inner import SGD, Adam, InnerOptimizer, Momentum
from headstart.inputs import Inputs
from headstart.layers import Norm
from headstart.losses import Criterion, accuracy, squared_error
from headstart.recipes import learners
from headstart.recipes.learners import LearnerName
from headstart.recipes.recipe import TEST_SEED, VALIDATION_SEED, Part, Recipe
from headstart.training.choices import keep_choice, kept_choice
from headstart.training.engine import Precision
from headstart.training.evaluate import TEST, VALIDATION, Metric, evaluate, fixed_tasks
from headstart.training.files import write_json
from headstart.training.fused import Clipping
from headstart.training.gradient import GradientUpdater, Schedule
from headstart.training.run import Run
from headstart.training.trainer import Trainer, Validation
from headstart.training.tuning import Choice, ModeOrAuto, choose
from headstart.types import Task, TaskSource, generator

SEEN_FILE = "inputs.json"
"""In a run folder: what is known of the training inputs besides the recipe."""

Protocol = Literal["sampled", "one-shot-runs"]
"""Where test tasks come from: drawn by the recipe, or Omniglot's own 20 runs of 20-way one-shot classification."""


@dataclass(frozen=True)
class Conditions:
    """What can be chosen in an evaluation; None is as the recipe's published protocol has it."""

    num_tasks: int = 600
    steps: int | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    norm: Norm | None = None
    one_at_a_time: bool = False
    protocol: Protocol = "sampled"
    seed: int = TEST_SEED


@dataclass(frozen=True, kw_only=True)
class SupervisedRecipe(Recipe[MAML]):
    """Settings of every experiment that learns from examples. Its recipes add their problem's."""

    shots: int
    """Support examples per task (per class, in classification)."""
    queries: int
    """Query examples per task (per class, in classification), in training."""
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
    learner: LearnerName = "maml"
    """Algorithm: MAML or one of its successors, see docs/algorithms/index.md."""
    first_order: bool = False
    """Treat inner gradients as constants (first-order MAML)."""
    adapt_only: tuple[str, ...] = ("*",)
    """Name patterns of the parameters that adapt; one that starts with ! takes its matches out."""
    norm: Norm = "batch"
    """Where batch norm takes its statistics from: batch (transductive, published), support, support+query, running."""
    mode: ModeOrAuto = "auto"
    """How meta-gradients are computed: eager, compiled, graphed (CUDA), or auto: what is fastest for this run."""
    precision: Precision = "float32"
    """Type of products and convolutions; bfloat16 keeps parameters, norms and losses in float32."""
    chunk_size: int | Literal["auto"] | None = "auto"
    """Tasks computed together (auto: measured at the start; None: all); changes speed, memory, dropout's draws."""
    recompute: bool | Literal["auto"] = "auto"
    """Compute each inner step again backwards, for memory flat in steps; auto: where they are many."""
    eval_queries: int = 10
    """Query examples per task (per class, in classification), in evaluation."""
    select_by: Literal["mean", "median"] = "mean"
    """Statistic over validation tasks that chooses the best checkpoint; the median ignores divergent tasks."""
    tune_inner_lr: tuple[float, ...] = ()
    """Step sizes of which evaluation takes the one best on validation tasks; none: `inner_lr` as it is."""
    step_rates: bool = True
    """MAML++: learn a step size for each tensor and inner step."""
    multi_step_loss: float = 0.15
    """MAML++: share of the iterations in which the losses after all inner steps count, ever less; 0 for none."""
    first_order_share: float = 0.0
    """MAML++: share of the iterations, the first ones, with first-order gradients."""
    step_norms: bool = True
    """MAML++: a shift of each batch norm for each inner step."""
    strength: float = 2.0
    """iMAML: pull to the start in the inner loop."""
    solver_steps: int = 5
    """iMAML: conjugate-gradient iterations for the meta-gradient."""
    context_size: int = 5
    """CAVIA: numbers in the context vector."""
    rank: int = 4
    """LoRA: rank of what is added to each weight."""
    adapter_layers: tuple[str, ...] = ("*",)
    """LoRA and FiLM: name patterns of the layers that are given parts that adapt."""

    conditions: ClassVar[type[Any]] = Conditions

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "iterations", "shots", "queries", "eval_queries", "context_size", "rank", "solver_steps")
        for name in ("multi_step_loss", "first_order_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share of the iterations, 0 to 1, got {getattr(self, name)}.")
        learners.check(self)
        if isinstance(self.chunk_size, int) and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be 'auto' or at least 1, got {self.chunk_size}.")
        for name in ("inner_lr", "meta_lr", "clip_value", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, got {value}.")

    @abstractmethod
    def model(self) -> nn.Module:
        """The network, freshly initialised."""

    def start(self) -> nn.Module:
        """The network that training starts from: freshly initialised, for most."""
        return self.model()

    @abstractmethod
    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ) -> TaskSource:
        """Tasks of one part of the data, with this recipe's numbers of examples and classes or others."""

    @abstractmethod
    def inputs(self, seen: Mapping[str, Any]) -> Inputs:
        """How a person's files become the model's inputs, given what was `seen` of the training inputs."""

    def seen(self, data: Path | None) -> dict[str, Any]:
        """What is worth knowing of the training inputs when somebody gives others, as JSON values."""
        return {}

    @property
    def criterion(self) -> Criterion:
        """The loss of a task: mean cross-entropy, or mean squared error."""
        return F.cross_entropy if self.metric_name == "accuracy" else F.mse_loss

    @property
    def metric(self) -> Metric:
        """What evaluation measures of a task: what `metric_name` says."""
        return accuracy if self.metric_name == "accuracy" else squared_error

    @property
    def adapted_patterns(self) -> tuple[str, ...]:
        """Name patterns of what adapts."""
        return self.adapt_only

    @property
    def normalized_alone(self) -> bool:
        """Whether batch norm can take its statistics from one example: it has several values per channel."""
        return False

    @property
    def classes(self) -> int | None:
        """Classes per task; None in regression."""
        return None

    def one_shot_runs(self, data: Path | None) -> Task:
        """The tasks that the data set itself is published with.

        Raises:
            ValueError: It has none for this recipe.
        """
        raise ValueError("Omniglot's one-shot runs are for 20-way runs of Omniglot, which this is not.")

    def with_learner(self, learner: LearnerName) -> Self:
        """The same work for another learner, with the settings usual for that one."""
        return replace(self, learner=learner, **self.usual(learner))

    def usual(self, learner: LearnerName) -> dict[str, Any]:
        """Settings with which a learner is usually used on such a problem, where they differ from MAML's."""
        return {}

    @property
    def idle(self) -> dict[str, str]:
        """Settings of other learners."""
        return learners.idle(self.learner)

    @property
    def length_bound(self) -> str | None:
        """What a change of the number of iterations would change from the beginning on."""
        if self.schedule != "constant":
            return f"the {self.schedule} schedule is made for it"
        if self.learner == "maml++" and (self.multi_step_loss or self.first_order_share):
            return "multi_step_loss and first_order_share are shares of it"
        return None

    def make_learner(self, model: nn.Module | None = None) -> MAML:
        """The learner on this recipe's network, or on a given one."""
        return learners.build(self, self.model() if model is None else model)

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
            clipping=Clipping(self.clip_value, self.clip_norm),
        )

    def updater(self, learner: MAML, choice: Choice | None = None) -> GradientUpdater:
        """The learner with its meta-optimiser; eager, and all tasks at once, unless another choice is given."""
        engine = None if choice is None else choice.engine(learner)
        return GradientUpdater(
            learner,
            engine,
            meta_lr=self.meta_lr,
            schedule=self.schedule,
            iterations=self.iterations,
            clip_value=self.clip_value,
            clip_norm=self.clip_norm,
        )

    def check(self, device: torch.device) -> None:
        """See that the network can be made, and the mode be had on that device."""
        if self.mode == "graphed" and device.type != "cuda":
            raise ValueError(f"--mode graphed needs a GPU, and the device is {device}: use compiled, eager or auto.")
        self.make_learner(self.start())

    def restored(self, run: Run) -> MAML:
        """The learner of a run, computed in the chunks that were measured for it."""
        learner = self.make_learner()
        if (choice := kept_choice(run)) is not None:
            learner.chunk_size = choice.chunk_size
        return learner

    def trainer(self, run: Run, data: Path | None, device: torch.device | str) -> Trainer:
        """A trainer at iteration 0, its network initialised from the recipe's seed."""
        torch.manual_seed(self.seed)
        learner = self.make_learner(self.start()).to(device)
        tasks = self._validation_tasks(data, device)

        def validate() -> Validation:
            result = evaluate(learner, iter(tasks), self.metric, max(self.steps, self.select_step))
            chosen = result.per_step[self.select_step]
            value = getattr(chosen, self.select_by)
            score = float("-inf") if value is None else self.better * value
            return Validation(score, {"metric": self.metric_name, **chosen._asdict()})

        source = self.source("train", data)
        choice = self._run_choice(learner, source, run, device)
        learner.chunk_size = choice.chunk_size
        updater = self.updater(learner, choice)  # which checks the choice before it is kept
        keep_choice(run, choice)
        if seen := self.seen(data):
            write_json(run.path / SEEN_FILE, seen)
        return Trainer(updater, learner.state_dict, source, validate, run, self.trainer_settings(), device)

    def with_tuned_rate(self, learner: MAML, data: Path | None, steps: int, shots: int | None = None) -> float:
        """Give `learner` the inner step size best on validation tasks, if so set; returns the rate in use.

        The best is the one best after `steps` steps on `shots` examples: another number of either, another rate.
        """
        if not self.tune_inner_lr:
            return self.inner_lr
        tasks = self._validation_tasks(data, next(learner.parameters()).device, shots)

        def score(rate: float) -> float:
            learner.inner = replace(self, inner_lr=rate).inner_optimizer()
            mean = evaluate(learner, iter(tasks), self.metric, steps).per_step[steps].mean
            return float("-inf") if mean is None else self.better * mean

        best = max(self.tune_inner_lr, key=score)
        learner.inner = replace(self, inner_lr=best).inner_optimizer()
        return best

    def evaluate(self, learner: MAML, asked: Conditions, data: Path | None) -> dict[str, Any]:
        """Metric per task over the test tasks, after 0 to `steps` inner steps."""
        device = next(learner.parameters()).device
        steps = self.eval_steps if asked.steps is None else asked.steps
        norm = self.norm if asked.norm is None else asked.norm
        shots = self.shots if asked.shots is None else asked.shots
        queries = self.eval_queries if asked.queries is None else asked.queries
        ways = self._ways_of(asked)
        if asked.protocol == "one-shot-runs":
            if (asked.ways, asked.shots, asked.queries) != (None, None, None):
                raise ValueError("Omniglot's one-shot runs have their own ways, shots and queries: leave these out.")
            shots, queries, tasks = 1, 1, iter([_moved(self.one_shot_runs(data), device)])
        else:
            source = self.source("test", data, shots, queries, ways)
            tasks = fixed_tasks(source, asked.num_tasks, asked.seed, TEST, device)
        rate = self.with_tuned_rate(learner, data, steps, shots)
        result = evaluate(learner, tasks, self.metric, steps, norm, asked.one_at_a_time)
        return {
            "num_tasks": result.num_tasks,
            **({} if ways is None else {"ways": ways}),
            **({"one_at_a_time": True} if asked.one_at_a_time else {}),
            "shots": shots,
            "queries": queries,
            "norm": norm,
            "seed": asked.seed,
            "tasks_digest": result.tasks_digest,
            "inner_lr": rate,
            "protocol": asked.protocol,
            "per_step": [step._asdict() for step in result.per_step],
        }

    def file_name(self, evaluation: Mapping[str, Any]) -> str:
        """Checkpoint, where tasks are from and how many, examples, steps, norm, seed."""
        names = ("checkpoint", "protocol", "num_tasks", "shots", "queries", "norm", "seed")
        checkpoint, protocol, num_tasks, shots, queries, norm, seed = (evaluation[name] for name in names)
        steps = len(evaluation["per_step"]) - 1
        examples = f"{shots}shot-{queries}query"
        examples += f"-{evaluation['ways']}way" if "ways" in evaluation else ""
        examples += "-alone" if evaluation.get("one_at_a_time") else ""
        return f"{checkpoint}-{protocol}-{num_tasks}tasks-{examples}-{steps}steps-{norm}-seed{seed}.json"

    def measured_alike(self, evaluation: Mapping[str, Any]) -> bool:
        """Same classes, shots, queries and norm, all queries of a task together.

        The number of queries does not matter in regression: they sample the same curve.
        """
        if "ways" in evaluation or evaluation.get("one_at_a_time"):
            return False
        regression = self.metric_name == "mse"
        same = regression or (evaluation["queries"], evaluation["norm"]) == (self.eval_queries, self.norm)
        return same and evaluation["shots"] == self.shots and evaluation["protocol"] == "sampled"

    def trained_alike(self, other: Recipe[Any]) -> bool:
        """Same problem, shots, learner, steps, order and norm."""
        own = {field.name for field in fields(self)} - {field.name for field in fields(SupervisedRecipe)}
        conditions = own | {"shots", "learner", "steps", "first_order", "norm"}
        return other.kind == self.kind and all(getattr(other, name) == getattr(self, name) for name in conditions)

    def smoke(self) -> Self:
        """Four iterations of two tasks."""
        few = min(self.meta_batch, 2)
        return replace(
            self, iterations=4, meta_batch=few, val_tasks=4, validate_every=2, checkpoint_every=2, log_every=1
        )

    def _ways_of(self, asked: Conditions) -> int | None:
        """Classes per task, where others than those trained on are asked for."""
        if asked.ways is not None and self.classes is None:
            raise ValueError(f"ways is {asked.ways}, but this is regression, which has no classes. Leave it out.")
        if asked.ways is None or asked.ways == self.classes:
            return None
        if self.learner not in learners.ANY_WAYS:
            raise ValueError(
                f"The learner {self.learner} has outputs for {self.classes} classes; for any number of them train with "
                f"--learner {', '.join(learners.ANY_WAYS)}."
            )
        return asked.ways

    def _validation_tasks(self, data: Path | None, device: torch.device | str, shots: int | None = None) -> list[Task]:
        source = self.source("val", data, shots, self.eval_queries)
        return list(fixed_tasks(source, self.val_tasks, VALIDATION_SEED, VALIDATION, device))

    def _run_choice(self, learner: MAML, source: TaskSource, run: Run, device: torch.device | str) -> Choice:
        """How this run computes its meta-gradients: measured once, then kept in the run's `engine.json`."""
        if run.exists and (kept := kept_choice(run)) is not None:
            return kept
        tasks = source.sample(self.meta_batch, generator(self.seed, "measuring speed", device=device))
        return self.choice(learner, tasks)


def _moved(tasks: Task, device: torch.device | str) -> Task:
    return Task(*(type(batch)(*(leaf.to(device) for leaf in batch)) for batch in tasks))
