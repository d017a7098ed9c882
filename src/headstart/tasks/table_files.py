"""Reading tables: CSV, Parquet or records, all as columns of text, so that one rule says what a value is in each.

What is missing is None: an empty cell, or one of `MISSING`.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import polars as pl

MISSING = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?")
"""Cells that hold nothing."""

_PARQUET = b"PAR1"
_SEPARATORS = ",;\t"
_MARKED_NUMBER = r"^[-+]?[\d.]*,?\d+([eE][-+]?\d+)?$"
"""A number, whatever its commas and points mean."""


class Table(NamedTuple):
    """Columns of text, and which row of its file each row is, the first below the header being 1."""

    frame: "pl.DataFrame"
    rows: np.ndarray

    def keep(self, wanted: np.ndarray) -> "Table":
        """The table of the rows that are True in `wanted`."""
        return Table(self.frame.filter(_polars().Series(wanted)), self.rows[wanted])

    def check_columns(self, names: Sequence[str], what: str) -> None:
        """See that these columns are there.

        Raises:
            ValueError: One is not; the message names those that are.
        """
        missing = [name for name in names if name not in self.frame.columns]
        if missing:
            raise ValueError(f"{what} has no column {', '.join(missing)}: its columns are {_told(self.frame.columns)}.")


def read_table(path: Path) -> Table:
    """The table in a CSV file (separated by commas, semicolons or tabs) or in a Parquet file; blank rows are left out.

    Where something else separates the values, commas in numbers are read as decimal points.

    Raises:
        ValueError: There is no such file, or it holds no table.
        ImportError: The extra `table` is not installed.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give one CSV or Parquet file.")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {path}.") from error
    except OSError as error:
        raise ValueError(f"Cannot read {path}: {error}.") from error
    if not content.strip():
        raise ValueError(f"{path} is empty: expected a header and a row for each example.")
    pl = _polars()
    parquet = content.startswith(_PARQUET) or path.suffix.lower() in (".parquet", ".pq")
    try:
        frame = pl.read_parquet(io.BytesIO(content)) if parquet else _csv(content, path)
        frame = _as_text(frame if parquet else _with_points(frame, path))
    except (pl.exceptions.PolarsError, UnicodeDecodeError, csv.Error) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        kind = "Parquet" if parquet else "CSV"
        raise ValueError(f"Cannot read {path} as {kind}: it is damaged, or something else ({reason}).") from error
    if not len(frame):
        raise ValueError(f"{path} has a header and no rows: expected a row for each example.")
    return _without_blank_rows(frame, str(path))


def from_records(records: Sequence[Mapping[str, Any]]) -> Table:
    """The table of some JSON objects, one for each row; a name that one of them lacks is missing there.

    Raises:
        ValueError: There is none, or a value is neither text nor number nor missing.
    """
    if not records:
        raise ValueError("There are no rows: give one object or more, with a value for each column.")
    names = list(dict.fromkeys(name for record in records for name in record))
    columns: dict[str, list[str | None]] = {name: [] for name in names}
    for number, record in enumerate(records, 1):
        for name in names:
            value = record.get(name)
            if not isinstance(value, (str, int, float, type(None))):
                raise ValueError(f"Row {number}: {name} is a {type(value).__name__}: give a number, a text, or null.")
            columns[name].append(None if value is None else str(value))
    pl = _polars()
    return _without_blank_rows(_as_text(pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String))), "The input")


def as_numbers(column: "pl.Series") -> np.ndarray:
    """A column of text as float64; NaN where there is no number. Infinity is a number."""
    return column.cast(_polars().Float64, strict=False).to_numpy().astype(np.float64)


def as_seconds(column: "pl.Series") -> np.ndarray:
    """A column of text as seconds since 1970, float64; NaN where there is no date in ISO 8601."""
    return np.array([_seconds(text) for text in column], np.float64)


def is_dates(column: "pl.Series") -> bool:
    """Whether most values of a column are dates."""
    values = as_seconds(column.drop_nulls())
    return len(values) > 0 and bool(np.isnan(values).mean() < 0.5)


def numbers_of(table: Table, name: str, dates: bool | None, what: str, remedy: str = "") -> np.ndarray:
    """A column as finite numbers, or dates as seconds, float64, NaN where missing; if `dates` is None, what most are.

    Raises:
        ValueError: Another value is in it; the message ends with `remedy`.
    """
    column = table.frame[name]
    values = as_seconds(column) if dates or (dates is None and is_dates(column)) else as_numbers(column)
    wrong = np.flatnonzero((np.isnan(values) & column.is_not_null().to_numpy()) | np.isinf(values))
    if len(wrong):
        date, number = "dates as in 2024-01-31T12:00", "finite numbers"
        told = f"{number}, or {date}" if dates is None else date if dates else number
        row, text = table.rows[wrong[0]], column[int(wrong[0])]
        raise ValueError(f"{what}, row {row}: {name} is {text!r}; its values must be {told}{remedy}.")
    return values


def times_of(table: Table, name: str, what: str) -> np.ndarray:
    """The time of each row, float64: a number, or the seconds of a date.

    Raises:
        ValueError: One is missing, or neither.
    """
    if table.frame[name].has_nulls():
        row = table.rows[int(table.frame[name].is_null().arg_max() or 0)]
        raise ValueError(f"{what}, row {row}: {name} is missing, by which rows are ordered.")
    return numbers_of(table, name, None, what)


def with_values(table: Table, columns: Sequence[str], what: str) -> Table:
    """The rows that have a value in each of `columns`.

    Raises:
        ValueError: No row has.
    """
    for name in columns:
        missing = table.frame[name].is_null().to_numpy()
        if missing.all():
            raise ValueError(f"{what}: {name} is missing in every row.")
        table = table.keep(~missing)
    return table


def _seconds(text: str | None) -> float:
    if text is None or len(text) < len("2024-01-31") or text[4] != "-":
        return math.nan
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return math.nan
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _csv(content: bytes, path: Path) -> "pl.DataFrame":
    if b"\0" in content:
        raise ValueError(f"{path} is no text: give a CSV or a Parquet file.")
    if b"\n" not in content:
        content = content.replace(b"\r", b"\n")  # lines of an old Mac
    separator, names = _header(content.decode("utf-8-sig"))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has more than one column {_told(twice)}: give each a name of its own.")
    frame = _polars().read_csv(io.BytesIO(content), infer_schema=False, separator=separator)
    if len(frame.columns) != len(names):
        raise ValueError(f"{path} has a header that cannot be read: write the names of its columns in one line.")
    return frame.rename(dict(zip(frame.columns, names, strict=True)))


def _header(text: str) -> tuple[str, list[str]]:
    """What separates the values, and the columns' names.

    It is what parts the first two lines alike and in most pieces, so a comma in a name or number is no separator.
    """

    def lines(separator: str) -> list[list[str]]:
        return list(islice(filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=separator)), 2))

    def pieces(separator: str) -> tuple[bool, int]:
        found = lines(separator)
        return len({len(line) for line in found}) == 1, len(found[0])

    separator = max(_SEPARATORS, key=lambda each: pieces(each) if pieces(each)[1] > 1 else (False, 1))
    return separator, [name.strip() for name in lines(separator)[0]]


def _with_points(frame: "pl.DataFrame", path: Path) -> "pl.DataFrame":
    """Columns of numbers with decimal commas, with points.

    Raises:
        ValueError: A column has both: the point may be one of thousands.
    """
    for name in frame.columns:
        column = frame[name].str.strip_chars()
        numbers = column.str.contains(_MARKED_NUMBER).fill_null(False)
        commas = numbers & column.str.contains(",", literal=True)
        known = (column.is_not_null() & ~column.is_in(MISSING)).sum()
        if not commas.any() or numbers.sum() <= known / 2:
            continue
        points = numbers & column.str.contains(".", literal=True)
        if points.any():
            row = int(points.arg_max() or 0)
            raise ValueError(
                f"{path}, row {row + 1}: {name} is {column[row]!r}, and commas are decimal points here, as in "
                f"{column.filter(commas)[0]!r}: write its numbers without points, or all of them without commas."
            )
        frame = frame.with_columns(column.str.replace(",", ".", literal=True).zip_with(commas, column).alias(name))
    return frame


def _as_text(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Every column as text: whole numbers without a fraction, true and false in small letters, missing values as None.

    Nested columns are dropped.
    """
    pl = _polars()
    flat = frame.select([name for name, kind in frame.schema.items() if not kind.is_nested()])
    text = pl.all().cast(pl.String).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "$1")
    small = pl.all().str.to_lowercase()
    alike = flat.select(text).with_columns(pl.when(small.is_in(["true", "false"])).then(small).otherwise(pl.all()))
    return alike.with_columns(pl.when(~pl.all().is_in(MISSING)).then(pl.all()))


def _without_blank_rows(frame: "pl.DataFrame", what: str) -> Table:
    pl = _polars()
    table = Table(frame, np.arange(1, len(frame) + 1))
    table = table.keep(frame.select(pl.any_horizontal(pl.all().is_not_null())).to_series().to_numpy())
    if not len(table.rows):
        raise ValueError(f"{what} has no row with a value in it.")
    return table


def _told(names: Sequence[str], most: int = 20) -> str:
    """Names as a list in words, not all of them if there are very many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _polars() -> Any:
    """The library that reads tables, which is an extra: imported where it is used."""
    try:
        import polars
    except ImportError as error:
        raise ImportError("Tables are read by polars, which is an extra: pip install 'headstart[table]'.") from error
    return polars
