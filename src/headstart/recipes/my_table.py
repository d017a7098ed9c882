"""Your own table: every value of one column (a device, a patient, a shop) is a task, and a few rows adapt to a new one.

Before there is a model the table is looked at: `fitted` gives the recipe a schema, which says what its columns are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from headstart.inputs import Inputs
from headstart.inputs.tables import TableInputs
from headstart.losses import accuracy, squared_error
from headstart.models import MLP
from headstart.models.adapters import WithContext
from headstart.recipes.learners import ANY_WAYS, LearnerName
from headstart.recipes.recipe import Experiment, Part
from headstart.recipes.supervised import SupervisedRecipe
from headstart.tasks.schema import Schema, TargetKind, fit
from headstart.tasks.table import TableTasks, read_cached, read_tasks
from headstart.training.evaluate import Metric
from headstart.types import TaskSource


@dataclass(frozen=True, kw_only=True)
class TableRecipe(SupervisedRecipe):
    """Predicts a column of your own table."""

    task_column: str = ""
    """Column whose every value is a task: device_id, say."""
    target: str = ""
    """Column to predict."""
    time_column: str | None = None
    """Column of numbers or ISO dates that orders a task's rows: the support set then comes before the queries."""
    columns: tuple[str, ...] = ("*",)
    """Name patterns of the columns to predict from; one that starts with ! takes its matches out."""
    categories: tuple[str, ...] = ()
    """Name patterns of columns of numbers that stand for categories, such as codes."""
    target_kind: TargetKind = "auto"
    """Whether the target is a number or a class; auto: a class where it is text or takes two values only."""
    fewest: int | None = 1
    """Fewest support rows in training: each meta-batch has shots, or shots halved, down to this; None for shots always.
    """
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers."""

    kind: ClassVar[str] = "table"
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]] = "mse"
    own_data: ClassVar[bool] = True

    def __post_init__(self):
        if self.learner in ANY_WAYS:
            raise ValueError(
                f"The learner {self.learner} makes a head for the classes of each task; those of a table are the same "
                "in every task, and it may have none: choose another."
            )
        super().__post_init__()
        if self.fewest is not None and not 1 <= self.fewest <= self.shots:
            raise ValueError(f"fewest must be 1 to shots, which is {self.shots}, or None, got {self.fewest}.")

    @property
    def idle(self) -> dict[str, str]:
        """Settings of other learners, and what there is no batch norm for."""
        return super().idle | dict.fromkeys(("step_norms", "norm"), "the network has no batch norm")

    def usual(self, learner: LearnerName) -> dict[str, Any]:
        """As the default, but for these."""
        special: dict[LearnerName, dict[str, Any]] = {
            "cavia": {"inner_lr": 1.0},  # Zintgraf et al. 2019, section 4.1
            "reptile": {"steps": 8, "eval_steps": 8, "select_step": 8},
            "imaml": {"steps": 16, "eval_steps": 16, "select_step": 16},
        }
        return special.get(learner, {})

    def fitted(self, data: Path | None) -> "FittedTableRecipe":
        """With the schema of the table in the file `data`."""
        if data is None:
            raise ValueError("my-table learns from your own table: say which file by --data.")
        table = read_cached(data)
        for name, told in (("task_column", "whose every value is a task"), ("target", "to predict")):
            if not getattr(self, name):
                known = ", ".join(table.frame.columns)
                raise ValueError(f"Say by --{name.replace('_', '-')} which column {told}: {data} has {known}.")
        schema = fit(
            table,
            task_column=self.task_column,
            target=self.target,
            time_column=self.time_column,
            columns=self.columns,
            categories=self.categories,
            target_kind=self.target_kind,
            rows_needed=self.shots + max(self.queries, self.eval_queries),
            what=str(data),
        )
        own = {field.name: getattr(self, field.name) for field in fields(TableRecipe)}
        return FittedTableRecipe(**own, schema=schema)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TableRecipe":
        """The recipe whose fields are `config`, as JSON gives them back: a fitted one if there is a schema."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
        if "schema" not in values:
            return TableRecipe(**values)
        return FittedTableRecipe(**{**values, "schema": Schema.from_json(values["schema"])})

    def model(self) -> nn.Module:
        """None yet: what the inputs are, the table says."""
        raise self._not_fitted()

    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ) -> TaskSource:
        """None yet: what the inputs are, the table says."""
        raise self._not_fitted()

    def inputs(self, seen: Mapping[str, Any]) -> Inputs:
        """None yet: what the inputs are, the table says."""
        raise self._not_fitted()

    @property
    def metric(self) -> Metric:
        """None yet: what the target is, the table says."""
        raise self._not_fitted()

    def _not_fitted(self) -> ValueError:
        return ValueError("This recipe has not seen its table: use what `fitted(data)` returns.")


@dataclass(frozen=True, kw_only=True)
class FittedTableRecipe(TableRecipe):
    """The recipe for one table, whose columns are known."""

    schema: Schema
    """What its columns are."""

    from_data: ClassVar[tuple[str, ...]] = ("schema",)

    @property
    def metric_name(self) -> Literal["accuracy", "mse"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Accuracy for classes; for numbers the mean squared error, in the square of the target's unit."""
        return "accuracy" if self.schema.classes else "mse"

    @property
    def classes(self) -> int | None:
        """Classes of the target, the same in every task; None in regression."""
        return len(self.schema.classes) or None

    def fitted(self, data: Path | None) -> "FittedTableRecipe":
        """Itself."""
        return self

    def model(self) -> nn.Module:
        """A fully connected network; for CAVIA with a context vector among its inputs."""
        features, outputs = len(self.schema.names), self.classes or 1
        if self.learner == "cavia":
            return WithContext(MLP(features + self.context_size, outputs, self.hidden), self.context_size)
        return MLP(features, outputs, self.hidden)

    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ) -> TableTasks:
        """The tasks of one part of the table."""
        if data is None:
            raise ValueError("The table is not there: say which file by --data.")
        shots, queries = self.examples(shots, queries)
        return TableTasks(
            read_tasks(data, self.schema, part),
            shots=shots,
            queries=queries,
            ordered=self.time_column is not None,
            fewest=self.fewest if part == "train" else None,
        )

    def inputs(self, seen: Mapping[str, Any]) -> TableInputs:
        """Rows of such a table."""
        return TableInputs(self.schema)

    @property
    def metric(self) -> Metric:
        """Accuracy per task, or mean squared error per task, in the square of the target's unit."""
        if self.schema.classes:
            return accuracy

        def in_its_unit(outputs: Tensor, targets: Tensor) -> Tensor:
            return squared_error(outputs, targets).double() * self.schema.target_scale**2

        return in_its_unit


def experiments() -> list[Experiment]:
    """One, for any table.

    Its learner was chosen on one generated fleet of sensors (docs/lab-log.md). Without clipping, or at a constant meta
    step size, it diverges on clean tables.
    """
    recipe = TableRecipe(
        iterations=2500,
        meta_batch=16,
        shots=8,
        queries=10,
        steps=5,
        inner_lr=0.05,
        select_step=5,
        learner="meta-curvature",
        schedule="cosine",
        clip_norm=1.0,
        validate_every=500,
        checkpoint_every=500,
    )
    summary = "Your own table (--data FILE.csv): a few rows adapt the model to a new device, patient or shop"
    return [Experiment("my-table", summary, recipe)]
