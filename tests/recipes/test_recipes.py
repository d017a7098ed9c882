import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from headstart import recipes
from headstart.recipes import CharacterRecipe, ControlRecipe, SupervisedRecipe, supervised, work
from headstart.recipes.characters import _without_convolutions
from headstart.training.evaluate import TEST, VALIDATION, evaluate, fixed_tasks
from headstart.training.files import FileError
from headstart.training.fused import Clipping
from headstart.training.run import Run
from headstart.training.tuning import choose

EXPERIMENTS = recipes.experiments()
PROBLEMS = [name for name, e in EXPERIMENTS.items() if not e.recipe.own_data and e.recipe.kind != "intents"]
"""Those that bring their data; the others have tests of their own."""
SUPERVISED = {name: EXPERIMENTS[name] for name in PROBLEMS if isinstance(EXPERIMENTS[name].recipe, SupervisedRecipe)}
RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_recipe_trains_and_evaluates_at_smoke_size(name, tmp_path, request):
    recipe = EXPERIMENTS[name].recipe.smoke()
    if isinstance(recipe, ControlRecipe) and recipe.problem != "navigation-2d":
        pytest.importorskip("mujoco", reason="simulated robots need the extra rl")
        pytest.importorskip("gymnasium", reason="the robots' models are Gymnasium's")
    omniglot = isinstance(recipe, CharacterRecipe) and recipe.dataset == "omniglot"
    data = request.getfixturevalue("omniglot_data") if omniglot else None
    run = Run(tmp_path)
    run.start(work.config_of(name, recipe))
    recipe.trainer(run, data, "cpu").train()
    result = work.evaluate_run(run, num_tasks=3, data=data)
    assert result["recipe"] == name
    assert result["iteration"] in range(recipe.iterations + 1)
    assert [step["step"] for step in result["per_step"]] == list(range(recipe.eval_steps + 1))
    assert all(step["mean"] is not None for step in result["per_step"])
    json.dumps(result, allow_nan=False)


def test_updates_are_measured_with_the_clipping_that_they_will_have(tmp_path, monkeypatch):
    """Otherwise another graph is compiled than is used."""
    told = []
    monkeypatch.setattr(supervised, "choose", lambda *_, **settings: (told.append(settings), choose(*_, **settings))[1])
    recipe = replace(EXPERIMENTS["sinusoid-10shot"].recipe.smoke(), clip_value=0.5, clip_norm=2.0)
    run = Run(tmp_path)
    run.start(work.config_of("sinusoid-10shot", recipe))
    recipe.trainer(run, None, "cpu")
    assert [settings["clipping"] for settings in told] == [Clipping(0.5, 2.0)]


def test_settings_are_the_papers():
    """Section 3.1 of the reference: the numbers that its table gives for each problem."""
    sinusoid, five, twenty = (
        EXPERIMENTS[name].recipe for name in ("sinusoid-10shot", "omniglot-5way-5shot", "omniglot-20way-1shot")
    )
    assert (sinusoid.iterations, sinusoid.meta_batch, sinusoid.inner_lr, sinusoid.steps) == (70_000, 25, 0.01, 1)
    assert (five.iterations, five.meta_batch, five.steps, five.eval_steps, five.queries) == (60_000, 32, 1, 3, 5)
    assert (sinusoid.queries, sinusoid.eval_queries, sinusoid.eval_steps) == (10, 10, 10)
    # Fact 4: one query per class at one shot, five at five; that alone moves accuracy by points.
    assert all(e.recipe.eval_queries == e.recipe.shots for e in SUPERVISED.values())
    mlp = EXPERIMENTS["omniglot-5way-1shot-mlp"].recipe
    assert [m.out_features for m in mlp.model().modules() if isinstance(m, torch.nn.Linear)] == [256, 128, 64, 64, 5]
    assert (twenty.meta_batch, twenty.steps, twenty.eval_steps, twenty.queries) == (16, 5, 5, 1)
    # The released code's loss is `ways` times the mean: 0.4 and 0.1 there.
    assert five.inner_lr == pytest.approx(0.4 * 5)
    assert twenty.inner_lr == pytest.approx(0.1 * 20)
    assert all(e.recipe.meta_lr == 1e-3 and e.recipe.norm == "batch" for e in SUPERVISED.values())


@pytest.mark.parametrize("network", ["conv4", "mlp"])
def test_batch_norms_shift_is_not_adapted(network):
    recipe = EXPERIMENTS["omniglot-5way-1shot"].recipe
    recipe = _without_convolutions(recipe) if network == "mlp" else recipe
    learner = recipe.make_learner()
    norms = [(n, m) for n, m in learner.model.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 4
    assert all(norm.weight is None and norm.eps == 1e-3 for _, norm in norms)
    held = {name for name, _ in learner.model.named_parameters()} - set(learner.adapted_names)
    assert held == {f"{name}.bias" for name, _ in norms}


def test_published_numbers_belong_to_their_shots(tmp_path):
    run = Run(tmp_path)
    recipe = EXPERIMENTS["sinusoid-5shot"].recipe.smoke()
    run.start(work.config_of("sinusoid-5shot", recipe))
    recipe.trainer(run, None, "cpu").train()
    assert [p["value"] for p in work.evaluate_run(run, num_tasks=2)["published"]] == [0.67, 0.38, 0.35]
    assert work.evaluate_run(run, num_tasks=2, shots=10)["published"] == []


def test_evaluation_repeats_itself(tmp_path):
    run = Run(tmp_path)
    recipe = EXPERIMENTS["sinusoid-5shot"].recipe.smoke()
    run.start(work.config_of("sinusoid-5shot", recipe))
    recipe.trainer(run, None, "cpu").train()
    first, again, other = (work.evaluate_run(run, num_tasks=4, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["tasks_digest"] != other["tasks_digest"]


def test_the_step_size_is_tuned_on_validation_tasks():
    rates = (0.0, 0.0003, 0.03, 1e3)
    recipe = replace(EXPERIMENTS["sinusoid-20shot-pretrained"].recipe, tune_inner_lr=rates, val_tasks=30)
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 3.0)  # far off: standing still is not best
    tasks = list(fixed_tasks(recipe.source("val", queries=recipe.eval_queries), 30, work.VALIDATION_SEED, VALIDATION))
    errors = [
        evaluate(replace(recipe, inner_lr=rate).make_learner(model), iter(tasks), recipe.metric, 5).per_step[5].mean
        for rate in rates
    ]
    learner = recipe.make_learner(model)
    chosen = recipe.with_tuned_rate(learner, None, steps=5)
    assert errors[3] is None  # every task diverged: never chosen
    assert errors.index(min(errors[:3])) == rates.index(chosen) == 2
    assert learner.inner.lr == chosen


def test_one_shot_runs_are_twenty_way(tmp_path, omniglot_data):
    for name, told in (("omniglot-5way-1shot", "20-way"), ("omniglot-20way-1shot", None)):
        recipe = EXPERIMENTS[name].recipe.smoke()
        run = Run(tmp_path / name)
        run.start(work.config_of(name, recipe))
        recipe.trainer(run, omniglot_data, "cpu").train()
        if told:
            with pytest.raises(ValueError, match=told):
                work.evaluate_run(run, protocol="one-shot-runs", data=omniglot_data)
        else:
            result = work.evaluate_run(run, protocol="one-shot-runs", data=omniglot_data)
            assert (result["num_tasks"], result["shots"], result["queries"]) == (20, 1, 1)


def test_config_restores_the_recipe():
    for e in EXPERIMENTS.values():
        config = json.loads(json.dumps(work.config_of(e.name, e.recipe)))
        assert recipes.restore(config) == e.recipe
        assert asdict(recipes.restore(config)) == asdict(e.recipe)


def test_an_unknown_recipe_is_answered_with_close_ones():
    with pytest.raises(ValueError, match="sinusoid-5shot"):
        recipes.experiment("sinusoid-5-shot")


def test_a_missing_checkpoint_says_what_to_do(tmp_path):
    run = Run(tmp_path)
    run.start(work.config_of("sinusoid-5shot", EXPERIMENTS["sinusoid-5shot"].recipe))
    with pytest.raises(FileError, match="--checkpoint last"):
        work.trained(run)


def trained_at_smoke_size(path, name, **changes) -> Run:
    run, recipe = Run(path), replace(EXPERIMENTS[name].recipe.smoke(), **changes)
    run.start(work.config_of(name, recipe))
    recipe.trainer(run, None, "cpu").train()
    return run


def test_validation_tasks_are_no_test_tasks_whatever_the_seed():
    source = EXPERIMENTS["sinusoid-5shot"].recipe.source("val")
    validation = next(fixed_tasks(source, 5, work.VALIDATION_SEED, VALIDATION))
    for seed in range(5):
        assert not torch.equal(next(fixed_tasks(source, 5, seed, TEST)).support.inputs, validation.support.inputs)


@pytest.mark.parametrize(
    ("changes", "conditions"),
    [
        ({"ways": 3}, {}),
        ({"first_order": True}, {}),
        ({"filters": 8}, {}),
        ({"steps": 0}, {}),
        ({}, {"queries": 5}),
        ({}, {"norm": "support"}),
        ({}, {"shots": 2}),
    ],
)
def test_published_numbers_stand_beside_nothing_else(changes, conditions, tmp_path, monkeypatch):
    """On glyphs given a published number, so that no data is needed."""
    known = EXPERIMENTS["glyphs-5way-1shot"]._replace(published=EXPERIMENTS["omniglot-5way-1shot"].published)
    monkeypatch.setattr(work, "experiments", lambda: {known.name: known})
    run = trained_at_smoke_size(tmp_path, known.name, **changes)
    assert bool(work.evaluate_run(run, num_tasks=2)["published"]) == (not changes)
    if conditions:
        assert work.evaluate_run(run, num_tasks=2, **conditions)["published"] == []


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"log_every": 0}, {"select_step": -1}, {"meta_lr": -1.0}, {"chunk_size": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(EXPERIMENTS["sinusoid-5shot"].recipe, **wrong)


def test_a_config_of_another_program_is_refused():
    for config in ({}, {"kind": "chess", "settings": {}}, {"kind": "sinusoid", "settings": {"nonsense": 1}}):
        with pytest.raises(ValueError, match="no recipe can be made of it"):
            recipes.restore(config)


@pytest.mark.parametrize("config", sorted(RESULTS.glob("*/config.json")), ids=lambda path: path.parent.name)
def test_committed_runs_can_still_be_read(config):
    run = Run(config.parent)
    recipe = recipes.restore(run.config())
    assert recipe.kind == run.config()["kind"]
    for path in (config.parent / "evaluations").glob("*.json"):
        assert recipe.file_name(json.loads(path.read_text())) == path.name
