"""An adapted model as a folder: made from a run and a support set, loaded again, and put to use on files.

    adapted.json         the run's recipe, class names, how it was adapted
    model.safetensors    the adapted model's parameters and batch-norm statistics

Batch norm uses the support set's statistics, whatever it was trained with: what is predicted for one file
must not depend on which others are predicted with it.
"""

import csv
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.names import put
from headstart.recipes import CharacterRecipe, SinusoidRecipe, SupervisedRecipe, restore
from headstart.recipes.characters import SIZE
from headstart.recipes.learners import ANY_WAYS
from headstart.recipes.work import Checkpoint, trained
from headstart.tasks.images import read_image
from headstart.training.files import FileError, read_json, read_tensors, write_json, write_tensors
from headstart.training.run import Run
from headstart.types import Batch


class InputError(ValueError):
    """A file or folder given to adapt on, or to predict, cannot be used; the message says why."""


@dataclass(frozen=True)
class Adapted:
    """A model adapted to one task.

    Attributes:
        model: The adapted network, in evaluation mode.
        recipe: What it was meta-trained by.
        classes: Names of the classes, in the order of the outputs; empty for regression.
        about: How it was adapted.
    """

    model: nn.Module
    recipe: SupervisedRecipe
    classes: tuple[str, ...]
    about: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the folder that `load` reads."""
        write_tensors(folder / "model.safetensors", self.model.state_dict(), {})
        description = {"kind": self.recipe.kind, "settings": asdict(self.recipe), "classes": self.classes, **self.about}
        write_json(folder / "adapted.json", description)

    @torch.no_grad()
    def predict(self, file: Path) -> dict[str, Any]:
        """What the model says of one file, as JSON values.

        An image gives `class`, `probability` and all `probabilities`; a CSV file with a column x gives
        `predictions`, one `{"x", "y"}` per row.

        Raises:
            InputError: The file is missing or damaged.
        """
        if isinstance(self.recipe, CharacterRecipe):
            scores = self.model(_image(file).unsqueeze(0))[0, : len(self.classes)]
            probabilities = scores.softmax(-1).tolist()
            best = max(range(len(probabilities)), key=probabilities.__getitem__)
            named = dict(zip(self.classes, probabilities, strict=True))
            return {"class": self.classes[best], "probability": probabilities[best], "probabilities": named}
        inputs = torch.tensor([[row[0]] for row in _rows(file, ("x",))])
        outputs = self.model(inputs)
        return {"predictions": [{"x": x, "y": y} for (x,), (y,) in zip(inputs.tolist(), outputs.tolist(), strict=True)]}


def adapt_run(
    run: Run, support: Path, *, steps: int | None = None, checkpoint: Checkpoint = "best", data: Path | None = None
) -> Adapted:
    """A run's learner adapted to the examples at `support`.

    Args:
        run: A trained run.
        support: For classification a folder with one sub-folder of images per class, for regression a CSV
            file with columns x and y.
        steps: Gradient steps; None for the number the recipe evaluates with.
        checkpoint: Which parameters to start from.
        data: Folder of data sets, for recipes that tune the step size on validation tasks.

    Raises:
        InputError: The support set cannot be used.
    """
    _check_takes_examples(run)
    recipe, learner, iteration = trained(run, checkpoint)
    assert isinstance(recipe, SupervisedRecipe)
    steps = recipe.eval_steps if steps is None else steps
    if isinstance(recipe, SinusoidRecipe) and recipe.oracle:
        raise InputError("An oracle is given each task's amplitude and phase and has nothing to adapt to.")
    rate = recipe.with_tuned_rate(learner, data, steps)
    if isinstance(recipe, CharacterRecipe):
        batch, classes = _image_support(support, None if recipe.learner in ANY_WAYS else recipe.ways)
    else:
        rows = _rows(support, ("x", "y"))
        batch, classes = Batch(torch.tensor([row[:1] for row in rows]), torch.tensor([row[1:] for row in rows])), ()
    model = learner.adapt(batch, steps, norm="support")
    about = {
        "recipe": run.config()["recipe"],
        "checkpoint": checkpoint,
        "iteration": iteration,
        "steps": steps,
        "inner_lr": rate,
        "norm": "support",
        "examples": len(batch.targets),
    }
    return Adapted(model, recipe, classes, about)


def load(folder: Path) -> Adapted:
    """The adapted model that `Adapted.save` wrote to `folder`.

    Raises:
        FileError: The folder holds no adapted model, or a damaged one.
    """
    if not (folder / "adapted.json").exists():
        if Run(folder).exists:
            _check_takes_examples(Run(folder))
        raise FileError(f"{folder} holds no adapted model: give a folder that `headstart adapt` wrote.")
    description = read_json(folder / "adapted.json")
    recipe = restore(description)
    assert isinstance(recipe, SupervisedRecipe)
    learner = recipe.make_learner()
    tensors, _ = read_tensors(folder / "model.safetensors")
    try:
        model = learner.model.eval()
        if recipe.learner in ANY_WAYS:  # the head has a row for each class that was adapted to
            put(model, {name: tensors[name] for name, _ in model.named_parameters()})
        model.load_state_dict(tensors)
    except (RuntimeError, KeyError, ValueError) as error:
        raise FileError(f"{folder / 'model.safetensors'} does not fit adapted.json: {error}") from error
    about = {k: v for k, v in description.items() if k not in ("kind", "settings", "classes")}
    return Adapted(model, recipe, tuple(description["classes"]), about)


def _check_takes_examples(run: Run) -> None:
    config = run.config()
    if not isinstance(restore(config), SupervisedRecipe):
        raise InputError(
            f"{run.path} is a run of {config['recipe']}: a policy, which adapts to episodes of its own and not to "
            "files. In Python: `_, learner, _ = headstart.recipes.work.trained(Run(path))`, then "
            "`learner.adapt(task, steps=1, generator=torch.Generator())` is the policy adapted to the task."
        )


def _image_support(folder: Path, ways: int | None) -> tuple[Batch, tuple[str, ...]]:
    """Images `[examples, 1, height, width]` and class indices, from a folder of at most `ways` class folders."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder. Give one with a sub-folder of images for each class.")
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2 or (ways is not None and len(classes) > ways):
        told = "2 or more" if ways is None else f"2 to {ways}"
        raise InputError(f"{folder} has {len(classes)} class folders; this run tells {told} classes apart.")
    images, labels = [], []
    for label, path in enumerate(classes):
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not files:
            raise InputError(f"The class folder {path} is empty: every class needs at least one image.")
        images += [_image(file) for file in files]
        labels += [label] * len(files)
    return Batch(torch.stack(images), torch.tensor(labels)), tuple(path.name for path in classes)


def _image(file: Path) -> Tensor:
    try:
        return read_image(file, SIZE, ink=True).float() / 255
    except FileNotFoundError as error:
        raise InputError(f"There is no file {file}.") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{error}") from error


def _rows(file: Path, names: tuple[str, ...]) -> list[list[float]]:
    """The columns `names` of a CSV file, found by its header; without a header, its first columns."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            lines = [(number, line) for number, line in enumerate(csv.reader(handle), 1) if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {file} as CSV: {error}.") from error
    columns = list(range(len(names)))
    if lines and not any(map(_is_float, lines[0][1])):
        header = [cell.strip().lower() for cell in lines[0][1]]
        missing = [name for name in names if name not in header]
        if missing:
            raise InputError(f"{file} has columns {', '.join(header)}, but no {' and no '.join(missing)}.")
        columns, lines = [header.index(name) for name in names], lines[1:]
    rows = []
    for number, line in lines:
        cells = [line[column] if column < len(line) else "" for column in columns]
        if not all(_is_float(cell) and math.isfinite(float(cell)) for cell in cells):
            raise InputError(f"{file}, line {number}: {' and '.join(names)} must be finite numbers, got {cells}.")
        rows.append([float(cell) for cell in cells])
    if not rows:
        raise InputError(f"{file} holds no rows: expected {' and '.join(names)}, a row for each example.")
    return rows


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
