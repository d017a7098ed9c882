"""From a trained run to a model adapted to somebody's own examples; kept as a folder, and put to use on files.

    adapted.json         the run's recipe, class names, how it was adapted
    model.safetensors    the adapted model's parameters and batch-norm statistics

Batch norm uses the support set's statistics, whatever it was trained with: what is predicted for one file
must not depend on which others are predicted with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.algorithms.maml import MAML
from headstart.algorithms.names import put
from headstart.inputs import InputError, Inputs, Rows, Support
from headstart.recipes import SinusoidRecipe, SupervisedRecipe, restore
from headstart.recipes.learners import ANY_WAYS
from headstart.recipes.supervised import SEEN_FILE
from headstart.recipes.work import Checkpoint, data_of, trained
from headstart.training.files import FileError, read_json, read_tensors, whole_folder, write_json, write_tensors
from headstart.training.run import Run


@dataclass(frozen=True)
class Trained:
    """A meta-trained model, ready to adapt.

    Attributes:
        learner: With the parameters of a checkpoint.
        recipe: What it was meta-trained by.
        inputs: How files become its inputs.
        seen: What is known of the training inputs, as JSON values.
        about: Which recipe, checkpoint and iteration it is.
    """

    learner: MAML
    recipe: SupervisedRecipe
    inputs: Inputs
    seen: dict[str, Any]
    about: dict[str, Any]

    def adapt(self, support: Support, steps: int | None = None) -> "Adapted":
        """The model adapted to a support set.

        Args:
            support: From `inputs`.
            steps: Gradient steps; None for the number the recipe evaluates with.

        Raises:
            InputError: It has more classes than the model tells apart, or the model cannot follow its values.
        """
        steps = self.recipe.eval_steps if steps is None else steps
        limit = None if self.recipe.learner in ANY_WAYS else self.recipe.classes
        if limit is not None and len(support.classes) > limit:
            raise InputError(
                f"The support set has {len(support.classes)} classes; this run tells at most {limit} apart. Leave some "
                f"out, or train with --learner {', '.join(ANY_WAYS)}, which take any number."
            )
        model = self.learner.adapt(support.batch, steps, norm="support")
        if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
            raise InputError(
                f"After {steps} steps the model is no longer finite: look for values far from those trained on, or "
                "adapt with fewer steps."
            )
        count = len(support.batch.targets)
        about = {**self.about, "steps": steps, "norm": "support", "examples": count, "notes": list(support.notes)}
        return Adapted(model, self.recipe, self.inputs, support.classes, self.seen, about)


@dataclass(frozen=True)
class Adapted:
    """A model adapted to one task.

    Attributes:
        model: The adapted network, in evaluation mode.
        recipe: What it was meta-trained by.
        inputs: How files become its inputs.
        classes: Names of the classes, in the order of the outputs; empty for regression.
        seen: What is known of the training inputs, as JSON values.
        about: How it was adapted.
    """

    model: nn.Module
    recipe: SupervisedRecipe
    inputs: Inputs
    classes: tuple[str, ...]
    seen: dict[str, Any]
    about: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the folder that `load` reads, in place of an adapted model that is there.

        Raises:
            FileError: The folder holds something else, or cannot be written.
        """
        description = {"kind": self.recipe.kind, "settings": asdict(self.recipe), "classes": self.classes}
        with whole_folder(folder, ("adapted.json", "model.safetensors")) as part:
            write_tensors(part / "model.safetensors", self.model.state_dict(), {})
            write_json(part / "adapted.json", {**description, "seen": self.seen, **self.about})

    @torch.no_grad()
    def predict(self, source: Path | str | Tensor | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the model says of each row, as JSON values.

        In classification `class`, `probability` and all `probabilities`; in regression the value predicted; a `note`
        where a row looks unlike what the model was trained on.

        Args:
            source: A file, of which an image is one row; for tables rows as dicts as well; or inputs as the model
                takes them, `[rows, ...]`.

        Raises:
            InputError: The file is missing or damaged, or there is nothing of that kind to predict.
        """
        if isinstance(source, Tensor):
            rows = Rows(source, [{}] * len(source))
        else:
            rows = self.inputs.rows(Path(source)) if isinstance(source, (str, Path)) else self.inputs.rows_of(source)
        answers = self.inputs.answers(self.model(rows.inputs), self.classes)
        return [{**name, **answer} for name, answer in zip(rows.names, answers, strict=True)]


def load_run(
    run: Run, *, checkpoint: Checkpoint = "best", steps: int | None = None, data: Path | None = None
) -> Trained:
    """A run's model, ready to adapt.

    Args:
        run: A trained run.
        checkpoint: Which parameters to start from.
        steps: Gradient steps for which the step size is tuned, in recipes that tune it; None for the number the
            recipe evaluates with.
        data: Folder of data sets, for recipes that tune the step size on validation tasks.

    Raises:
        InputError: The run is of policies, or has nothing to adapt to.
    """
    _check_takes_examples(run)
    recipe, learner, iteration = trained(run, checkpoint)
    assert isinstance(recipe, SupervisedRecipe)
    if isinstance(recipe, SinusoidRecipe) and recipe.oracle:
        raise InputError("An oracle is given each task's amplitude and phase and has nothing to adapt to.")
    rate = recipe.with_tuned_rate(learner, data_of(run, data), recipe.eval_steps if steps is None else steps)
    about = {"recipe": run.config()["recipe"], "checkpoint": checkpoint, "iteration": iteration, "inner_lr": rate}
    file = run.path / SEEN_FILE
    seen = read_json(file) if file.exists() else {}
    return Trained(learner, recipe, recipe.inputs(seen), seen, about)


def adapt_run(
    run: Run, support: Path, *, steps: int | None = None, checkpoint: Checkpoint = "best", data: Path | None = None
) -> tuple[Adapted, tuple[str, ...]]:
    """A run's model adapted to the examples at `support`, and what looks wrong with these; see `load_run`.

    Raises:
        InputError: The support set cannot be used.
    """
    model = load_run(run, checkpoint=checkpoint, steps=steps, data=data)
    examples = model.inputs.support(support)
    return model.adapt(examples, steps), examples.notes


def load(folder: Path | str) -> Adapted:
    """The adapted model that `headstart adapt`, or `Adapted.save`, wrote to `folder`.

    Raises:
        FileError: The folder holds no adapted model, or a damaged one.
    """
    folder = Path(folder)
    if not (folder / "adapted.json").exists():
        if Run(folder).exists:
            _check_takes_examples(Run(folder))
        raise FileError(f"{folder} holds no adapted model: give a folder that `headstart adapt` wrote.")
    description = _description(folder / "adapted.json")
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
    seen = description["seen"]
    about = {k: v for k, v in description.items() if k not in ("kind", "settings", "classes", "seen")}
    return Adapted(model, recipe, recipe.inputs(seen), tuple(description["classes"]), seen, about)


def _description(file: Path) -> dict[str, Any]:
    """What `Adapted.save` wrote about a model."""
    found = read_json(file)
    fields = {"kind": str, "settings": dict, "classes": list, "seen": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in fields.items()):
        raise FileError(f"{file} is not what `headstart adapt` wrote: it needs {', '.join(fields)}. Adapt again.")
    return found


def _check_takes_examples(run: Run) -> None:
    config = run.config()
    if not isinstance(restore(config), SupervisedRecipe):
        raise InputError(
            f"{run.path} is a run of {config['recipe']}: a policy, which adapts to episodes of its own and not to "
            "files. In Python: `_, learner, _ = headstart.recipes.work.trained(Run(path))`, then "
            "`learner.adapt(task, steps=1, generator=torch.Generator())` is the policy adapted to the task."
        )
