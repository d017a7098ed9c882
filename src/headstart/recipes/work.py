"""From a recipe to work being done: a trainer for a run, a trained learner from one, an evaluation of it."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from headstart.algorithms.maml import MAML
from headstart.layers import Norm
from headstart.recipes import CharacterRecipe, experiments, restore
from headstart.recipes.recipe import Published, Recipe
from headstart.tasks import omniglot
from headstart.training.checkpoint import load_parameters
from headstart.training.evaluate import TEST, VALIDATION, evaluate, fixed_tasks
from headstart.training.files import FileError, read_json, write_json
from headstart.training.run import Run
from headstart.training.trainer import Trainer, TrainerSettings, Validation
from headstart.training.tuning import Choice
from headstart.types import Task, TaskSource, generator

Checkpoint = Literal["best", "last"]
Protocol = Literal["sampled", "one-shot-runs"]
"""Where test tasks come from: drawn by the recipe, or Omniglot's own 20 runs of 20-way one-shot classification."""

VALIDATION_SEED, TEST_SEED = 1, 0
"""Seeds of the fixed task lists: two streams, which no seed makes meet. Where there is data, its parts differ too."""


def config_of(name: str, recipe: Recipe) -> dict[str, Any]:
    """What a run folder's `config.json` holds."""
    return {"recipe": name, "kind": recipe.kind, "settings": asdict(recipe)}


def trainer_for(recipe: Recipe, run: Run, data: Path | None, device: torch.device | str) -> Trainer:
    """A trainer at iteration 0, its network initialised from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    learner = recipe.learner().to(device)
    validation_tasks = list(
        fixed_tasks(_validation_source(recipe, data), recipe.val_tasks, VALIDATION_SEED, VALIDATION, device)
    )

    def validate() -> Validation:
        result = evaluate(learner, iter(validation_tasks), recipe.metric, max(recipe.steps, recipe.select_step))
        chosen = result.per_step[recipe.select_step]
        value = getattr(chosen, recipe.select_by)
        score = float("-inf") if value is None else recipe.better * value
        return Validation(score, {"metric": recipe.metric_name, **chosen._asdict()})

    settings = TrainerSettings(
        iterations=recipe.iterations,
        meta_batch=recipe.meta_batch,
        seed=recipe.seed,
        validate_every=recipe.validate_every,
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
    )
    source = recipe.source("train", data)
    choice = _choice(recipe, learner, source, run, device)
    learner.chunk_size = choice.chunk_size
    return Trainer(recipe.updater(learner, choice), learner.state_dict, source, validate, run, settings, device)


def _choice(recipe: Recipe, learner: MAML, source: TaskSource, run: Run, device: torch.device | str) -> Choice:
    """How this run computes its meta-gradients: measured once, then kept in the run's `engine.json`."""
    kept = run.path / "engine.json"
    if run.exists and kept.exists():
        return _kept_choice(run)
    tasks = source.sample(recipe.meta_batch, generator(recipe.seed, "measuring speed", device=device))
    choice = recipe.choice(learner, tasks)
    write_json(kept, choice._asdict())
    return choice


def _kept_choice(run: Run) -> Choice:
    path = run.path / "engine.json"
    try:
        return Choice(**read_json(path))
    except TypeError as error:
        raise FileError(
            f"{path} is not what `headstart train` wrote: remove it, and speed is measured anew."
        ) from error


def trained(run: Run, checkpoint: Checkpoint = "best", device: torch.device | str = "cpu") -> tuple[Recipe, MAML, int]:
    """A run's recipe, its learner with the parameters of a checkpoint, and their iteration.

    Raises:
        FileError: The run has no such checkpoint, or it does not fit the recipe's network.
    """
    recipe = restore(run.config())
    if not (run.checkpoints / f"{checkpoint}.safetensors").exists():
        other = "last" if checkpoint == "best" else "best"
        raise FileError(
            f"{run.path} has no checkpoint {checkpoint!r} yet: the best is first kept at the first "
            f"validation, the last at the first checkpoint. Try --checkpoint {other}, or train on with --resume."
        )
    parameters, about = load_parameters(run.checkpoints, checkpoint)
    learner = recipe.learner().to(device)
    if (run.path / "engine.json").exists():
        learner.chunk_size = _kept_choice(run).chunk_size
    try:
        learner.load_state_dict(parameters)
    except RuntimeError as error:
        raise FileError(f"The checkpoint {checkpoint!r} of {run.path} does not fit its config.json: {error}") from error
    return recipe, learner.eval(), about["iteration"]


def with_tuned_rate(recipe: Recipe, learner: MAML, data: Path | None, steps: int, shots: int | None = None) -> float:
    """Give `learner` the inner step size best on validation tasks, where the recipe asks for it; returns it.

    The best is the one best after `steps` steps on `shots` examples: another number of either, another rate.
    """
    device = next(learner.parameters()).device
    if not recipe.tune_inner_lr:
        return recipe.inner_lr
    tasks = list(
        fixed_tasks(_validation_source(recipe, data, shots), recipe.val_tasks, VALIDATION_SEED, VALIDATION, device)
    )

    def score(rate: float) -> float:
        learner.inner = replace(recipe, inner_lr=rate).inner_optimizer()
        mean = evaluate(learner, iter(tasks), recipe.metric, steps).per_step[steps].mean
        return float("-inf") if mean is None else recipe.better * mean

    best = max(recipe.tune_inner_lr, key=score)
    learner.inner = replace(recipe, inner_lr=best).inner_optimizer()
    return best


def evaluate_run(
    run: Run,
    *,
    num_tasks: int = 600,
    steps: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    norm: Norm | None = None,
    checkpoint: Checkpoint = "best",
    seed: int = TEST_SEED,
    protocol: Protocol = "sampled",
    data: Path | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """A run measured on held-out tasks, as the JSON object that `headstart evaluate --json` prints.

    What is not given is as the recipe's published protocol has it.
    """
    recipe, learner, iteration = trained(run, checkpoint, device)
    steps = recipe.eval_steps if steps is None else steps
    norm = recipe.norm if norm is None else norm
    shots = recipe.shots if shots is None else shots
    queries = recipe.eval_queries if queries is None else queries
    if protocol == "one-shot-runs":
        shots, queries, tasks = 1, 1, _one_shot_runs(recipe, data, device)
    else:
        tasks = fixed_tasks(recipe.source("test", data, shots, queries), num_tasks, seed, TEST, device)
    rate = with_tuned_rate(recipe, learner, data, steps, shots)
    evaluation = evaluate(learner, tasks, recipe.metric, steps, norm)
    name = run.config()["recipe"]
    result = {
        "recipe": name,
        "checkpoint": checkpoint,
        "iteration": iteration,
        "metric": recipe.metric_name,
        "num_tasks": evaluation.num_tasks,
        "shots": shots,
        "queries": queries,
        "norm": norm,
        "seed": seed,
        "tasks_digest": evaluation.tasks_digest,
        "inner_lr": rate,
        "protocol": protocol,
        "per_step": [step._asdict() for step in evaluation.per_step],
        "published": [p._asdict() for p in _published(name, recipe, shots, queries, norm, protocol)],
    }
    return result


def keep_evaluation(run: Run, result: dict[str, Any]) -> None:
    """Write an evaluation into its run's `evaluations/`, under a name of its own for each way to evaluate."""
    names = ("checkpoint", "protocol", "num_tasks", "shots", "queries", "norm", "seed")
    checkpoint, protocol, num_tasks, shots, queries, norm, seed = (result[name] for name in names)
    steps = len(result["per_step"]) - 1
    file = f"{checkpoint}-{protocol}-{num_tasks}tasks-{shots}shot-{queries}query-{steps}steps-{norm}-seed{seed}.json"
    write_json(run.path / "evaluations" / file, result)


def _published(
    name: str, recipe: Recipe, shots: int, queries: int, norm: Norm, protocol: Protocol
) -> tuple[Published, ...]:
    """Published numbers, where run and evaluation are of the kind that they are for."""
    known = experiments().get(name)
    if known is None or not known.trained_alike(recipe) or not known.measured_alike(shots, queries, norm, protocol):
        return ()
    return known.published


def _validation_source(recipe: Recipe, data: Path | None, shots: int | None = None) -> TaskSource:
    return recipe.source("val", data, shots, recipe.eval_queries)


def _one_shot_runs(recipe: Recipe, data: Path | None, device: torch.device | str) -> Iterator[Task]:
    if not isinstance(recipe, CharacterRecipe) or recipe.ways != 20:
        raise ValueError("Omniglot's one-shot runs are for 20-way runs of Omniglot, which this is not.")
    tasks = omniglot.one_shot_runs(data)
    yield Task(*(type(batch)(*(leaf.to(device) for leaf in batch)) for batch in tasks))
