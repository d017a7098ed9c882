import json
from dataclasses import replace

import pytest
import torch

from headstart.cli import main
from headstart.recipes import averages, experiment, restore, work
from headstart.recipes.averages import AveragedSinusoidRecipe
from headstart.tasks import Sinusoids
from headstart.tasks.fixed_waves import FixedWaves
from headstart.tasks.sinusoid import curve
from headstart.training.checkpoint import load_parameters, load_state
from headstart.training.evaluate import Evaluation, StepResult
from headstart.training.run import Run

NAMES = [f"sinusoid-5shot-averaged{suffix}" for suffix in ("", "-l2", "-to-mean")]


def recipe_of(name=NAMES[0], **changes) -> AveragedSinusoidRecipe:
    recipe = experiment(name).recipe
    assert isinstance(recipe, AveragedSinusoidRecipe)
    return replace(recipe, **changes)


def started(path, name, recipe):
    run = Run(path)
    run.start(work.config_of(name, recipe))
    return run, recipe.trainer(run, None, "cpu")


def test_the_waves_stay_and_their_points_do_not():
    source, rng = FixedWaves(Sinusoids(shots=5, queries=7), seed=3), torch.Generator().manual_seed(0)
    first, second = source.sample(20, rng), source.sample(20, rng)
    amplitude, phase = source.parameters(20)
    for batch, count in ((first.support, 5), (first.query, 7), (second.query, 7)):
        assert batch.inputs.shape == (20, count, 1)
        assert batch.inputs.abs().max() <= 5
        torch.testing.assert_close(batch.targets, curve(batch.inputs, amplitude, phase), rtol=0, atol=0)
    assert not torch.equal(first.query.inputs, second.query.inputs)
    assert ((amplitude >= 0.1) & (amplitude <= 5)).all()
    assert amplitude.flatten().unique().numel() == phase.flatten().unique().numel() == 20
    assert not torch.equal(amplitude, FixedWaves(source.waves, seed=4).parameters(20)[0])


def test_fixed_waves_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match="amplitude and phase"):
        FixedWaves(Sinusoids(oracle=True), seed=0)
    with pytest.raises(ValueError, match="size=0"):
        FixedWaves(Sinusoids(), seed=0).sample(0, torch.Generator())


def test_settings_are_the_papers():
    """500 regressors, each of its own wave and its own initialisation; the average tuned on 5 points."""
    recipes = [recipe_of(name) for name in NAMES]
    assert [recipe.regularizer for recipe in recipes] == ["none", "l2", "to-mean"]
    assert {(r.meta_batch, r.shots, r.steps, r.hidden) for r in recipes} == {(500, 5, 0, (40, 40))}
    assert all(r.tune_inner_lr == recipe_of().tune_inner_lr and len(r.tune_inner_lr) > 1 for r in recipes)
    published = [[tuple(p)[:2] for p in experiment(name).published] for name in NAMES]
    assert published == [
        [(1, 4.19), (5, 3.85), (10, 3.69)],
        [(1, 7.18), (5, 5.69), (10, 5.60)],
        [(1, 2.91), (5, 2.72), (10, 2.71)],
    ]


@pytest.mark.parametrize(("shared", "starts"), [(False, 3), (True, 1)])
def test_every_regressor_has_its_own_start_unless_it_is_shared(shared, starts):
    models = recipe_of(meta_batch=3, shared_start=shared).regressors().models
    for name in ("body.0.weight", "head.weight"):
        assert len({tuple(own.flatten().tolist()) for own in models.get_parameter(name).detach()}) == starts


def test_regressors_learn_their_waves(tmp_path):
    recipe = recipe_of().smoke()
    seen = []
    recipe = replace(recipe, iterations=400, meta_lr=0.01, validate_every=400, checkpoint_every=400, log_every=400)
    _, trainer = started(tmp_path, NAMES[0], recipe)
    trainer.train(observe=lambda _, metrics: seen.append(metrics))
    start, end = (sum(m["mean_error"] for m in part) / 20 for part in (seen[:20], seen[-20:]))
    assert end < 0.1 * start


@pytest.mark.parametrize("name", NAMES)
def test_resumed_is_uninterrupted(name, tmp_path):
    recipe = replace(recipe_of(name).smoke(), iterations=7, validate_every=2, checkpoint_every=3, log_every=2)
    whole, trainer = started(tmp_path / "whole", name, recipe)
    trainer.train()
    parts, trainer = started(tmp_path / "parts", name, recipe)
    seen = []
    assert not trainer.train(observe=lambda i, _: seen.append(i), stop=lambda: len(seen) == 4)
    torch.rand(3)
    _, trainer = started(tmp_path / "parts", name, recipe)
    trainer.resume()
    assert trainer.iteration == 4
    assert trainer.train()
    for kind in ("train", "validation"):
        lines = [[{**line, "seconds": 0} for line in run.metrics(kind)] for run in (whole, parts)]
        assert lines[0] == lines[1]
        assert lines[0]
    for checkpoint in ("best", "last"):
        (one, _), (other, _) = (load_parameters(run.checkpoints, checkpoint) for run in (whole, parts))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    states = [load_state(run.checkpoints)["updater"] for run in (whole, parts)]
    leaves = [torch.utils._pytree.tree_leaves(state) for state in states]
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(*leaves, strict=True))


def test_the_checkpoint_holds_the_average_of_the_regressors(tmp_path):
    run, trainer = started(tmp_path, NAMES[2], recipe_of(NAMES[2]).smoke())
    trainer.train()
    regressors = load_state(run.checkpoints)["updater"]["learner"]
    _, learner, iteration = work.trained(run, "last")
    assert iteration == 4
    for name, parameter in learner.model.named_parameters():
        stacked = regressors[f"models.{name}"]
        assert stacked.shape == (2, *parameter.shape)
        torch.testing.assert_close(parameter.detach(), (stacked[0] + stacked[1]) / 2)


def test_the_last_average_is_chosen_however_good(tmp_path, monkeypatch):
    errors = iter([1.0, 2.0, 3.0])
    results = ([StepResult(0, error, 0.0, error, 0)] for error in errors)
    monkeypatch.setattr(averages, "evaluate", lambda *_: Evaluation(4, "", next(results)))
    run, trainer = started(tmp_path, NAMES[0], replace(recipe_of().smoke(), iterations=5))
    trainer.train()
    assert [line["mean"] for line in run.metrics("validation")] == [1.0, 2.0, 3.0]
    _, about = load_parameters(run.checkpoints, "best")
    assert (about["iteration"], about["validation"]["mean"]) == (5, 3.0)


def test_published_numbers_are_for_any_coefficient_and_nothing_else():
    known = experiment(NAMES[1]).recipe
    assert known.trained_alike(replace(known, coefficient=0.5))
    assert not known.trained_alike(replace(known, regularizer="to-mean"))
    assert not known.trained_alike(replace(known, hidden=(20, 20)))
    assert not known.trained_alike(replace(known, shared_start=True))
    assert not known.trained_alike(experiment("sinusoid-5shot-pretrained").recipe)


@pytest.mark.parametrize(
    "wrong",
    [
        {"coefficient": -1.0},
        {"steps": 1},
        {"oracle": True},
        {"learner": "anil"},
        {"regularizer": "l1", "meta_batch": 1},
    ],
)
def test_what_it_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        recipe_of(**wrong).regressors()


def test_commands_work_from_training_to_report(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", NAMES[1], "--smoke", "--coefficient", "0.01", "--out", folder]) == 0
    assert main(["train", NAMES[1], "--smoke", "--coefficient", "0.01", "--out", folder, "--resume"]) == 0
    assert restore(Run(tmp_path / "run").config()) == recipe_of(NAMES[1], coefficient=0.01).smoke()
    capsys.readouterr()
    assert main(["evaluate", folder, "--num-tasks", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [p["value"] for p in result["published"]] == [7.18, 5.69, 5.6]
    assert result["inner_lr"] in recipe_of().tune_inner_lr
    assert len(result["per_step"]) == 11
    pytest.importorskip("matplotlib", reason="the report needs the extra report")
    pytest.importorskip("jinja2", reason="the report needs the extra report")
    assert main(["report", folder, "--out", str(tmp_path / "page")]) == 0
    assert any("5.69" in page.read_text() for page in (tmp_path / "page").glob("*.html"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--coefficient", "0.1"], "regularizer is none"),
        (["--schedule", "cosine"], "plain Adam"),
        (["--select-by", "median"], "the last checkpoint counts"),
        (["--regularizer", "l2"], "cannot be overridden"),
    ],
)
def test_a_setting_that_would_change_nothing_or_all_is_refused(given, told, tmp_path, capsys):
    assert main(["train", NAMES[0], "--smoke", "--out", str(tmp_path), *given]) == 2
    assert told in capsys.readouterr().err
