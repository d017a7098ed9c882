"""The command lines that made a run and its evaluations, from what their files say."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headstart.report.records import Result, RunRecord, changed_settings, is_smoke, usual_conditions


def train_command(record: RunRecord) -> str:
    """The command that trains such a run."""
    words = ["headstart", "train", record.recipe]
    if is_smoke(record):
        words.append("--smoke")
    else:
        for name, value in changed_settings(record).items():
            words += _option(name, value)
    path = _folder(record)
    return shlex.join(words if path == f"runs/{record.recipe}" else [*words, "--out", path])


def evaluate_command(record: RunRecord, result: Result | None = None) -> str:
    """The command that makes such an evaluation; without one, that of the recipe's own protocol."""
    words = ["headstart", "evaluate", _folder(record)]
    if result is None:
        return shlex.join(words)
    usual = usual_conditions(record)
    told = {**result._asdict(), **result.conditions, "steps": result.steps}
    if not result.sampled:  # the data set's own tasks: their sizes are not for choosing
        told |= {name: usual[name] for name in ("num_tasks", "shots", "queries", "seed")}
    for name, value in usual.items():
        if told.get(name, value) != value:  # what an evaluation does not name is as usual
            words += _option(name, told[name])
    return shlex.join(words)


def commands(records: Iterable[RunRecord], results: Iterable[tuple[RunRecord, Result]] = ()) -> tuple[str, ...]:
    """Training commands of `records`, then the evaluation commands of `results`, each once."""
    lines = [train_command(record) for record in records]
    lines += [evaluate_command(record, result) for record, result in results]
    return tuple(dict.fromkeys(lines))


def _folder(record: RunRecord) -> str:
    """The run's folder; where only its results were kept, the folder it is trained into by default."""
    return str(record.run.path if record.checkpoint else Path("runs") / record.run.path.name)


def _option(name: str, value: Any) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"--{flag}", *(str(v) for v in values)]
