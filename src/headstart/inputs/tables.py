"""Rows of a table: a support set is a CSV or Parquet file with the target, and what is to be predicted one without."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from headstart.inputs.base import InputError, Inputs, Rows, Support, Unit
from headstart.tasks.schema import Schema
from headstart.tasks.table_files import Table, from_records, read_table
from headstart.types import Batch

T = TypeVar("T")

FAR = 8.0
"""Deviations from the training mean beyond which an input is noted."""


@dataclass(frozen=True)
class TableInputs(Inputs):
    """Rows as the model takes them, float32 `[rows, inputs]`, and its outputs in the target's own unit."""

    schema: Schema

    @property
    def unit(self) -> Unit | None:
        """The target's, if it is a number."""
        return None if self.schema.classes else Unit(self.schema.target_mean, self.schema.target_scale)

    def support(self, path: Path) -> Support:
        """The rows of a CSV or Parquet file, with the target."""
        return _wrong_is_input_error(lambda: self._support(read_table(path), str(path)))

    def rows(self, path: Path) -> Rows:
        """The rows of a CSV or Parquet file; the target need not be there, and is not looked at."""
        return _wrong_is_input_error(lambda: self._rows(read_table(path), str(path)))

    def blank(self, count: int) -> Tensor:
        """Rows of zeros: means, of no category."""
        return torch.zeros(count, len(self.schema.names))

    def support_of(self, records: Sequence[Mapping[str, Any]]) -> Support:
        """As `support`, from JSON objects, one for each row."""
        return _wrong_is_input_error(lambda: self._support(from_records(records), "The support set"))

    def rows_of(self, records: Sequence[Mapping[str, Any]]) -> Rows:
        """As `rows`, from JSON objects, one for each row."""
        return _wrong_is_input_error(lambda: self._rows(from_records(records), "The input"))

    def _support(self, table: Table, what: str) -> Support:
        schema, notes = self.schema, []
        table.check_columns([*schema.columns, schema.target], what)
        missing = table.frame[schema.target].is_null().to_numpy()
        if missing.all():
            raise InputError(f"{what}: {schema.target} is missing in every row: adaptation learns from its values.")
        if missing.any():
            notes.append(f"{missing.sum()} of {len(missing)} support rows are left out: no {schema.target}.")
        table = table.keep(~missing)
        inputs, targets = schema.inputs(table, what), schema.targets(table, what)
        if schema.classes and len(targets.unique()) == 1:
            only = schema.classes[int(targets[0])]
            notes.append(f"Every support row has the {schema.target} {only}: the model learns nothing of the others.")
        if schema.task_column in table.frame.columns:
            tasks = table.frame[schema.task_column].n_unique()
            if tasks > 1:
                notes.append(f"The support rows are of {tasks} values of {schema.task_column}: they are taken as one.")
        return Support(Batch(inputs, targets), schema.classes, (*notes, *self._unlike(inputs, targets)))

    def _rows(self, table: Table, what: str) -> Rows:
        names: list[dict[str, Any]] = [{"row": int(row)} for row in table.rows]
        task = self.schema.task_column
        if task in table.frame.columns:
            names = [{**name, "task": value} for name, value in zip(names, table.frame[task], strict=True)]
        return Rows(self.schema.inputs(table, what), names)

    def _unlike(self, inputs: Tensor, targets: Tensor) -> list[str]:
        """Notes on values that are far from all that was trained on."""
        schema = self.schema
        columns = {column.name: inputs[:, i] for i, column in enumerate(schema.numbers)}
        if not schema.classes:
            columns[schema.target] = targets[:, 0]
        far = {name: int((values.abs() > FAR).sum()) for name, values in columns.items()}
        found = [
            f"{name} is more than {FAR:g} deviations from the training mean in {count} of {len(inputs)} support rows: "
            "check its unit."
            for name, count in far.items()
            if count
        ]
        empty = [
            column.name
            for column in schema.numbers
            if column.indicator and bool(np.all(_indicator(schema, f"{column.name} is missing", inputs)))
        ]
        found += [f"{name} is missing in every support row." for name in empty]
        for column in schema.categories:
            count = int(_indicator(schema, f"{column.name} is another", inputs).sum())
            if count:
                found.append(
                    f"{column.name} is no category known from training in {count} of {len(inputs)} support rows."
                )
        return found


def _indicator(schema: Schema, name: str, inputs: Tensor) -> np.ndarray:
    """Whether what the input of this name says is so, by row; the last one, as a category may be called "another"."""
    place = len(schema.names) - 1 - schema.names[::-1].index(name)
    return inputs[:, place].numpy() > 0


def _wrong_is_input_error(read: Callable[[], T]) -> T:
    """What `read` returns; what it finds wrong with a table is an `InputError`."""
    try:
        return read()
    except InputError:
        raise
    except ValueError as error:
        raise InputError(str(error)) from error
