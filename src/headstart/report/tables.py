"""Tables of results, ours against published, from the evaluations in run folders.

`python -m headstart.report.tables docs/results README.md docs/results.md` rebuilds the tables between the
markers `<!-- results:short:begin -->` and `<!-- results:short:end -->` (one row per recipe, by the paper's
protocol), and between those of `results:full` (every evaluation).
"""

import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from headstart.recipes import experiments
from headstart.report import words
from headstart.report.markers import rebuilt
from headstart.report.records import Result, RunRecord, by_the_papers_protocol, read_records, steps_to_show
from headstart.training.files import FileError, write_atomically
from headstart.training.run import Run


class Row(NamedTuple):
    """One number of one evaluation, beside the published one; everything as text, empty where there is none."""

    step: int
    ours: str
    median: str
    diverged: str
    published: str
    difference: str
    verdict: str


class Group(NamedTuple):
    """One evaluation and its rows."""

    record: RunRecord
    result: Result
    rows: tuple[Row, ...]
    source: str
    """Where the published numbers are from."""


class Block(NamedTuple):
    """The evaluations of one checkpoint of a run."""

    record: RunRecord
    checkpoint: str
    source: str
    groups: tuple[Group, ...]

    @property
    def metric(self) -> str:
        """What the evaluations measured."""
        return self.groups[0].result.metric


def blocks(records: Iterable[RunRecord]) -> list[Block]:
    """Every evaluation of every run, by checkpoint."""
    made = []
    for (_, checkpoint), found in groupby(
        groups(records), lambda g: (g.record.label, words.checkpoint(g.record, g.result))
    ):
        members = tuple(found)
        source = ", ".join(dict.fromkeys(group.source for group in members if group.source))
        made.append(Block(members[0].record, checkpoint, source, members))
    return made


def groups(records: Iterable[RunRecord]) -> list[Group]:
    """Every evaluation of every run, those by the paper's protocol first."""
    return [_group(record, result) for record in records for result in sorted(record.results, key=_rank)]


def full_table(records: Iterable[RunRecord]) -> str:
    """A Markdown table of every evaluation."""
    lines = [
        "| recipe | protocol | checkpoint | steps | ours | median | diverged | published | difference |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for group in groups(records):
        told = [words.trained_as(group.record), words.protocol(group.record, group.result)]
        told.append(words.checkpoint(group.record, group.result))
        for row in group.rows:
            difference = f"{row.difference}, {row.verdict}" if row.difference else ""
            published = _published(row, group)
            lines.append(_line([*told, str(row.step), row.ours, row.median, row.diverged, published, difference]))
            told = ["", "", ""]
    return "\n".join(lines) + "\n"


def short_table(records: Sequence[RunRecord]) -> str:
    """Markdown tables of each recipe by the paper's protocol: after the steps published, else after the most.

    What acts has a table of its own, if there is any: a column for each step, as the paper's Tables 4 and 5.
    """
    chosen = _one_per_recipe(records)
    acting = [record for record in chosen if record.kind == "control" and record.main_result() is not None]
    learning = [record for record in chosen if record.kind != "control"]
    return "\n".join([_predictions(learning)] * bool(learning or not acting) + [_returns(acting)] * bool(acting))


def _predictions(records: Sequence[RunRecord]) -> str:
    lines = [
        "| recipe | iterations | protocol | steps | ours | published |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for record in records:
        result = record.main_result()
        if result is not None:
            group = _group(record, result)
            told = [words.trained_as(record), f"{result.iteration:,}", words.protocol(record, result)]
            for row in [row for row in group.rows if row.published] or group.rows[-1:]:
                ours = f"{row.ours}, median {row.median}" if row.median else row.ours
                lines.append(_line([*told, str(row.step), ours, _published(row, group)]))
                told = ["", "", ""]
    return "\n".join(lines) + "\n"


def _returns(records: Sequence[RunRecord]) -> str:
    found = [(record, record.main_result()) for record in records]
    grouped = [(record, _group(record, result)) for record, result in found if result is not None]
    steps = sorted({row.step for _, group in grouped for row in group.rows})
    lines = [
        f"| return after so many steps (published) | iterations | {' | '.join(map(str, steps))} |",
        f"| --- | ---: |{' ---: |' * len(steps)}",
    ]
    for record, group in grouped:
        rows = {row.step: f"{row.ours} ({row.published})" if row.published else row.ours for row in group.rows}
        cells = [words.trained_as(record), f"{group.result.iteration:,}", *(rows.get(step, "") for step in steps)]
        lines.append(_line(cells))
    return "\n".join(lines) + "\n"


TABLES = {"short": short_table, "full": full_table}


def replace_tables(text: str, records: Sequence[RunRecord]) -> str:
    """`text` with what is between the markers of each kind of table replaced by that table.

    Raises:
        ValueError: There is no pair of markers, or a marker is without its other half.
    """
    return rebuilt(text, "results", lambda kind: TABLES[kind](records), TABLES)


def main(arguments: Sequence[str]) -> None:
    """Rebuild the tables of the files `arguments[1:]` from the run folders in `arguments[0]`."""
    if len(arguments) < 2:
        raise SystemExit("Usage: python -m headstart.report.tables RESULTS FILE...")
    root, *files = (Path(argument) for argument in arguments)
    try:
        records = read_records([Run(config.parent) for config in sorted(root.glob("*/config.json"))])
        order = list(experiments())  # recipes unknown by now come last
        records.sort(key=lambda record: order.index(record.recipe) if record.recipe in order else len(order))
        if not records:
            raise FileError(f"There is no run folder in {root}.")
        for file in files:
            try:
                text = replace_tables(file.read_text(), records)
            except (OSError, ValueError) as error:
                raise FileError(f"{file}: {error}") from error
            write_atomically(file, text.encode())
    except FileError as error:
        raise SystemExit(str(error)) from error


def _rank(result: Result) -> tuple[Any, ...]:
    conditions = (result.conditions.get(name, 0) for name in ("shots", "queries", "rollouts"))
    norm = result.conditions.get("norm", "")
    return (result.checkpoint, not by_the_papers_protocol(result), norm, *conditions, result.num_tasks)


def _group(record: RunRecord, result: Result) -> Group:
    comparable = by_the_papers_protocol(result)
    rows = tuple(_row(result, step, comparable) for step in steps_to_show(record, result))
    sources = dict.fromkeys(number.source for number in result.published if comparable)
    return Group(record, result, rows, ", ".join(sources))


def _row(result: Result, step: int, comparable: bool) -> Row:
    measured = result.at(step)
    assert measured is not None
    number = next((p.value for p in result.published if p.step == step and comparable), None)
    difference, verdict = "", ""
    if number is not None and measured.mean is not None:
        difference, verdict = words.difference(result.metric, measured.mean, measured.ci95 or 0.0, number)
    return Row(
        step=step,
        ours=words.value(result.metric, measured.mean, measured.ci95),
        median=words.value(result.metric, measured.median) if result.metric == "mse" else "",
        diverged=f"{measured.diverged} of {result.num_tasks:,}" if result.metric == "mse" or measured.diverged else "",
        published="" if number is None else words.published(result.metric, number),
        difference=difference,
        verdict=verdict,
    )


def _one_per_recipe(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Of several runs of one recipe the one in the folder of its name, or the first."""
    chosen: dict[str, RunRecord] = {}
    for record in records:
        if record.recipe not in chosen or record.label == record.recipe:
            chosen[record.recipe] = record
    return list(chosen.values())


def _published(row: Row, group: Group) -> str:
    return f"{row.published} ({group.source})" if row.published else ""


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
