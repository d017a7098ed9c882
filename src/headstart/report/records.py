"""What a run folder says of itself, read once: settings, how training went, what evaluation measured."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from headstart.recipes import Published, Recipe, SupervisedRecipe, experiments, restore
from headstart.recipes.work import Checkpoint
from headstart.training.evaluate import StepResult
from headstart.training.files import FileError, read_json
from headstart.training.run import Run

MAML, FIRST_ORDER, PRETRAINED, ORACLE = "MAML", "first-order MAML", "pretrained", "oracle"
CONTEXT, RANDOM = "context vector", "random"
AVERAGE, SUCCESSOR = "parameter average", "another learner"


class Result(NamedTuple):
    """One evaluation of one run: one file of its `evaluations/`."""

    recipe: str
    checkpoint: Checkpoint
    iteration: int
    metric: str
    num_tasks: int
    seed: int
    inner_lr: float
    per_step: tuple[StepResult, ...]
    published: tuple[Published, ...]
    conditions: dict[str, Any]
    """Everything else that the file says; what it is depends on the kind of recipe: shots, rollouts, norm, ..."""

    @property
    def steps(self) -> int:
        """The last number of inner steps measured."""
        return self.per_step[-1].step

    @property
    def sampled(self) -> bool:
        """Whether the tasks were drawn by the recipe, not the data set's own."""
        return self.conditions.get("protocol", "sampled") == "sampled"

    def at(self, step: int) -> StepResult | None:
        """What was measured after `step` inner steps, if it was."""
        return next((result for result in self.per_step if result.step == step), None)


@dataclass(frozen=True)
class RunRecord:
    """Everything that a run's files say."""

    run: Run
    label: str
    """A name of its own among the runs of one report."""
    recipe: str
    kind: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    results: tuple[Result, ...]
    training: list[dict[str, Any]]
    validations: list[dict[str, Any]]

    @property
    def method(self) -> str:
        """Which of the methods that the figures tell apart trained this run."""
        if self.settings.get("oracle"):
            return ORACLE
        if self.settings.get("iterations") == 0:
            return RANDOM
        if self.kind == "averaged-sinusoid":
            return AVERAGE
        learner = self.settings.get("learner", "maml")
        if self.settings.get("context") or learner == "cavia":
            return CONTEXT
        if learner not in ("maml", "fomaml"):
            return SUCCESSOR
        if self.settings.get("steps") == 0:
            return PRETRAINED
        return FIRST_ORDER if self.settings.get("first_order") or learner == "fomaml" else MAML

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint to show examples with: the best; the last where none was chosen yet."""
        names: tuple[Checkpoint, ...] = ("best", "last")
        return next((name for name in names if (self.run.checkpoints / f"{name}.safetensors").exists()), None)

    @property
    def iteration(self) -> int:
        """How far training has come, by its last line."""
        return max((line["iteration"] for line in (*self.training, *self.validations)), default=0)

    @property
    def seconds(self) -> float:
        """How long training took so far."""
        return max((line["seconds"] for line in (*self.training, *self.validations)), default=0.0)

    @cached_property
    def best_iteration(self) -> int | None:
        """Iteration of the best checkpoint."""
        about = self.run.checkpoints / "best.json"
        if about.exists():
            return read_json(about)["iteration"]
        return next((result.iteration for result in self.results if result.checkpoint == "best"), None)

    def main_result(self, shots: int | None = None) -> Result | None:
        """The evaluation that speaks for the run: by the paper's protocol if there is one.

        Args:
            shots: Consider evaluations with that many support examples; None for what was trained with, if the
                run learns from examples.
        """
        shots = self.settings.get("shots") if shots is None else shots
        candidates = [result for result in self.results if result.conditions.get("shots") == shots and result.sampled]

        def rank(result: Result) -> tuple[Any, ...]:
            usual = result.num_tasks == usual_conditions(self)["num_tasks"]  # the same tasks for every method
            own = "ways" not in result.conditions and not result.conditions.get("one_at_a_time")
            own = own and result.conditions.get("norm") == self.settings.get("norm")
            best = result.checkpoint == "best"
            return (by_the_papers_protocol(result), own, best, usual, result.num_tasks, result.steps)

        return max(candidates, key=rank, default=None)


def by_the_papers_protocol(result: Result) -> bool:
    """Whether a published number may stand beside `result`: measured under the conditions of the literature."""
    known = experiments().get(result.recipe)
    if known is None or known.recipe.metric_name != result.metric:
        return False
    return known.recipe.measured_alike({"inner_lr": result.inner_lr, **result.conditions})


def usual_conditions(record: RunRecord) -> dict[str, Any]:
    """What `headstart evaluate` does with such a run unless told otherwise."""
    conditions = next(type(e.recipe).conditions for e in experiments().values() if e.recipe.kind == record.kind)
    defaults = {"checkpoint": "best", **asdict(conditions())}
    own = {name: record.settings.get(f"eval_{name}", record.settings.get(name)) for name in defaults}
    return {name: own[name] if value is None else value for name, value in defaults.items()}


def steps_to_show(record: RunRecord, result: Result) -> list[int]:
    """The inner steps whose results a table lists: all for returns; the published, else first, fifth, last."""
    measured = {step.step for step in result.per_step}
    if record.method == ORACLE:  # it knows the task: there is nothing to adapt to
        return [0]
    if result.metric == "return":
        return sorted(measured)
    wanted = {published.step for published in result.published}
    wanted = wanted or ({1, 5, result.steps} if result.metric == "mse" else {result.steps})
    return sorted(wanted & measured) or [result.steps]


def read_records(runs: Sequence[Run]) -> list[RunRecord]:
    """What each of `runs` says of itself.

    Raises:
        FileError: A folder is no run folder, or a file in it is damaged.
    """
    labels: list[str] = []
    for run in runs:
        name = run.path.resolve().name
        taken = sum(label == name or label.startswith(f"{name} (") for label in labels)
        labels.append(f"{name} ({taken + 1})" if taken else name)
    return [_record(run, label) for run, label in zip(runs, labels, strict=True)]


def changed_settings(record: RunRecord) -> dict[str, Any]:
    """The settings of a run that differ from its recipe's, as JSON: its learner, and what is not usual for that."""
    usual = _usual(record)
    if usual is None:
        return {}
    defaults = json.loads(json.dumps(asdict(usual)))
    changed = {name: value for name, value in record.settings.items() if name in defaults and defaults[name] != value}
    base = asdict(experiments()[record.recipe].recipe).get("learner")
    return changed if defaults.get("learner") == base else {"learner": defaults["learner"], **changed}


def is_smoke(record: RunRecord) -> bool:
    """Whether the run is its recipe at its smallest, `headstart train --smoke`."""
    usual = _usual(record)
    try:
        return usual is not None and restore({"kind": record.kind, "settings": record.settings}) == usual.smoke()
    except ValueError:  # written by another version
        return False


def _usual(record: RunRecord) -> Recipe[Any] | None:
    """The run's recipe as it is for the run's learner; None where this version does not know it."""
    known = experiments().get(record.recipe)
    if known is None or not isinstance(known.recipe, SupervisedRecipe):
        return None if known is None else known.recipe
    try:
        return known.recipe.with_learner(record.settings.get("learner", known.recipe.learner))
    except ValueError:  # written by another version
        return known.recipe


def _record(run: Run, label: str) -> RunRecord:
    config = run.config()
    environment = run.path / "environment.json"
    try:
        return RunRecord(
            run=run,
            label=label,
            recipe=config["recipe"],
            kind=config["kind"],
            settings=config["settings"],
            environment=read_json(environment) if environment.exists() else {},
            results=tuple(_result(path) for path in sorted((run.path / "evaluations").glob("*.json"))),
            training=run.metrics("train"),
            validations=run.metrics("validation"),
        )
    except (KeyError, TypeError) as error:
        raise FileError(
            f"{run.path} has a config.json or metrics.jsonl that Headstart did not write: {error}."
        ) from error


def _result(path: Any) -> Result:
    content = read_json(path)
    try:
        values = {name: content.pop(name) for name in Result._fields if name != "conditions"}
        values["per_step"] = tuple(StepResult(**step) for step in values["per_step"])
        values["published"] = tuple(Published(**published) for published in values["published"])
        return Result(**values, conditions=content)
    except (KeyError, TypeError) as error:
        raise FileError(f"{path} was not written by `headstart evaluate`: {error}.") from error
