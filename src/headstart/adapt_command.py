"""The commands `headstart adapt` and `headstart predict`."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from headstart import adapted, terminal
from headstart.inputs import InputError
from headstart.recipes import work
from headstart.training.run import Run
from headstart.usage import UsageError

Flag = tyro.conf.FlagCreatePairsOff[bool]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Adapt:
    """Adapt a run's model to your own examples, and keep the adapted model."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    support: Path
    """Your examples: for images a folder with one sub-folder per class, for tables and texts a CSV file with the target
    or label in it, for curves one with columns x and y."""
    out: Path
    """Folder for the adapted model."""
    steps: int | None = None
    """Gradient steps; as many as the recipe evaluates with unless given."""
    checkpoint: work.Checkpoint = "best"
    """Best on validation tasks, or the last."""
    data: Path | None = None
    """Folder of data sets, for recipes that tune their step size; HEADSTART_DATA unless given."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Adapt and save."""
        if self.steps is not None and self.steps < 0:
            raise UsageError(f"--steps must be 0 or more, got {self.steps}.")
        model, notes = adapted.adapt_run(
            Run(self.run_folder), self.support, steps=self.steps, checkpoint=self.checkpoint, data=self.data
        )
        for note in notes:
            _log.warning("%s", note)
        model.save(self.out)
        told = f" of {len(model.classes)} classes ({', '.join(model.classes)})" if model.classes else ""
        print(f"Adapted in {model.about['steps']} steps to {model.about['examples']} examples{told}: {self.out}")
        return 0


@dataclass(frozen=True)
class Predict:
    """Predict files with an adapted model: images, tables, texts, or points."""

    adapted_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="ADAPTED")]
    """Folder that `headstart adapt` wrote."""
    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files to predict: images, or CSV files whose every row is predicted."""
    json: Flag = False
    """Print one JSON array, an object per row; an image file is one row."""
    csv: Flag = False
    """Print CSV, with a column for each probability."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Predict each file by itself; one that cannot be read does not stop the others."""
        if not self.files:
            raise UsageError("Give at least one file to predict.")
        if self.json and self.csv:
            raise UsageError("--json and --csv are two forms of the same: give one.")
        model = adapted.load(self.adapted_folder)
        results: list[dict[str, Any]] = []
        for file in self.files:
            try:
                rows = model.predict(file)
                results += [{"file": str(file), **row} for row in rows]
                for note in dict.fromkeys(row["note"] for row in rows if "note" in row):
                    _log.warning("%s: %s", file, note)
            except InputError as error:
                results.append({"file": str(file), "error": str(error)})
                _log.error("%s", error)
        if self.json:
            print(json.dumps(results, indent=2, allow_nan=False))
        else:
            print(terminal.predictions_csv(results) if self.csv else terminal.predictions_text(results), end="")
        return 1 if any("error" in result for result in results) else 0
