"""From a CSV file to predictions, by the commands a person types."""

import csv
import json
import math
import re
from dataclasses import asdict, replace

import pytest
import torch

from headstart import adapted, recipes
from headstart.cli import main
from headstart.recipes import work
from headstart.recipes.learners import ANY_WAYS, LEARNERS
from headstart.recipes.my_table import FittedTableRecipe, TableRecipe
from headstart.training.run import Run
from headstart.types import generator

pytest.importorskip("polars", reason="tables need the extra table")

RECIPE = recipes.experiment("my-table").recipe
SMALL = ["--iterations", "4", "--meta-batch", "2", "--val-tasks", "4", "--shots", "4", "--queries", "3"]
SMALL += ["--eval-queries", "3", "--hidden", "8", "--validate-every", "2", "--checkpoint-every", "2"]


@pytest.fixture
def table(tmp_path):
    """Twelve shops of 9 to 14 rows; sales around 10,000, footfall around 0.001."""
    file = tmp_path / "shops.csv"
    with file.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["shop", "day", "footfall", "weather", "sales", "good"])
        for shop in range(12):
            for day in range(9 + shop % 6):
                footfall = 1e-3 * (1 + math.sin(day + shop))
                weather = ["dry", "wet", ""][(day + shop) % 3]
                sales = 1e4 + 500 * shop + 1e6 * footfall
                writer.writerow([f"s{shop}", day, f"{footfall:.6f}", weather, sales, ["no", "yes"][footfall > 1e-3]])
    return file


def train(table, out, *more, target="sales"):
    columns = [
        "--task-column",
        "shop",
        "--target",
        target,
        "--columns",
        "*",
        "!good" if target == "sales" else "!sales",
    ]
    return main(["train", "my-table", "--data", str(table), *columns, "--out", str(out), *SMALL, *more])


def last_error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("more", [(), ("--time-column", "day"), ("--fewest", "None")], ids=["random", "time", "shots"])
def test_train_evaluate_adapt_predict(table, tmp_path, capsys, more):
    run = tmp_path / "run"
    assert train(table, run, *more) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--num-tasks", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metric"] == "mse"
    assert 1e3 < result["per_step"][0]["mean"] < 1e8  # in the target's unit
    support, rows = tmp_path / "support.csv", tmp_path / "rows.csv"
    support.write_text("day,footfall,weather,sales\n" + "".join(f"{d},0.001,dry,{11000 + d}\n" for d in range(7)))
    rows.write_text("shop,day,footfall,weather\nnew,20,0.0005,snow\nnew,21,,\n")
    assert main(["adapt", str(run), "--support", str(support), "--out", str(tmp_path / "new")]) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "new"), str(rows), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["task"], first["row"], second["row"]) == ("new", 1, 2)
    assert all(5e3 < row["y"] < 2e4 for row in (first, second))
    again = adapted.load(tmp_path / "new").predict(rows)
    assert [row["y"] for row in again] == [first["y"], second["y"]]


def test_classes(table, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(table, run, target="good") == 0
    recipe = recipes.restore(Run(run).config())
    assert (recipe.metric_name, recipe.classes, recipe.better) == ("accuracy", 2, 1)
    assert main(["adapt", str(run), "--support", str(table), "--out", str(tmp_path / "new")]) == 0
    assert "of 2 classes (no, yes)" in capsys.readouterr().out
    assert main(["predict", str(tmp_path / "new"), str(table), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["class"] in ("no", "yes")
    assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_a_resumed_run_is_the_uninterrupted_one(table, tmp_path):
    constant = ("--schedule", "constant")
    assert train(table, tmp_path / "once", *constant) == 0
    assert train(table, tmp_path / "twice", *constant, "--iterations", "2") == 0
    assert train(table, tmp_path / "twice", *constant, "--resume") == 0
    one, two = (adapted.load_run(Run(tmp_path / name), checkpoint="last").learner for name in ("once", "twice"))
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


def test_a_finished_run_cannot_be_lengthened(table, tmp_path, capsys):
    assert train(table, tmp_path / "run") == 0
    assert train(table, tmp_path / "run", "--iterations", "6", "--resume") == 2
    assert "cannot change on --resume: the cosine schedule is made for it" in last_error(capsys)


def test_a_fitted_recipe_comes_back_from_its_config(table):
    fitted = replace(RECIPE, task_column="shop", target="sales", shots=4, queries=3, eval_queries=3).fitted(table)
    assert isinstance(fitted, FittedTableRecipe)
    config = json.loads(json.dumps(work.config_of("my-table", fitted, table)))
    assert recipes.restore(config) == fitted
    assert config["data"] == str(table)
    assert recipes.restore({**config, "settings": asdict(RECIPE)}) == RECIPE


def test_before_it_has_seen_a_table_there_is_no_model():
    for use in (RECIPE.model, lambda: RECIPE.source("train"), lambda: RECIPE.inputs({}), lambda: RECIPE.metric):
        with pytest.raises(ValueError, match="has not seen its table"):
            use()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--target", "sales"], "--task-column which column whose every value is a task: .* has shop, day, footfall"),
        (["--task-column", "shop"], "--target which column to predict: .* has shop, day, footfall"),
        (["--task-column", "store", "--target", "sales"], "no column store: its columns are shop, day"),
        (["--task-column", "shop", "--target", "sales", "--shots", "40"], "0 of 12 tasks have 50 rows or more"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_written(table, tmp_path, capsys, arguments, told):
    out = tmp_path / "run"
    code = main(["train", "my-table", "--data", str(table), "--out", str(out), *arguments])
    assert code == 2
    assert re.search(told, last_error(capsys))
    assert not out.exists()


def test_support_rows_are_at_least_one_and_shots_at_most():
    with pytest.raises(ValueError, match="fewest must be 1 to shots, which is 4, or None, got 5"):
        replace(RECIPE, shots=4, fewest=5)


def test_data_are_asked_for(tmp_path, capsys):
    assert main(["train", "my-table", "--out", str(tmp_path / "run")]) == 2
    assert "--data" in last_error(capsys)


@pytest.mark.parametrize("learner", [name for name in LEARNERS if name not in ANY_WAYS])
def test_every_learner_that_can_learns_from_a_table(table, learner):
    columns = {"task_column": "shop", "target": "sales", "columns": ("*", "!good"), "hidden": (8,)}
    small = {"iterations": 2, "meta_batch": 2, "shots": 4, "queries": 3, "eval_queries": 3, "val_tasks": 2}
    recipe = replace(RECIPE.with_learner(learner), **columns, **small).fitted(table)
    updater = recipe.updater(recipe.make_learner())
    tasks = recipe.source("train", table).sample(2, generator(0, "test"))
    assert math.isfinite(updater.update(tasks)["meta_loss"])


@pytest.mark.parametrize("learner", ANY_WAYS)
def test_learners_with_a_head_for_each_task_are_refused(learner):
    with pytest.raises(ValueError, match="choose another"):
        TableRecipe(iterations=1, meta_batch=1, shots=1, queries=1, steps=1, inner_lr=0.1, learner=learner)


def test_it_learns_what_tells_tasks_apart(tmp_path):
    """Each task's own offset: after adaptation the error is a fraction of what it was."""
    file = tmp_path / "offsets.csv"
    rows = [f"t{t},{x / 10},{100 * math.sin(7 * t) + x / 10}" for t in range(40) for x in range(20)]
    file.write_text("\n".join(["task,x,y", *rows]) + "\n")
    settings = {"task_column": "task", "target": "y", "hidden": (16,), "shots": 4, "queries": 8, "seed": 0}
    recipe = replace(RECIPE, **settings, iterations=60, meta_lr=1e-2).fitted(file)
    torch.manual_seed(0)
    learner = recipe.make_learner()
    updater, source, rng = recipe.updater(learner), recipe.source("train", file), generator(0, "test")
    for _ in range(60):
        updater.update(source.sample(16, rng))
    result = recipe.evaluate(learner, recipe.conditions(num_tasks=20), file)["per_step"]
    assert result[-1]["mean"] < 0.2 * result[0]["mean"]
