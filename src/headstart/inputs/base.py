"""What every kind of input offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from headstart.types import Batch


class InputError(ValueError):
    """A file or folder given to adapt on, or to predict, cannot be used; the message says why."""


class Support(NamedTuple):
    """A support set read from files.

    Attributes:
        batch: Inputs and targets, `[examples, ...]`.
        classes: Names of the classes, by label; empty in regression.
        notes: What looks wrong with it and yet does not stop adaptation, a sentence each.
    """

    batch: Batch
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Rows(NamedTuple):
    """What is to be predicted, read from one file.

    Attributes:
        inputs: As the model takes them, `[rows, ...]`.
        names: What tells the rows of the file apart in the answer, a dict of JSON values for each.
    """

    inputs: Any
    names: list[dict[str, Any]]


class Unit(NamedTuple):
    """The unit of a regression's target, where the model is trained on `(target - mean) / scale`.

    Attributes:
        mean: Of the training targets.
        scale: Their deviation.
    """

    mean: float
    scale: float

    def standardised(self, targets: Tensor) -> Tensor:
        """What the model learns from, float64, which keeps small deviations of a large mean."""
        mean, scale = self._tensors(targets)
        return (targets.double() - mean) / scale

    def restored(self, outputs: Tensor) -> Tensor:
        """The model's outputs in the target's unit, float64."""
        mean, scale = self._tensors(outputs)
        return outputs.double() * scale + mean

    def _tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Both as float64 constants: PyTorch's ONNX exporter would write plain numbers in single precision."""
        mean, scale = (torch.tensor(each, dtype=torch.float64, device=like.device) for each in self)
        return mean, scale


class Inputs(ABC):
    """One kind of input: how files of it are read, and how outputs become an answer."""

    several: ClassVar[bool] = True
    """Whether a file holds several rows: an image is one, a CSV file many."""

    @property
    def unit(self) -> Unit | None:
        """The unit of the target, where the model's own is another; None where it is not, and with classes."""
        return None

    @abstractmethod
    def support(self, path: Path) -> Support:
        """The support set at `path`.

        Raises:
            InputError: It cannot be used.
        """

    @abstractmethod
    def rows(self, path: Path) -> Rows:
        """What is to be predicted at `path`.

        Raises:
            InputError: It cannot be used.
        """

    def blank(self, count: int) -> Any:
        """`count` examples of nothing, as the model takes them: their shapes are what export needs.

        Raises:
            InputError: They have no fixed shape.
        """
        raise InputError(f"{type(self).__name__} have no fixed shape, which an exported model needs.")

    def rows_of(self, records: Sequence[Mapping[str, Any]]) -> Rows:
        """What is to be predicted, from JSON objects, one for each row.

        Raises:
            InputError: Such inputs are none.
        """
        raise InputError(f"{type(self).__name__} are read from files: give a path.")

    def answers(self, outputs: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
        """What the model's outputs `[rows, outputs]` say of each row, as JSON values.

        With classes: `class`, its `probability`, and all `probabilities`; outputs beyond the classes belong to none.
        Without: `y`, in the target's unit.

        Raises:
            InputError: An output is not a finite number.
        """
        if not bool(outputs.isfinite().all()):
            raise InputError("The model's outputs are not finite: adapt it with fewer steps, or on other examples.")
        if not classes:
            values = outputs if self.unit is None else self.unit.restored(outputs)
            return [{"y": value} for value in values[:, 0].tolist()]
        if outputs.shape[1] < len(classes):
            raise InputError(
                f"The model has {outputs.shape[1]} outputs for {len(classes)} classes: adapted.json was changed. Adapt "
                "again."
            )
        found = []
        for row in outputs[:, : len(classes)].softmax(-1).tolist():
            best = max(range(len(row)), key=row.__getitem__)
            named = dict(zip(classes, row, strict=True))
            found.append({"class": classes[best], "probability": row[best], "probabilities": named})
        return found


def is_number(text: str) -> bool:
    """Whether `text` is a finite number, in single precision too."""
    try:
        return abs(float(text)) <= torch.finfo(torch.float32).max
    except ValueError:
        return False
