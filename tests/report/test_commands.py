import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from headstart import cli, recipes
from headstart.recipes import experiment, work
from headstart.report.commands import evaluate_command, train_command
from headstart.report.records import Result, is_smoke, read_records
from headstart.training.evaluate import StepResult
from headstart.training.run import Run


def record(path: Path, name: str, recipe: recipes.Recipe):
    run = Run(path)
    run.start(json.loads(json.dumps(work.config_of(name, recipe))))
    return read_records([run])[0]


def result(of: recipes.SupervisedRecipe, name: str, **changed) -> Result:
    told = {
        "recipe": name,
        "checkpoint": "best",
        "iteration": 4,
        "metric": of.metric_name,
        "num_tasks": 600,
        "seed": work.TEST_SEED,
        "inner_lr": of.inner_lr,
        "per_step": tuple(StepResult(step, 1.0, 0.1, 1.0, 0) for step in range(of.eval_steps + 1)),
        "published": (),
    }
    conditions = {"shots": of.shots, "queries": of.eval_queries, "norm": of.norm, "protocol": "sampled"}
    asked = {name: changed.pop(name) for name in conditions if name in changed}
    return Result(**{**told, **changed}, conditions={**conditions, **asked})


def test_a_run_without_checkpoints_is_trained_into_its_usual_folder(tmp_path):
    mine = record(tmp_path / "sinusoid-5shot", "sinusoid-5shot", experiment("sinusoid-5shot").recipe)
    assert train_command(mine) == "headstart train sinusoid-5shot"
    assert evaluate_command(mine) == "headstart evaluate runs/sinusoid-5shot"


def test_the_folder_is_named_where_there_is_a_checkpoint(tmp_path):
    path = tmp_path / "my run"
    mine = record(path, "sinusoid-5shot", experiment("sinusoid-5shot").recipe)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "last.safetensors").touch()
    assert train_command(mine) == f"headstart train sinusoid-5shot --out '{path}'"


def test_smoke_runs_are_told_by_their_flag(tmp_path):
    mine = record(tmp_path / "glyphs-5way-1shot", "glyphs-5way-1shot", experiment("glyphs-5way-1shot").recipe.smoke())
    assert train_command(mine) == "headstart train glyphs-5way-1shot --smoke"


def test_evaluation_options_are_those_that_differ_from_the_usual(tmp_path):
    recipe = experiment("omniglot-20way-1shot").recipe
    mine = record(tmp_path / "omniglot-20way-1shot", "omniglot-20way-1shot", recipe)
    usual = "headstart evaluate runs/omniglot-20way-1shot"
    assert evaluate_command(mine, result(recipe, mine.recipe)) == usual
    other = result(recipe, mine.recipe, norm="support", queries=15, num_tasks=100, checkpoint="last", seed=7)
    assert (
        evaluate_command(mine, other)
        == f"{usual} --checkpoint last --num-tasks 100 --queries 15 --norm support --seed 7"
    )
    runs = result(recipe, mine.recipe, protocol="one-shot-runs", num_tasks=20)
    assert evaluate_command(mine, runs) == f"{usual} --protocol one-shot-runs"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sinusoid-5shot-pretrained", {"hidden": (16, 16), "first_order": True, "meta_lr": 3e-4, "clip_value": 1.0}),
        ("omniglot-5way-1shot", {"adapt_only": ("head.*", "!head.bias"), "network": "mlp", "iterations": 7}),
        ("glyphs-5way-1shot", {"tune_inner_lr": (0.5, 1.0), "schedule": "cosine", "clip_norm": None}),
    ],
)
def test_the_command_line_understands_the_training_command(tmp_path, name, changes):
    recipe = replace(experiment(name).recipe, **changes)
    words = shlex.split(train_command(record(tmp_path / "x", name, recipe)))
    assert words[:2] == ["headstart", "train"]
    parsed = cli._parsed(words[1:])
    assert parsed.settings == recipe
    assert parsed.out == Path("runs/x")


@pytest.mark.parametrize(
    ("learner", "changed", "options"),
    [
        ("meta-sgd", {}, "--learner meta-sgd"),
        ("reptile", {"steps": 1}, "--learner reptile --steps 1"),  # the recipe's own number, but not usual for Reptile
        ("maml++", {"schedule": "constant"}, "--learner maml++ --schedule constant"),
    ],
)
def test_the_command_of_another_learner_trains_it_again(tmp_path, learner, changed, options):
    settings = replace(experiment("sinusoid-5shot").recipe.with_learner(learner), **changed)
    mine = record(tmp_path / "sinusoid-5shot", "sinusoid-5shot", settings)
    assert train_command(mine) == f"headstart train sinusoid-5shot {options}"
    again = cli._parsed_train(shlex.split(train_command(mine))[2:])
    assert again.settings == settings
    smoke = record(tmp_path / "smoke", "sinusoid-5shot", settings.smoke())
    assert is_smoke(smoke) == (not changed)


def test_the_result_of_a_run_is_by_its_own_classes_and_norm_with_all_queries(tmp_path):
    recipe = replace(experiment("glyphs-5way-1shot").recipe.with_learner("proto-maml"), norm="support")
    run = Run(tmp_path / "run")
    run.start(json.loads(json.dumps(work.config_of("glyphs-5way-1shot", recipe))))
    told = result(recipe, "glyphs-5way-1shot")
    for number, other in enumerate(({"ways": 10}, {"one_at_a_time": True}, {"norm": "running"}, {})):
        content = {**told._asdict(), **told.conditions, **other}
        del content["conditions"]
        content["per_step"] = [step._asdict() for step in told.per_step]
        path = run.path / "evaluations" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    assert read_records([run])[0].main_result().conditions == told.conditions
