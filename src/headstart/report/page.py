"""The page: tables, figures and notes put into one file that asks the network for nothing."""

import base64
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from headstart.report import (
    character_grids,
    comparison_figures,
    comparisons,
    filmstrips,
    learning_curves,
    navigation_paths,
    return_curves,
    return_histories,
    sine_fits,
    step_curves,
    tables,
    words,
)
from headstart.report.commands import commands, evaluate_command, train_command
from headstart.report.comparisons import Compared
from headstart.report.picture import LOOKS, Look, Picture
from headstart.report.records import RunRecord, read_records
from headstart.training.files import write_atomically
from headstart.training.run import Run


class Figure(NamedTuple):
    """A picture, and its renderings as addresses that hold the image itself."""

    picture: Picture
    wide: str
    wide_dark: str
    narrow: str
    narrow_dark: str


class Section(NamedTuple):
    """A part of the page."""

    title: str
    figures: list[Figure]
    notes: list[str]
    table: comparisons.Table | None = None
    caption: str = ""
    """Of the table."""

    @property
    def anchor(self) -> str:
        """Its name in addresses."""
        return _file_name(self.title.lower())


def write_page(runs: Sequence[Run], out: Path, data: Path | None) -> Path:
    """The path of `index.html`; see `headstart.report.write_report`."""
    if not runs:
        raise ValueError("There is nothing to report: give at least one run folder.")
    records = read_records([run for run in runs if not comparisons.is_comparison(run.path)])
    compared = [comparisons.read(run.path) for run in runs if comparisons.is_comparison(run.path)]
    sections = [*(_comparison(found, out) for found in compared), *_sections(records, out, data)]
    evaluated = [(record, result) for record in records for result in record.results]
    drawn = {figure.picture.name for section in sections for figure in section.figures}
    page = _template().render(
        records=records,
        counted=" and ".join(_counted(len(records), len(compared))),
        blocks=tables.blocks(records),
        unevaluated=[(record.label, evaluate_command(record)) for record in records if not record.results],
        table_commands=commands((record for record, _ in evaluated), evaluated),
        sections=[section for section in sections if section.figures or section.notes],
        shows_omniglot=any(
            record.settings.get("dataset") == "omniglot" and character_grids.name(record) in drawn for record in records
        ),
        command=shlex.join(["headstart", "report", *(str(run.path) for run in runs), "--out", str(out)]),
        train_command=train_command,
        words=words,
    )
    write_atomically(out / "index.html", page.encode())
    return out / "index.html"


def _sections(records: Sequence[RunRecord], out: Path, data: Path | None) -> list[Section]:
    grids, without_data = character_grids.pictures(records, data)
    sines = [*sine_fits.pictures(records, data), *step_curves.error_pictures(records)]
    characters = [*grids, *step_curves.accuracy_pictures(records)]
    films, without_rendering = filmstrips.pictures(records)
    control = [*return_curves.pictures(records), *navigation_paths.pictures(records), *films]
    learning = [*learning_curves.pictures(records), *return_histories.pictures(records)]
    return [
        Section("Sine waves", [_figure(p, out) for p in sines], _without_examples(records, "sinusoid")),
        Section(
            "Characters", [_figure(p, out) for p in characters], without_data + _without_examples(records, "characters")
        ),
        Section(
            "Control", [_figure(p, out) for p in control], without_rendering + _without_examples(records, "control")
        ),
        Section("Learning curves", [_figure(p, out) for p in learning], []),
    ]


def _comparison(compared: Compared, out: Path) -> Section:
    figures = [_figure(picture, out) for picture in comparison_figures.pictures(compared)]
    notes = [comparisons.explanation(compared), f"Measured with {words.machine(compared.environment)}."]
    title = f"Comparison: {compared.label}"
    return Section(title, figures, notes, comparisons.table(compared), comparisons.headline(compared))


def _counted(runs: int, compared: int) -> list[str]:
    """How much of each there is on the page."""
    numbers = ((runs, "run"), (compared, "comparison"))
    return [words.counted(count, what) for count, what in numbers if count]


def _without_examples(records: Sequence[RunRecord], kind: str) -> list[str]:
    """A sentence where runs have no checkpoint to draw examples with."""
    labels = [record.label for record in records if record.kind == kind and record.checkpoint is None]
    return [f"No examples are drawn for {', '.join(labels)}: no checkpoint is in the folder."] if labels else []


def _figure(picture: Picture, out: Path) -> Figure:
    """The picture in every look; the wide ones are written as files too."""
    images = {}
    for look in LOOKS:
        png = picture.png(look)
        images[look] = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        if not look.narrow:
            suffix = "-dark" if look.dark else ""
            write_atomically(out / "figures" / f"{_file_name(picture.name)}{suffix}.png", png)
    return Figure(
        picture,
        wide=images[Look()],
        wide_dark=images[Look(dark=True)],
        narrow=images[Look(narrow=True)],
        narrow_dark=images[Look(dark=True, narrow=True)],
    )


def _file_name(text: str) -> str:
    """`text` with everything but letters, digits, dots, dashes and underlines made a dash.

    >>> _file_name("error per step: ../x (2)")
    'error-per-step-..-x-2'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")


def _template():
    loader = PackageLoader("headstart", "report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html")
