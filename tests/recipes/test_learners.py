"""Learners by name on any recipe: their usual settings, what they refuse, any number of classes."""

from dataclasses import replace

import pytest

from headstart import algorithms, recipes
from headstart.recipes import work
from headstart.recipes.learners import ANY_WAYS, LEARNERS, OWN_SETTINGS
from headstart.training.run import Run
from headstart.usage import UsageError, check_idle, usual_recipe, with_learner

CHARACTERS = recipes.experiment("glyphs-5way-1shot").recipe
SINUSOID = recipes.experiment("sinusoid-10shot").recipe
REGRESSION = [name for name in LEARNERS if name not in ANY_WAYS]


@pytest.mark.parametrize("name", LEARNERS)
def test_a_name_is_a_class_of_its_own(name):
    learner = replace(CHARACTERS.with_learner(name), filters=8).make_learner()
    wanted = {"maml": "MAML", "fomaml": "MAML", "maml++": "MAMLPlusPlus", "bias-only": "BiasOnly"}
    spelled = {public.lower(): public for public in algorithms.__all__}
    assert type(learner).__name__ == wanted.get(name, spelled.get(name.replace("-", "")))
    assert learner.first_order == (name == "fomaml")


@pytest.mark.parametrize("recipe", [CHARACTERS, SINUSOID], ids=lambda r: r.kind)
@pytest.mark.parametrize("name", REGRESSION)
def test_as_many_steps_are_evaluated_as_trained(recipe, name):
    usual = recipe.with_learner(name)
    assert usual.eval_steps >= usual.steps
    assert usual.select_step <= usual.eval_steps


@pytest.mark.parametrize("name", ANY_WAYS)
def test_heads_per_class_are_refused_in_regression(name):
    with pytest.raises(ValueError, match="for regression choose another"):
        SINUSOID.with_learner(name)


OTHERS = {
    "step_rates": False,
    "multi_step_loss": 0.5,
    "first_order_share": 0.5,
    "step_norms": False,
    "strength": 1.0,
    "solver_steps": 2,
    "context_size": 9,
    "rank": 2,
    "adapter_layers": ("head",),
}
"""Another value than usual for each setting that is only some learners'."""


@pytest.mark.parametrize("setting", OWN_SETTINGS)
def test_a_setting_of_another_learner_is_refused(setting):
    """Given to a learner that does not look at it, it would be ignored in silence."""
    settings = replace(CHARACTERS, **{setting: OTHERS[setting]})
    told = f"--{setting.replace('_', '-')} would change nothing here: the learner is maml"
    with pytest.raises(UsageError, match=told):
        check_idle(settings, usual_recipe(CHARACTERS, settings))


def test_the_command_takes_the_usual_settings_of_the_learner_it_names():
    assert with_learner(SINUSOID, ["--steps", "3", "--learner", "cavia"]).inner_lr == 1.0
    assert with_learner(SINUSOID, ["--learner=reptile"]).steps == 8
    assert with_learner(SINUSOID, ["--learner", "nonesuch"]) == SINUSOID


@pytest.mark.parametrize("name", ["meta-sgd", "maml++", "meta-curvature", "alfa"])
def test_a_learned_inner_optimiser_cannot_be_chosen_besides(name):
    with pytest.raises(ValueError, match="makes its own inner optimiser"):
        replace(SINUSOID.with_learner(name), inner="adam")


def trained(tmp_path, name: str) -> Run:
    run = Run(tmp_path / name)
    recipe = replace(CHARACTERS.with_learner(name).smoke(), filters=8, glyph_classes=20)
    run.start(work.config_of("glyphs-5way-1shot", recipe))
    recipe.trainer(run, None, "cpu").train()
    return run


def test_any_number_of_classes_and_one_query_at_a_time(tmp_path):
    run = trained(tmp_path, "proto-maml")
    usual, seven, single = (
        work.evaluate_run(run, num_tasks=4, **asked) for asked in ({}, {"ways": 7}, {"one_at_a_time": True})
    )
    assert "ways" not in usual
    assert seven["ways"] == 7
    assert single["one_at_a_time"]
    assert usual["tasks_digest"] == single["tasks_digest"] != seven["tasks_digest"]
    assert usual["per_step"] != single["per_step"]  # batch norm saw five queries there, and one here
    recipe = recipes.restore(run.config())
    assert len({recipe.file_name(result) for result in (usual, seven, single)}) == 3
    assert not recipe.measured_alike(seven)
    assert not recipe.measured_alike(single)


def test_a_head_of_fixed_size_is_for_its_own_number_of_classes(tmp_path):
    run = trained(tmp_path, "maml")
    assert "ways" not in work.evaluate_run(run, num_tasks=2, ways=5)
    with pytest.raises(ValueError, match=r"has outputs for 5 classes; for any number of them train with --learner"):
        work.evaluate_run(run, num_tasks=2, ways=7)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"ways": 7}, "this is regression, which has no classes"),
        ({"protocol": "one-shot-runs", "shots": 3}, "have their own ways, shots and queries"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(tmp_path, asked, told):
    run = Run(tmp_path)
    run.start(work.config_of("sinusoid-10shot", SINUSOID.smoke()))
    SINUSOID.smoke().trainer(run, None, "cpu").train()
    with pytest.raises(ValueError, match=told):
        work.evaluate_run(run, num_tasks=2, **asked)


@pytest.mark.parametrize(
    ("base", "changes", "told"),
    [
        ("sinusoid-5shot-oracle", {"learner": "cavia"}, "is about inner steps, and steps is 0"),
        ("sinusoid-5shot-pretrained", {"learner": "reptile"}, "is about inner steps, and steps is 0"),
        ("omniglot-5way-1shot-first-order", {"learner": "imaml"}, "has no first-order variant"),
        ("omniglot-5way-1shot", {"learner": "protonet"}, "takes no inner steps"),
    ],
)
def test_settings_that_contradict_the_learner_are_refused(base, changes, told):
    with pytest.raises(ValueError, match=told):
        replace(recipes.experiment(base).recipe, **changes)
