"""Points of a curve: CSV files with a column x, and for a support set a column y."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headstart.inputs.base import InputError, Inputs, Rows, Support, is_number
from headstart.types import Batch


@dataclass(frozen=True)
class PointInputs(Inputs):
    """Points, `[examples, 1]` each of x and y."""

    def support(self, path: Path) -> Support:
        """The points of a CSV file with columns x and y."""
        rows = _rows(path, ("x", "y"))
        return Support(Batch(torch.tensor([row[:1] for row in rows]), torch.tensor([row[1:] for row in rows])))

    def rows(self, path: Path) -> Rows:
        """The x of a CSV file."""
        inputs = torch.tensor([[row[0]] for row in _rows(path, ("x",))])
        return Rows(inputs, [{"x": x} for (x,) in inputs.tolist()])

    def blank(self, count: int) -> Tensor:
        """Points at 0."""
        return torch.zeros(count, 1)


def _rows(file: Path, names: tuple[str, ...]) -> list[list[float]]:
    """The columns `names` of a CSV file, found by its header; without a header, its first columns."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            lines = [(number, line) for number, line in enumerate(csv.reader(handle), 1) if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {file} as CSV: {error}.") from error
    columns = list(range(len(names)))
    if lines and not any(map(is_number, lines[0][1])):
        header = [cell.strip().lower() for cell in lines[0][1]]
        missing = [name for name in names if name not in header]
        if missing:
            raise InputError(f"{file} has columns {', '.join(header)}, but no {' and no '.join(missing)}.")
        columns, lines = [header.index(name) for name in names], lines[1:]
    rows = []
    for number, line in lines:
        cells = [line[column] if column < len(line) else "" for column in columns]
        if not all(map(is_number, cells)):
            raise InputError(f"{file}, line {number}: {' and '.join(names)} must be finite numbers, got {cells}.")
        rows.append([float(cell) for cell in cells])
    if not rows:
        raise InputError(f"{file} holds no rows: expected {' and '.join(names)}, a row for each example.")
    return rows
