"""Comparisons of learners as tables, from the `comparison.json` that `headstart compare` wrote.

`python -m headstart.report.comparisons docs/results docs/comparisons.md` rebuilds the Markdown tables between the
markers `<!-- comparison:FOLDER:begin -->` and `<!-- comparison:FOLDER:end -->` from docs/results/FOLDER.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from headstart.comparison import ALONE, COLLAPSED, FILE, PUBLISHED
from headstart.report import words
from headstart.report.markers import rebuilt
from headstart.training.evaluate import StepResult
from headstart.training.files import FileError, read_json, write_atomically
from headstart.training.run import Run

_OF_SPEED = ("chunk_size", "mode", "recompute", "precision", "log_every", "checkpoint_every", "validate_every")
"""Settings that are not what a learner is."""


class Entry(NamedTuple):
    """One learner of a comparison."""

    learner: str
    run: str
    steps: int
    eval_steps: int
    select_step: int
    settings: dict[str, Any]
    iteration: int
    planned: int
    best_iteration: int | None
    seconds: float
    ms_per_iteration: float | None
    memory_mib: float | None
    results: dict[str, dict[str, Any]]
    error: str | None

    def at(self, protocol: str, step: int) -> StepResult | None:
        """What was measured after so many steps, if it was."""
        rows = self.results.get(protocol, {"per_step": []})["per_step"]
        return next((StepResult(**row) for row in rows if row["step"] == step), None)


class View(NamedTuple):
    """A number that every learner of a comparison is measured by: a column."""

    name: str
    protocol: str
    step: int | Literal["evaluated", "trained"] = "evaluated"
    """After how many inner steps: as many as the learner's recipe evaluates with, or trains with."""

    def of(self, entry: Entry) -> StepResult | None:
        """That number of one learner, if it was measured."""
        named = {"evaluated": entry.eval_steps, "trained": entry.steps}
        return entry.at(self.protocol, named[self.step] if isinstance(self.step, str) else self.step)


@dataclass(frozen=True)
class Compared:
    """What a `comparison.json` says."""

    folder: Path
    recipe: str
    metric: str
    iterations: int
    given: tuple[str, ...]
    num_tasks: int
    device: str
    environment: dict[str, Any]
    learners: tuple[Entry, ...]
    """In the order in which they were trained."""

    @property
    def label(self) -> str:
        """The name of its folder."""
        return self.folder.resolve().name

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The columns of numbers, the one that ranks first."""
        if self.metric == "accuracy":
            found = [
                View("accuracy, queries together", PUBLISHED),
                View("one query at a time", ALONE),
                View("so with batch norm's own", COLLAPSED),
            ]
            if any(entry.steps != entry.eval_steps for entry in self.learners):
                found.append(View("after its training steps", PUBLISHED, "trained"))
            return tuple(view for view in found if any(view.of(entry) for entry in self.learners)) or (found[0],)
        last = min(entry.eval_steps for entry in self.learners)  # the same number of steps for all
        views = View(f"error {words.steps(last)}", PUBLISHED, last), View(words.steps(1), PUBLISHED, 1)
        return views[: 1 if last == 1 else 2]

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Best first; of errors the median decides, which a few tasks near divergence do not own."""

        def rank(entry: Entry) -> tuple[bool, float]:
            result = self.views[0].of(entry)
            value = None if result is None else result.mean if self.metric == "accuracy" else result.median
            return value is None, 0.0 if value is None else -value if self.metric == "accuracy" else value

        return tuple(sorted(self.learners, key=rank))

    def own_settings(self, entry: Entry) -> dict[str, Any]:
        """Settings of a learner that are not the recipe's, and not the same for all learners here."""
        alike = [dict(e.settings) for e in self.learners]
        return {
            name: value
            for name, value in entry.settings.items()
            if name not in _OF_SPEED and not all(name in s and s[name] == value for s in alike)
        }

    def run(self, entry: Entry) -> Run:
        """Where the learner was trained."""
        return Run(self.folder / entry.run)


class Table(NamedTuple):
    """A table as text; its last column is of words, if it has one."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: bool


def is_comparison(folder: Path) -> bool:
    """Whether `headstart compare` wrote this folder."""
    return (folder / FILE).exists()


def read(folder: Path) -> Compared:
    """What the folder's `comparison.json` says.

    Raises:
        FileError: It is missing, damaged, or not one of ours.
    """
    return from_content(read_json(folder / FILE), folder)


def from_content(content: Any, folder: Path | str) -> Compared:
    """The comparison that `comparison.json` holds."""
    try:
        entries = tuple(Entry(**entry) for entry in content["learners"])
        rest = {name: value for name, value in content.items() if name not in ("learners", "given")}
        found = Compared(folder=Path(folder), learners=entries, given=tuple(content["given"]), **rest)
        if not entries:
            raise ValueError("it has no learners")
        return found
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(f"{Path(folder) / FILE} was not written by `headstart compare`: {error}.") from error


def table(compared: Compared, *, notes: bool = True) -> Table:
    """A row per learner, best first.

    Args:
        compared: What to show.
        notes: With a column of each learner's settings, and of what went wrong.
    """
    names = [view.name for view in compared.views]
    headings = ("learner", *names, "steps", "ms per iteration", "MiB", *(["settings"] if notes else []))
    rows = []
    for entry in compared.entries:
        numbers = [_number(compared, view.of(entry)) for view in compared.views]
        steps = f"{entry.steps}, {entry.eval_steps}"
        row = [entry.learner, *numbers, steps, _measured(entry.ms_per_iteration), _measured(entry.memory_mib)]
        rows.append((*row, *([_notes(compared, entry)] if notes else [])))
    return Table(headings, tuple(rows), notes)


def headline(compared: Compared) -> str:
    """What was compared, in a line."""
    return (
        f"{compared.recipe}, {compared.iterations:,} iterations, {compared.num_tasks:,} test tasks: "
        f"{'accuracy' if compared.metric == 'accuracy' else 'mean squared error and median'}; steps in training, in "
        "evaluation"
    )


def explanation(compared: Compared) -> str:
    """What the columns of the table mean."""
    told = "Mean over the same held-out tasks with its 95 % confidence interval, for the checkpoint best on validation "
    told += "tasks. "
    if compared.metric == "accuracy":
        told += (
            "Accuracy is by the recipe's published protocol, where batch norm sees a task's queries together. One "
            "query at a time is how a deployed model predicts, batch norm with the support set's statistics; with "
            "batch norm's own, that one query is all it sees. "
        )
    else:
        told += "Ranked by the median. Mean and median are of the tasks that did not diverge. "
    return told + (
        "Steps: inner steps in training, in evaluation. Time and memory (the peak beyond what was held before) are of "
        "eager meta-updates on the whole meta-batch at once."
    )


def markdown(compared: Compared) -> str:
    """The table in Markdown, and what made it."""
    shown = table(compared)
    lines = [f"| {' | '.join(shown.headings)} |", f"| --- |{' ---: |' * (len(shown.headings) - 2)} --- |"]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in shown.rows]
    machine = words.machine(compared.environment)
    lines += ["", f"{headline(compared)}. {machine}, device {compared.device}. Made by `{command(compared)}`."]
    lines += ["", explanation(compared)]
    return "\n".join(lines) + "\n"


def command(compared: Compared) -> str:
    """The command that makes such a comparison."""
    tokens = ["headstart", "compare", compared.recipe, "--learners", *(entry.learner for entry in compared.learners)]
    tokens += compared.given
    tokens += [] if compared.num_tasks == 600 else ["--num-tasks", str(compared.num_tasks)]
    return shlex.join([*tokens, "--out", f"runs/{compared.label}"])


def replace_tables(text: str, root: Path) -> str:
    """`text` with what is between the markers of each comparison replaced by its table.

    Raises:
        ValueError: There is no pair of markers, or a marker is without its other half.
        FileError: A folder that a marker names holds no comparison.
    """
    return rebuilt(text, "comparison", lambda folder: markdown(read(root / folder)))


def main(arguments: Sequence[str]) -> None:
    """Rebuild the tables of the files `arguments[1:]` from the comparisons in the folder `arguments[0]`."""
    if len(arguments) < 2:
        raise SystemExit("Usage: python -m headstart.report.comparisons RESULTS FILE...")
    root, *files = (Path(argument) for argument in arguments)
    for file in files:
        try:
            write_atomically(file, replace_tables(file.read_text(), root).encode())
        except (OSError, ValueError, FileError) as error:
            raise SystemExit(f"{file}: {error}") from error


def _number(compared: Compared, result: StepResult | None) -> str:
    if result is None:
        return "–"
    told = words.value(compared.metric, result.mean, result.ci95)
    if compared.metric == "mse" and result.median is not None:
        told += f", median {words.value('mse', result.median)}"
    if result.diverged and result.mean is not None:
        told += f", {result.diverged} diverged"
    return told


def _measured(number: float | None) -> str:
    """A time or an amount of memory, in three digits.

    >>> _measured(None), _measured(0.4321), _measured(27.84), _measured(1234.5)
    ('–', '0.43', '27.8', '1,234')
    """
    if number is None:
        return "–"
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _notes(compared: Compared, entry: Entry) -> str:
    """What is particular of a learner, or what went wrong with it."""
    own = [f"{name} {words.setting(value)}" for name, value in compared.own_settings(entry).items()]
    if entry.error:
        own.insert(0, f"failed: {entry.error}")
    elif entry.iteration < entry.planned:
        own.insert(0, f"not finished: {entry.iteration:,} of {entry.planned:,} iterations")
    return ", ".join(own)


if __name__ == "__main__":
    main(sys.argv[1:])
