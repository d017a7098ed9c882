"""What the columns of a table are, learned from its training tasks: how rows become numbers, and numbers answers."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from headstart.tasks.table_files import MISSING, Table, as_numbers, is_dates, numbers_of, times_of, with_values

if TYPE_CHECKING:
    import polars as pl

TargetKind = Literal["auto", "number", "class"]
"""What a target is; auto: classes where it is text or takes two values only, else a number."""

Part = Literal["train", "val", "test"]

MOST_LEVELS = 100
"""More different texts than these in one column are no categories, and no classes."""
FARTHEST = 1e6
"""Deviations from the training mean beyond which a value is a mistake: no network could use it."""
SHARES = (0.70, 0.85)
"""Up to where training tasks go, and validation tasks; the rest are test tasks."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers, or of dates as seconds: `(value - mean) / scale`; the median where it is missing."""

    name: str
    mean: float
    scale: float
    median: float
    indicator: bool
    """Whether a further input says that the value is missing: it was, in some training row."""
    dates: bool


@dataclass(frozen=True)
class LevelColumn:
    """A column of categories: an input each, and one each for any other category and for a missing one."""

    name: str
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """What is known of a table, JSON values all.

    It is learned from the training tasks, but for the target's kind and classes: these are decided on all rows, so
    that every part has the same.

    Categories are one-hot: the first layer's weights for them then are what an embedding would be. A category that
    only one training task has counts as unknown, so that what the network does with an unknown one is learned too.
    """

    task_column: str
    target: str
    time_column: str | None
    numbers: tuple[NumberColumn, ...]
    categories: tuple[LevelColumn, ...]
    classes: tuple[str, ...]
    """The target's classes; empty in regression."""
    target_mean: float
    target_scale: float
    cuts: tuple[float, float]
    """Up to which `score` a task is for training, and up to which for validation."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Columns that are no input, and why."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are inputs."""
        return tuple(column.name for column in (*self.numbers, *self.categories))

    @property
    def names(self) -> tuple[str, ...]:
        """What each of the inputs is, in their order."""
        numbers = [c.name for c in self.numbers] + [f"{c.name} is missing" for c in self.numbers if c.indicator]
        levels = [f"{c.name} is {level}" for c in self.categories for level in (*c.levels, "another", "missing")]
        return (*numbers, *levels)

    def part_of(self, task: str) -> Part:
        """Which part a task is of: it stays there whatever other tasks come to the file, or leave it."""
        place = score(task)
        return "train" if place <= self.cuts[0] else "val" if place <= self.cuts[1] else "test"

    def inputs(self, table: Table, what: str) -> Tensor:
        """The inputs of a table's rows, float32 `[rows, inputs]`.

        Raises:
            ValueError: A column is not there, or holds what it cannot.
        """
        table.check_columns(self.columns, what)
        parts, indicators = [], []
        for column in self.numbers:
            values = numbers_of(table, column.name, column.dates, what)
            missing = np.isnan(values)
            filled = np.where(missing, column.median, values)
            parts.append(self._standardised(table, column.name, filled, column.mean, column.scale, what))
            if column.indicator:
                indicators.append(missing)
        parts += indicators
        for column in self.categories:
            codes = _codes(table.frame[column.name], column.levels)
            parts += [codes == code for code in range(len(column.levels) + 2)]
        return torch.from_numpy(np.stack(parts, 1).astype(np.float32))

    def targets(self, table: Table, what: str) -> Tensor:
        """The targets of a table's rows, none of them missing: float32 `[rows, 1]`, or classes int64 `[rows]`.

        Raises:
            ValueError: One is not a finite number, or is an unknown class.
        """
        table.check_columns([self.target], what)
        if not self.classes:
            values = numbers_of(table, self.target, False, what)
            values = self._standardised(table, self.target, values, self.target_mean, self.target_scale, what)
            return torch.from_numpy(values).float().unsqueeze(1)
        codes = _codes(table.frame[self.target], self.classes)
        unknown = np.flatnonzero(codes >= len(self.classes))
        if len(unknown):
            row, text = table.rows[unknown[0]], table.frame[self.target][int(unknown[0])]
            raise ValueError(
                f"{what}, row {row}: {self.target} is {text!r}, which is no class of the table trained on: "
                f"these are {', '.join(self.classes)}."
            )
        return torch.from_numpy(codes)

    def _standardised(
        self, table: Table, name: str, values: np.ndarray, mean: float, scale: float, what: str
    ) -> np.ndarray:
        """`(values - mean) / scale`, still float64: a small deviation of a large mean is not lost."""
        found = (values - mean) / scale
        far = np.flatnonzero(np.abs(found) > FARTHEST)
        if len(far):
            place = int(far[0])
            task = f" ({table.frame[self.task_column][place]})" if self.task_column in table.frame.columns else ""
            raise ValueError(
                f"{what}, row {table.rows[place]}{task}: {name} is {table.frame[name][place]!r}, far from all training "
                f"values, {mean:.4g} plus or minus {scale:.4g}: correct it, or leave it empty."
            )
        return found

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Schema":
        """What `dataclasses.asdict` made, as JSON gives it back."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
        values["numbers"] = tuple(NumberColumn(**each) for each in content["numbers"])
        values["categories"] = tuple(LevelColumn(each["name"], tuple(each["levels"])) for each in content["categories"])
        return cls(**values)


def fit(
    table: Table,
    *,
    task_column: str,
    target: str,
    time_column: str | None = None,
    columns: Sequence[str] = ("*",),
    categories: Sequence[str] = (),
    target_kind: TargetKind = "auto",
    rows_needed: int = 2,
    what: str = "The table",
) -> Schema:
    """What a table's columns are, and which tasks are for what; what is decided is logged.

    Args:
        table: With a row for each example.
        task_column: Each of its values is a task.
        target: What is to be predicted.
        time_column: Orders the rows of a task.
        columns: Name patterns of the columns that are inputs; see `matches`.
        categories: Name patterns of columns that hold categories even if these are written as numbers.
        target_kind: See `TargetKind`.
        rows_needed: Tasks with fewer rows are left out.
        what: The table's name in messages.

    Raises:
        ValueError: Nothing can be learned from such a table; the message says why.
    """
    roles = tuple(name for name in (task_column, target, time_column) if name is not None)
    table.check_columns(roles, what)
    if len(set(roles)) < len(roles):
        raise ValueError(f"The task column, the target and the time column must differ, got {', '.join(roles)}.")
    _check_patterns((*columns, *categories), table.frame.columns, what)
    table = _known(table, task_column, target, what)
    if time_column is not None:
        times_of(table, time_column, what)
    classes = _classes(table, target, target_kind, what)
    tasks = tasks_with(table, task_column, rows_needed, what)
    cuts = _cuts(tasks)
    training = {name for name in tasks if score(name) <= cuts[0]}
    seen = table.keep(np.array([name in training for name in table.frame[task_column]]))
    numbers, levels, left_out = _columns(seen, (task_column, target), columns, categories, what)
    mean, scale = (0.0, 1.0) if classes else _moments(numbers_of(seen, target, False, what))
    if not classes and scale == 0:
        raise ValueError(f"{what}: {target} is {mean:g} in every row of the training tasks: there is nothing to learn.")
    schema = Schema(task_column, target, time_column, numbers, levels, classes, mean, scale, cuts, left_out)
    schema.inputs(table, what)  # the rows of the other parts, too, hold what they must
    _tell(schema, tasks)
    return schema


def score(task: str) -> float:
    """A number in [0, 1) that looks random and depends on the task's name alone."""
    return int.from_bytes(hashlib.sha256(f"task {task}".encode()).digest()[:6], "big") / 2**48


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether `name` is among the names that `patterns` stand for.

    One that starts with ! takes its matches out: of all names, if there is no other kind.

    >>> [matches(name, ("!id*",)) for name in ("id_a", "b")]
    [False, True]
    """
    out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    taken = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"] * bool(out)
    return any(_match(name, pattern) for pattern in taken) and not any(_match(name, pattern) for pattern in out)


def _match(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)  # a name may have brackets, as in "heat [K]"


def _check_patterns(patterns: Sequence[str], names: Sequence[str], what: str) -> None:
    """See that each pattern stands for some column; one for none is a slip of the pen."""
    idle = [pattern for pattern in patterns if not any(_match(name, pattern.removeprefix("!")) for name in names)]
    if idle:
        raise ValueError(f"{what} has no column that matches {', '.join(idle)}: its columns are {', '.join(names)}.")


def _known(table: Table, task_column: str, target: str, what: str) -> Table:
    """The rows with a task and a target; how many are left out is told."""
    given = len(table.rows)
    table = with_values(table, (task_column, target), what)
    if len(table.rows) < given:
        _log.warning(
            "%s: %d of %d rows left out: no %s or no %s. Missing are empty cells and %s: rename a class or task "
            "that is called so.",
            what, given - len(table.rows), given, task_column, target, ", ".join(MISSING[1:]),
        )  # fmt: skip
    return table


def tasks_with(table: Table, task_column: str, rows_needed: int, what: str) -> list[str]:
    """The tasks with as many rows or more; how many are left out is logged.

    Raises:
        ValueError: There are fewer than three, which training, validation and test need.
    """
    counts = table.frame[task_column].value_counts()
    sizes = dict(zip(counts[task_column].to_list(), counts["count"].to_list(), strict=True))
    kept = [task for task, size in sizes.items() if size >= rows_needed]
    if len(sizes) < 3:
        raise ValueError(
            f"{what}: {task_column} has {len(sizes)} different value{'s' if len(sizes) > 1 else ''}, and each is a "
            "task: give 3 or more, better 20, to train, validate and test on."
        )
    if len(kept) < 3:
        raise ValueError(
            f"{what}: {len(kept)} of {len(sizes)} tasks have {rows_needed} rows or more, which shots and queries "
            f"together need, and 3 must: lower these. The largest has {max(sizes.values())}."
        )
    if len(kept) < len(sizes):
        fewer = len(sizes) - len(kept)
        _log.info("%s: %d of %d tasks left out, with fewer than %d rows.", what, fewer, len(sizes), rows_needed)
    return kept


def _standardised(table: Table, name: str, values: np.ndarray, mean: float, scale: float, what: str) -> np.ndarray:
    """`(values - mean) / scale`, still float64: a small deviation of a large mean is not lost."""
    found = (values - mean) / scale
    far = np.flatnonzero(np.abs(found) > FARTHEST)
    if len(far):
        row, text = table.rows[far[0]], table.frame[name][int(far[0])]
        raise ValueError(
            f"{what}, row {row}: {name} is {text!r}, far from all training values, {mean:.4g} plus or minus "
            f"{scale:.4g}: correct it, or leave it empty."
        )
    return found


def _columns(
    seen: Table, roles: tuple[str, str], columns: Sequence[str], categories: Sequence[str], what: str
) -> tuple[tuple[NumberColumn, ...], tuple[LevelColumn, ...], dict[str, str]]:
    """The columns that are inputs, of both kinds, and why the others are not."""
    task_column, target = roles
    numbers: list[NumberColumn] = []
    levels: list[LevelColumn] = []
    left_out: dict[str, str] = {}
    for name in seen.frame.columns:
        if name in roles:
            continue
        known = matches(name, columns)
        found = _column(seen, name, task_column, matches(name, categories), what) if known else "not asked for"
        if isinstance(found, str):
            left_out[name] = found
        elif isinstance(found, NumberColumn):
            numbers.append(found)
        else:
            levels.append(found)
    if not numbers and not levels:
        told = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "there are no others"
        raise ValueError(f"{what} has no column to predict {target} from ({told}).")
    return tuple(numbers), tuple(levels), left_out


def _column(seen: Table, name: str, task_column: str, category: bool, what: str) -> NumberColumn | LevelColumn | str:
    """What a column is, by its values in the training tasks, or why it is left out."""
    column = seen.frame[name].drop_nulls()
    if not len(column):
        return "no value in any training task"
    if column.n_unique() == 1:
        return "always the same"
    dates = is_dates(column)
    if not category and (dates or np.isnan(as_numbers(column)).mean() < 0.5):
        remedy = ": correct it, leave it empty, or name the column in --categories"
        values = numbers_of(seen, name, dates, what, remedy)
        missing = np.isnan(values)
        if np.ptp(values - seen.rows) == 0:
            return "numbers the rows"
        mean, scale = _moments(values[~missing])
        if scale == 0:
            return "always the same"
        return NumberColumn(name, mean, scale, float(np.median(values[~missing])), bool(missing.any()), dates)
    pairs = seen.frame.select(name, task_column).drop_nulls().unique()
    counts = pairs[name].value_counts()
    shared = sorted(counts.filter(counts["count"] > 1)[name].to_list())
    if not shared:
        return "no two training tasks share a value of it: it names the task or the row"
    if len(shared) > MOST_LEVELS:
        return f"{len(shared)} different texts, more than {MOST_LEVELS}: no categories"
    return LevelColumn(name, tuple(shared))


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and deviation."""
    return float(values.mean()), float(values.std())


def _classes(table: Table, target: str, kind: TargetKind, what: str) -> tuple[str, ...]:
    """The classes of the target; none in regression, for which every value must be a number."""
    column = table.frame[target]
    levels = column.unique().sort().to_list()
    if kind == "auto":
        text = np.isnan(as_numbers(column)).mean() > 0.5
        kind = "class" if text or len(levels) == 2 else "number"
    if kind == "number":
        numbers_of(table, target, False, what)
        return ()
    if not 2 <= len(levels) <= MOST_LEVELS:
        raise ValueError(f"{what}: {target} has {len(levels)} different values; classes must be 2 to {MOST_LEVELS}.")
    return tuple(levels)


def _codes(column: "pl.Series", levels: Sequence[str]) -> np.ndarray:
    """Which of `levels` each value is; their number for another value, and one more for a missing one."""
    places: dict[str | None, int] = {level: code for code, level in enumerate(levels)}
    places[None] = len(levels) + 1
    return np.array([places.get(value, len(levels)) for value in column], np.int64)


def _cuts(tasks: Sequence[str]) -> tuple[float, float]:
    """Scores that split the tasks by `SHARES`, at least one in each part."""
    scores = sorted(map(score, tasks))
    train = min(max(round(SHARES[0] * len(scores)), 1), len(scores) - 2)
    both = min(max(round(SHARES[1] * len(scores)), train + 1), len(scores) - 1)
    return (scores[train - 1] + scores[train]) / 2, (scores[both - 1] + scores[both]) / 2


def _tell(schema: Schema, tasks: Sequence[str]) -> None:
    """Log what was decided."""
    parts = [schema.part_of(task) for task in tasks]
    kind = f"one of {len(schema.classes)} classes" if schema.classes else "a number"
    kinds = {
        "numbers": [column.name for column in schema.numbers if not column.dates],
        "dates": [column.name for column in schema.numbers if column.dates],
        "categories": [f"{column.name} ({len(column.levels)})" for column in schema.categories],
    }
    _log.info(
        "%d tasks: %d to train on, %d to validate, %d to test. The target %s is %s. Columns: %s.",
        len(parts), *(parts.count(part) for part in ("train", "val", "test")), schema.target, kind,
        "; ".join(f"{told} {', '.join(names)}" for told, names in kinds.items() if names),
    )  # fmt: skip
    for name, reason in schema.left_out.items():
        _log.info("Column %s is left out: %s.", name, reason)
