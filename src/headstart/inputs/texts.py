"""Texts: CSV files with a column text, and for a support set a column label; or a plain file, a text per line."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from headstart.inputs.base import InputError, Inputs, Rows, Support
from headstart.tasks.texts import Encode, by_label, read_columns
from headstart.types import Batch


@dataclass(frozen=True)
class TextInputs(Inputs):
    """Texts as int64 `[examples, length]`.

    Args:
        encode: From texts to integers, as in training.
    """

    encode: Encode

    def support(self, path: Path) -> Support:
        """The texts of a CSV file with columns text and label; the labels are the classes, sorted."""
        texts = by_label(_columns(path, ("text", "label")))
        if len(texts) < 2:
            raise InputError(f"{path} has texts of one label only, {next(iter(texts))!r}: give texts of 2 or more.")
        labels = torch.arange(len(texts)).repeat_interleave(torch.tensor([len(group) for group in texts.values()]))
        encoded = self.encode([text for group in texts.values() for text in group])
        return Support(Batch(encoded, labels), tuple(texts), _notes(texts))

    def rows(self, path: Path) -> Rows:
        """The column text of a CSV file, or the lines of a .txt file that are not blank."""
        lines = path.suffix.lower() == ".txt"
        texts = _lines(path) if lines else [text for (text,) in _columns(path, ("text",))]
        return Rows(self.encode(texts), [{"text": text} for text in texts])

    def blank(self, count: int) -> Tensor:
        """Texts of one word."""
        return self.encode(["word"] * count)


def _columns(path: Path, names: tuple[str, ...]) -> list[list[str]]:
    try:
        return read_columns(path, names)
    except ValueError as error:
        raise InputError(str(error)) from error


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path} as text: {error}.") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"{path} holds no text: give one on each line.")
    return texts


def _notes(texts: dict[str, list[str]]) -> tuple[str, ...]:
    """A sentence about texts that have several labels, if there are any."""
    groups = [set(group) for group in texts.values()]
    shared = sorted(text for text in set().union(*groups) if sum(text in group for group in groups) > 1)
    if not shared:
        return ()
    return (f"{len(shared)} texts of the support set have more than one label, the first of them {shared[0]!r}.",)
