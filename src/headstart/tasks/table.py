"""Tasks from a table: every value of one column is a task, and its rows are the examples."""

import logging
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headstart.tasks.schema import Part, Schema
from headstart.tasks.table_files import Table, read_table, times_of, with_values
from headstart.types import Batch, Task, TaskSource

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TaskRows:
    """The rows of some tasks, one task after the other, in the order of time if there is one."""

    inputs: Tensor
    """float32 [rows, inputs]."""
    targets: Tensor
    """float32 [rows, 1], standardised; or classes, int64 [rows]."""
    sizes: Tensor
    """int64 [tasks]: how many rows each task has."""
    names: tuple[str, ...]
    """The tasks' values."""
    until: Tensor
    """int64 [rows]: how many rows of its task are no later than each row."""

    def of(self, name: str) -> Batch:
        """All rows of one task."""
        index = self.names.index(name)
        start = int(self.sizes[:index].sum())
        rows = slice(start, start + int(self.sizes[index]))
        return Batch(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True)
class TableTasks(TaskSource):
    """Tasks of `shots` support rows and `queries` query rows; those with fewer rows are left out.

    A meta-batch has each task equally often, or some once more than others. Rows are drawn at random. With `ordered`,
    the support set is a run of rows, from anywhere in the task, and the query rows are drawn from those that are later
    than all of it.

    With `fewest`, every meta-batch draws the number of its support rows: `shots`, or `shots` halved any number of
    times, down to `fewest`. What is learned then is not for one number of rows only.

    Raises:
        ValueError: A count is below one, or no task has rows enough.

    >>> places = torch.tensor([1, 2, 3, 4, 5, 1, 2, 3, 4])
    >>> rows = TaskRows(torch.zeros(9, 2), torch.zeros(9, 1), torch.tensor([5, 4]), ("a", "b"), places)
    >>> tasks = TableTasks(rows, shots=1, queries=3).sample(6, torch.Generator().manual_seed(0))
    >>> tasks.support.inputs.shape, tasks.query.targets.shape
    (torch.Size([6, 1, 2]), torch.Size([6, 3, 1]))
    """

    rows: TaskRows
    """Where tasks are drawn from."""

    shots: int
    """Support rows per task."""

    queries: int
    """Query rows per task."""

    ordered: bool = False
    """Whether query rows are later than the support rows."""

    fewest: int | None = None
    """Fewest support rows per task, where their number is drawn."""

    def __post_init__(self) -> None:
        for name, count in (("shots", self.shots), ("queries", self.queries), ("fewest", self.fewest)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        if not len(self.long_enough):
            later = " (the queries' later than the others)" if self.ordered else ""
            raise ValueError(
                f"shots {self.shots} and queries {self.queries} need {self.shots + self.queries} rows of a task{later}"
                f", and the longest of these {len(self.rows.names)} has {int(self.rows.sizes.max())}: lower one."
            )
        short = len(self.rows.names) - len(self.long_enough)
        if short:
            _log.info("%d of %d tasks left out: too few rows.", short, len(self.rows.names))

    @cached_property
    def long_enough(self) -> Tensor:
        """Which tasks have rows enough, int64 [tasks]."""
        return (self._followed >= self.shots).nonzero().flatten()

    @cached_property
    def _followed(self) -> Tensor:
        """How many rows of each task, from its first on, have rows for the queries after them: int64 [tasks]."""
        sizes = self.rows.sizes
        if not self.ordered:
            return sizes - self.queries
        task = torch.arange(len(sizes)).repeat_interleave(sizes)
        followed = self.rows.until + self.queries <= sizes[task]
        return torch.zeros_like(sizes).index_add(0, task, followed.long())

    @property
    def counts(self) -> list[int]:
        """The numbers of support rows that are drawn from, most first."""
        counts = [self.shots]
        while self.fewest is not None and counts[-1] > self.fewest:
            counts.append(max(counts[-1] // 2, self.fewest))
        return counts

    def sample(self, size: int, generator: torch.Generator) -> Task:
        """A meta-batch of `size` tasks; one that comes up more than once does so with other rows.

        Returns:
            Inputs [size, shots, inputs] for the support, `queries` in place of `shots` for the query, and targets
            [size, shots, 1] or, for classes, [size, shots]; on the generator's device.
        """
        if size < 1:
            raise ValueError(f"size={size}: a meta-batch holds at least 1 task")
        device, shots = generator.device, self.shots
        if self.fewest is not None:
            shots = self.counts[int(torch.randint(len(self.counts), (), generator=generator, device=device))]
        count = len(self.long_enough)
        keys = torch.rand(-(-size // count), count, generator=generator, device=device).cpu()  # a line for each round
        tasks = self.long_enough[keys.topk(min(size, count)).indices.flatten()[:size]]
        starts = (self.rows.sizes.cumsum(0) - self.rows.sizes)[tasks]
        places = self._places(tasks, starts, shots, generator) + starts.unsqueeze(1)
        return Task(self._batch(places[:, :shots], device), self._batch(places[:, shots:], device))

    def _places(self, tasks: Tensor, starts: Tensor, shots: int, generator: torch.Generator) -> Tensor:
        """Which rows of these tasks, support rows first, counted from their starts: int64 [tasks, shots + queries]."""
        sizes = self.rows.sizes[tasks]
        device, most = generator.device, int(sizes.max())
        place = torch.arange(most)
        if not self.ordered:
            keys = torch.rand(len(sizes), most, generator=generator, device=device).cpu()
            return keys.masked_fill(place >= sizes.unsqueeze(1), -1.0).topk(shots + self.queries).indices
        room = self._followed[tasks] - shots + 1
        first = (torch.rand(len(sizes), generator=generator, device=device).cpu() * room).long().unsqueeze(1)
        keys = torch.rand(len(sizes), most, generator=generator, device=device).cpu()
        earlier = place < self.rows.until[starts.unsqueeze(1) + first + shots - 1]
        later = keys.masked_fill(earlier | (place >= sizes.unsqueeze(1)), -1.0).topk(self.queries).indices
        return torch.cat([first + torch.arange(shots), later], 1)

    def _batch(self, places: Tensor, device: torch.device) -> Batch:
        return Batch(self.rows.inputs[places].to(device), self.rows.targets[places].to(device))


def read_tasks(path: Path, schema: Schema, part: Part) -> TaskRows:
    """The tasks of one part of the table in a file.

    Raises:
        ValueError: The table is not what `schema` was made from, or holds no such task.
    """
    return task_rows(read_cached(path), schema, part, str(path))


def task_rows(table: Table, schema: Schema, part: Part, what: str = "The table") -> TaskRows:
    """The tasks of one part of a table; see `read_tasks`."""
    roles = (schema.task_column, schema.target)
    table.check_columns(roles if schema.time_column is None else (*roles, schema.time_column), what)
    table = with_values(table, roles, what)
    names = np.array(table.frame[schema.task_column].to_list())
    wanted = {name for name in np.unique(names).tolist() if schema.part_of(name) == part}
    if not wanted:
        raise ValueError(
            f"{what} holds no task to {'train on' if part == 'train' else part}: give the file trained on."
        )
    mine = np.array([name in wanted for name in names.tolist()])
    table, names = table.keep(mine), names[mine]
    times = table.rows if schema.time_column is None else times_of(table, schema.time_column, what)
    order = np.lexsort((times, names))  # stable: rows of one time stay as they are in the file
    found, starts, sizes = np.unique(names[order], return_index=True, return_counts=True)
    if part == "test":
        _log.info(
            "%d different tasks to test on, drawn equally often: over more draws than these, the interval of the mean "
            "is that of draws of rows, not of tasks.",
            len(found),
        )
    place = torch.from_numpy(order)
    return TaskRows(
        schema.inputs(table, what)[place],
        schema.targets(table, what)[place],
        torch.from_numpy(sizes.astype(np.int64)),
        tuple(found.tolist()),
        torch.from_numpy(_ends(names[order], times[order]) - np.repeat(starts, sizes)),
    )


def _ends(names: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Of rows sorted by name and time: where those of the name and time of each row end, int64 [rows]."""
    new = (names[1:] != names[:-1]) | (times[1:] != times[:-1])
    ends = np.append(np.flatnonzero(new) + 1, len(names))
    return ends[np.append(0, new.cumsum())]


def read_cached(path: Path) -> Table:
    """As `read_table`; the file is read once as long as it does not change: each part of it is asked for."""
    try:
        about = path.stat()
    except OSError:
        return read_table(path)  # which says what is wrong
    return _read(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=1)
def _read(path: Path, changed: int, size: int) -> Table:
    return read_table(path)
