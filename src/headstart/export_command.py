"""The command `headstart export`: a run's adaptation, or an adapted model, as a file that runs without this package."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from headstart import adapted
from headstart.recipes import work
from headstart.training.run import Run
from headstart.usage import UsageError, flag

Flag = tyro.conf.FlagCreatePairsOff[bool]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """Export a run's adaptation itself, or an adapted model, as ONNX or for torch.export."""

    source: Annotated[Path, tyro.conf.Positional]
    """Folder of a run (support set and queries in, outputs before and after each step out) or of an adapted model."""
    out: Path
    """File to write, .onnx or .pt2; beside it one with .json after its name says what goes in and comes out."""
    steps: int | None = None
    """Of a run: gradient steps; as many as the recipe evaluates with unless given."""
    ways: int | None = None
    """Of a run: classes; the recipe's unless given. Only learners that make a head for each task take others."""
    shots: int | None = None
    """Of a run: fix the support set to this many examples (per class); any number unless given."""
    queries: int | None = None
    """Of a run: fix the number of queries; any number unless given."""
    checkpoint: work.Checkpoint | None = None
    """Of a run: best on validation tasks, which is what is taken unless given, or the last."""
    data: Path | None = None
    """Folder of data sets, for recipes that tune their step size; HEADSTART_DATA unless given."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Export and say what was written."""
        from headstart import export  # PyTorch's exporter takes a second to import

        self._check()
        try:
            export.check(self.out)
            if (self.source / "adapted.json").exists():
                made = export.of_adapted(adapted.load(self.source))
            else:
                made = export.of_run(
                    self._trained(), steps=self.steps, ways=self.ways, shots=self.shots, queries=self.queries
                )
            path, described = export.write(self.out, *made)
        except export.ArgumentError as error:
            raise UsageError(str(error)) from error
        about = made[1]
        takes = ", ".join(f"{each['name']} {_shape(each['shape'])}" for each in about["inputs"])
        gives = ", ".join(f"{each['name']} {_shape(each['shape'])}" for each in about["outputs"])
        print(f"{path} ({path.stat().st_size / 1000:.0f} kB): {takes} -> {gives}. Described in {described}.")
        return 0

    def _check(self) -> None:
        """What is asked for must be possible, and mean something."""
        if (self.source / "adapted.json").exists():
            names = ("steps", "ways", "shots", "queries", "checkpoint", "data")
            given = [flag(name) for name in names if getattr(self, name) is not None]
            if given:
                raise UsageError(f"{', '.join(given)}: {self.source} is adapted already. Leave it out, or give a run.")
        elif not Run(self.source).exists:
            raise UsageError(
                f"{self.source} holds neither a run nor an adapted model: give a folder that `headstart train` or "
                "`headstart adapt` wrote."
            )
        for name, fewest in (("ways", 2), ("shots", 1), ("queries", 1)):
            value = getattr(self, name)
            if value is not None and value < fewest:
                raise UsageError(f"{flag(name)} must be at least {fewest}, got {value}.")
        if self.steps is not None and self.steps < 0:
            raise UsageError(f"--steps must be 0 or more, got {self.steps}.")

    def _trained(self) -> adapted.Trained:
        return adapted.load_run(
            Run(self.source), checkpoint=self.checkpoint or "best", steps=self.steps, data=self.data
        )


def _shape(shape: list[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
