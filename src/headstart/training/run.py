"""A run folder: plain files that say what was trained, how it went, and where it stands.

config.json         the recipe and every setting
environment.json    versions and machine
metrics.jsonl       one JSON object a line, training and validation
checkpoints/        last, best: parameters (.safetensors) and facts (.json); the state to resume from
.lock               held by the process that trains
evaluations/        one JSON file for each way the run was evaluated
"""

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from headstart.training.checkpoint import RESUME
from headstart.training.files import FileError, read_json, write_atomically, write_json


@dataclass(frozen=True)
class Run:
    """The folder of one training run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def exists(self) -> bool:
        """Whether a run was started here."""
        return (self.path / "config.json").exists()

    @property
    def resumable(self) -> bool:
        """Whether there is a state to resume from."""
        return (self.checkpoints / RESUME).exists()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from working in this folder; the lock goes with the process, however it ends.

        Raises:
            FileError: Another process is at it.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise FileError(
                f"Another process is working in {self.path}: wait for it, stop it, or choose another --out."
            ) from error
        except OSError as error:
            raise FileError(f"Cannot write {self.path / '.lock'}: {error.strerror}.") from error
        try:
            yield
        finally:
            lock.release()

    def start(self, config: dict[str, Any]) -> None:
        """Write what is trained and on what machine."""
        write_json(self.path / "config.json", config)
        write_json(self.path / "environment.json", environment())

    def config(self) -> dict[str, Any]:
        """The recipe's name and settings.

        Raises:
            FileError: This is no run folder.
        """
        if not self.exists:
            raise FileError(
                f"{self.path} is not a run folder: it has no config.json. Give a folder that `headstart train` wrote."
            )
        return read_json(self.path / "config.json")

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise FileError(f"Cannot write {self.path / 'metrics.jsonl'}: {error.strerror}.") from error

    def metrics(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, all or those of one kind (`"train"` or `"validation"`).

        A last line that a kill cut short is left out.
        """
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = []
        for number, line in enumerate(lines):
            try:
                records.append(json.loads(line))
            except ValueError as error:
                if number != len(lines) - 1:
                    raise FileError(f"{path}, line {number + 1} is not JSON.") from error
        return [record for record in records if kind is None or record["kind"] == kind]

    def rewind(self, iteration: int) -> None:
        """Drop what `metrics.jsonl` says of iterations after `iteration`: they will be done again."""
        kept = [record for record in self.metrics() if record["iteration"] <= iteration]
        write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept).encode())


def environment() -> dict[str, Any]:
    """Versions and machine, to be kept with numbers measured there."""
    cuda = torch.cuda.is_available()
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def _processor() -> str:
    """The processor's name; on Linux Python does not know it, the kernel does."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
