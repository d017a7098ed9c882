"""Texts as integers without a vocabulary, and N-way K-shot tasks of them.

A text becomes a row of hashed features, padded with 0: each of its words, and each run of three characters of a word.
A hash (CRC-32, modulo the number of buckets) needs no file beside the model, and
is the same in every process and on every platform; two features may share a bucket, which training lives with.
"""

import csv
import logging
import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from headstart.tasks.folder import told
from headstart.types import Batch, Task, TaskSource

Encode = Callable[[Sequence[str]], Tensor]
"""From texts to int64 `[texts, length]`, 0 where a text has ended."""

_GRAM = 3  # characters
_WORD = re.compile(r"\w+|[^\w\s]")

_log = logging.getLogger(__name__)


def hashed(texts: Sequence[str], buckets: int, length: int) -> Tensor:
    """Each text's features as integers from 1 to `buckets` - 1, and 0 behind the last: int64 [texts, length].

    Features follow the words, so that of a text with too many the end is cut off.

    >>> hashed(["Pay my bill"], buckets=1000, length=14).tolist()
    [[345, 622, 734, 276, 705, 419, 213, 708, 144, 937, 236, 108, 0, 0]]

    Args:
        texts: Any language; upper and lower case are the same.
        buckets: 2 or more.
        length: Features kept of each text.
    """
    rows = torch.zeros(len(texts), length, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        found = [1 + code % (buckets - 1) for code in _codes(text)[:length]]
        row[: len(found)] = torch.tensor(found, dtype=torch.int64)
    return rows


def _codes(text: str) -> list[int]:
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [code for word in words for code in _word_codes(word)]


@lru_cache(maxsize=1 << 16)
def _word_codes(word: str) -> tuple[int, ...]:
    """The word, and its runs of characters; those begin with a sign, so that none is taken for a word."""
    framed = f"<{word}>"
    runs = [f"#{framed[start : start + _GRAM]}" for start in range(len(framed) - _GRAM + 1)]
    return tuple(zlib.crc32(feature.encode()) for feature in (word, *runs))


@dataclass(frozen=True, eq=False)
class TextStore:
    """Encoded texts by class, which may have different numbers of them.

    Raises:
        ValueError: If the counts do not add up to the texts, or there is not one distinct name per class.
    """

    tokens: Tensor
    """int64 [texts, length], class after class."""

    counts: tuple[int, ...]
    """Texts of each class."""

    names: tuple[str, ...]
    """One name per class."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or sum(self.counts) != len(self.tokens):
            raise ValueError(f"tokens {list(self.tokens.shape)}: give one row for each of {sum(self.counts)} texts")
        if not len(set(self.names)) == len(self.names) == len(self.counts):
            raise ValueError(f"{len(self.names)} names for {len(self.counts)} classes: give each class one of its own")

    @classmethod
    def of(cls, texts: Mapping[str, Sequence[str]], encode: Encode) -> "TextStore":
        """A store of texts by class."""
        tokens = encode([text for group in texts.values() for text in group])
        return cls(tokens, tuple(len(group) for group in texts.values()), tuple(texts))


@dataclass(frozen=True)
class TextEpisodes(TaskSource):
    """Tasks of `ways` classes with `shots` support and `queries` query texts of each.

    In a task no class occurs twice, no text is in both sets, and which class gets which label is random.

    Raises:
        ValueError: If the store has too few classes, or a class too few texts.

    >>> store = TextStore(torch.ones(12, 8, dtype=torch.int64), (3, 4, 5), ("a", "b", "c"))
    >>> tasks = TextEpisodes(store, ways=2, shots=1, queries=2).sample(4, torch.Generator().manual_seed(0))
    >>> tasks.support.inputs.shape, tasks.query.targets.shape
    (torch.Size([4, 2, 8]), torch.Size([4, 4]))
    """

    store: TextStore
    """Where classes and texts are drawn from."""

    ways: int
    """Classes per task."""

    shots: int
    """Support texts per class."""

    queries: int
    """Query texts per class."""

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "queries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give at least 1")
        counts, needed = self.store.counts, self.shots + self.queries
        if self.ways > len(counts):
            raise ValueError(
                f"ways={self.ways} but there are {len(counts)} classes of texts: lower ways or add classes"
            )
        if needed > min(counts):
            name = self.store.names[counts.index(min(counts))]
            raise ValueError(
                f"shots={self.shots} and queries={self.queries} need {needed} different texts per class but {name!r} "
                f"has {min(counts)}: lower one of them or add texts"
            )

    def sample(self, size: int, generator: torch.Generator) -> Task:
        """A meta-batch of `size` tasks; within a task, texts are ordered by label.

        Returns:
            Inputs int64 [size, ways * shots, length] and targets int64 [size, ways * shots] for the support,
            `queries` in place of `shots` for the query; on the generator's device.
        """
        if size < 1:
            raise ValueError(f"size={size}: a meta-batch holds at least 1 task")
        counts = torch.tensor(self.store.counts, device=generator.device)
        drawn = torch.rand(size, len(counts), generator=generator, device=generator.device)
        classes = drawn.topk(self.ways).indices
        most = max(self.store.counts)
        order = torch.rand(size, self.ways, most, generator=generator, device=generator.device)
        there = torch.arange(most, device=generator.device) < counts[classes][..., None]
        examples = order.where(there, -1.0).topk(self.shots + self.queries).indices
        rows = (counts.cumsum(0) - counts)[classes][..., None] + examples
        return Task(self._batch(rows[..., : self.shots]), self._batch(rows[..., self.shots :]))

    def _batch(self, rows: Tensor) -> Batch:
        size, ways, count = rows.shape
        tokens = self.store.tokens[rows.flatten().to(self.store.tokens.device)].to(rows.device)
        targets = torch.arange(ways, device=rows.device).repeat_interleave(count).expand(size, -1)
        return Batch(tokens.reshape(size, ways * count, -1), targets.contiguous())


def read_columns(file: Path, names: Sequence[str]) -> list[list[str]]:
    """The columns `names` of a CSV file with a header, a list for each row; cells are stripped, blank lines left out.

    Raises:
        ValueError: The file cannot be read, a column is missing, a cell is empty, or there are no rows.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle)
            lines = [(reader.line_num, line) for line in reader if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"Cannot read {file} as CSV: {error}.") from error
    header = [cell.strip().lower() for cell in lines[0][1]] if lines else []
    missing = [name for name in names if name not in header]
    if missing:
        told = f"has the columns {', '.join(header)}" if header else "is empty"
        raise ValueError(f"{file} {told}: its first line must name the columns {' and '.join(names)}.")
    columns = [header.index(name) for name in names]
    rows = []
    for number, line in lines[1:]:
        row = [line[column].strip() if column < len(line) else "" for column in columns]
        if not all(row):
            raise ValueError(
                f"{file}, line {number}: {names[row.index('')]} is empty; fill it in or leave the row out."
            )
        rows.append(row)
    if not rows:
        raise ValueError(f"{file} has no rows: give {' and '.join(names)} of each example below the header.")
    return rows


def by_label(rows: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Texts by label, sorted by label, from rows of a text and its label; a text that a class has twice counts once."""
    found: dict[str, dict[str, None]] = {}
    for text, label in rows:
        found.setdefault(label, {})[text] = None
    return {label: list(found[label]) for label in sorted(found)}


def with_enough(texts: Mapping[str, list[str]], examples: int) -> dict[str, list[str]]:
    """The labels that have at least so many texts, with them; the other labels are named in a warning."""
    found = {label: group for label, group in texts.items() if len(group) >= examples}
    if len(found) < len(texts):
        small = [f"{label} ({len(group)})" for label, group in texts.items() if label not in found]
        _log.warning(
            "%d of %d labels are left out, for they have fewer than the %d texts that a task takes of each: %s.",
            *(len(small), len(texts), examples, told(small)),
        )
    return found
