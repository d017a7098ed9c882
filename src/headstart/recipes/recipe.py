"""What every recipe is, whatever it learns: how long, how often what, and what the commands ask of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

import torch
from torch import nn

from headstart.training.run import Run
from headstart.training.trainer import Trainer, TrainerSettings

L = TypeVar("L", bound=nn.Module)

Part = Literal["train", "val", "test"]
Device = Literal["cpu", "cuda"]

VALIDATION_SEED, TEST_SEED = 1, 0
"""Seeds of the fixed task lists: two streams, which no seed makes meet. Where there is data, its parts differ too."""


class Published(NamedTuple):
    """A number from the literature: the metric after `step` inner steps."""

    step: int
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC, Generic[L]):
    """Settings that every experiment has; `L` is the class of its learner."""

    iterations: int
    """Meta-updates."""
    meta_batch: int
    """Tasks per meta-update."""
    steps: int
    """Inner steps in training. 0 trains on all tasks jointly, without adaptation."""
    inner_lr: float
    """Inner step size, for the mean loss."""
    seed: int = 0
    """Seed of the initialisation and of the training tasks."""
    eval_steps: int = 10
    """Inner steps in evaluation and, unless said otherwise there, in adaptation."""
    select_step: int = 1
    """Validation after this many inner steps chooses the best checkpoint."""
    val_tasks: int = 200
    """Validation tasks, the same each time."""
    validate_every: int = 1000
    """Iterations between validations."""
    checkpoint_every: int = 1000
    """Iterations between checkpoints."""
    log_every: int = 100
    """Iterations between lines of metrics."""

    kind: ClassVar[str]
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]]
    shown: ClassVar[dict[str, str]] = {"meta_loss": "loss"}
    """Metrics of training to be shown as it goes, and what to call them."""
    reads_data: ClassVar[bool] = True
    """Whether a folder of data sets may be given."""
    own_data: ClassVar[bool] = False
    """Whether it learns from a person's own files: the data folder then is theirs, and is kept with the run."""
    from_data: ClassVar[tuple[str, ...]] = ()
    """Settings that `fitted` fills in from a person's own data."""
    devices: ClassVar[tuple[Device, ...]] = ("cpu", "cuda")
    """Where it can be computed."""
    named: ClassVar[tuple[str, ...]] = ()
    """Settings that an experiment's name stands for: with another of them it would be another experiment."""
    speed: ClassVar[tuple[str, ...]] = ()
    """Settings that change speed only: a run may go on with others."""
    conditions: ClassVar[type[Any]]
    """What can be chosen in an evaluation: a dataclass, whose defaults are the published protocol's."""

    def __post_init__(self):
        self._at_least(1, "meta_batch", "val_tasks", "validate_every", "checkpoint_every", "log_every")
        self._at_least(0, "steps", "eval_steps", "select_step")

    @property
    def better(self) -> int:
        """1 where more of the metric is better, -1 where less is."""
        return -1 if self.metric_name == "mse" else 1

    def fitted(self, data: Path | None) -> "Recipe[L]":
        """This recipe with what must be known of a person's own data before there can be a model: itself, for most.

        Raises:
            ValueError: The data cannot be used.
        """
        return self

    def refitted(self, before: "Recipe[L]") -> "Recipe[L]":
        """This recipe with what a run that is resumed knew of its data, whatever has become of these since."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        usual = {field.name: field.default for field in fields(self)}
        for name in before.from_data:
            kept, given = getattr(before, name), values.get(name)
            same_file = isinstance(given, str) and isinstance(kept, str) and Path(given).resolve() == Path(kept)
            if name not in values or given == usual[name] or same_file:
                values[name] = kept
        return type(before)(**values) if before.kind == self.kind else self

    @abstractmethod
    def make_learner(self) -> L:
        """What is trained, freshly initialised from the global random state."""

    @abstractmethod
    def check(self, device: torch.device) -> None:
        """See that training can begin there.

        Raises:
            ValueError: Settings that only the learner or the device can judge are wrong.
        """

    @abstractmethod
    def trainer(self, run: Run, data: Path | None, device: torch.device | str) -> Trainer:
        """A trainer at iteration 0, its learner initialised from the seed."""

    @abstractmethod
    def evaluate(self, learner: L, asked: Any, data: Path | None) -> dict[str, Any]:
        """`learner` on held-out tasks: the conditions, each by its name, `tasks_digest` and `per_step`.

        Args:
            learner: From a checkpoint.
            asked: One of `conditions`.
            data: Folder of data sets.
        """

    @abstractmethod
    def measured_alike(self, evaluation: Mapping[str, Any]) -> bool:
        """Whether an evaluation was made under the conditions of this recipe's published numbers."""

    @abstractmethod
    def trained_alike(self, other: "Recipe[Any]") -> bool:
        """Whether another recipe, this one with settings overridden perhaps, is still about the same problem."""

    @abstractmethod
    def file_name(self, evaluation: Mapping[str, Any]) -> str:
        """A name for an evaluation, its own among all ways to evaluate such a run."""

    @abstractmethod
    def smoke(self) -> Self:
        """The same work at its smallest: a few iterations and tasks of everything that a full run does."""

    @property
    def idle(self) -> dict[str, str]:
        """Settings that change nothing with the others as they are, and because of which one."""
        return {}

    @property
    def length_bound(self) -> str | None:
        """Why a run cannot be given another number of iterations when it is resumed; None where it can."""
        return None

    def restored(self, run: Run) -> L:
        """The learner of a run, its parameters still to be loaded."""
        return self.make_learner()

    def trainer_settings(self) -> TrainerSettings:
        """What the training loop wants to know."""
        return TrainerSettings(
            iterations=self.iterations,
            meta_batch=self.meta_batch,
            seed=self.seed,
            validate_every=self.validate_every,
            checkpoint_every=self.checkpoint_every,
            log_every=self.log_every,
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The recipe whose fields are `config`, as JSON gives them back."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
        return cls(**values)

    def _at_least(self, least: int, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                told = "at least 1" if least == 1 else f"{least} or more"
                raise ValueError(f"{name} must be {told}, got {getattr(self, name)}.")


class Experiment(NamedTuple):
    """A recipe by its name, with what the literature says it gives."""

    name: str
    summary: str
    recipe: Recipe[Any]
    published: tuple[Published, ...] = ()
