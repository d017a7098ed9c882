import pytest
import torch

from headstart.recipes.learners import ANY_WAYS
from headstart.shipped import SHIPPED, shipped, shipped_evaluation, shipped_run
from headstart.types import Batch


def test_they_are_small_and_complete():
    folder = shipped_run("characters").path.parent
    assert {each.name for each in folder.iterdir() if each.is_dir()} == set(SHIPPED)
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 2_000_000
    for name in SHIPPED:
        files = {str(file.relative_to(folder / name)) for file in (folder / name).rglob("*") if file.is_file()}
        assert {"config.json", "checkpoints/best.json", "checkpoints/best.safetensors"} <= files
        assert (name == "characters") == ("inputs.json" in files)  # what the drawings look like
        assert any(file.startswith("evaluations/") for file in files)
        assert not [file for file in files if "resume" in file]


def test_characters_adapt_to_any_number_of_classes_by_the_support_set_alone():
    trained = shipped("characters")
    assert trained.recipe.learner in ANY_WAYS
    assert (trained.recipe.norm, trained.recipe.eval_steps, trained.inputs.size) == ("support", 3, 28)
    adapted = trained.learner.adapt(Batch(torch.rand(7, 1, 28, 28), torch.arange(7)), 3, norm="support")
    assert adapted(torch.rand(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("name", ["curve-maml", "curve-pretrained"])
def test_curves_need_no_tuning_when_they_are_loaded(name):
    trained = shipped(name)
    assert trained.recipe.tune_inner_lr == ()
    measured = shipped_evaluation(name, trained.recipe.norm)
    assert measured is not None
    assert measured["shots"] == trained.recipe.shots  # of evaluations with more and fewer
    assert measured["inner_lr"] == trained.about["inner_lr"]


def test_characters_are_as_good_as_told():
    measured = shipped_evaluation("characters", "support")
    assert measured is not None
    assert round(measured["per_step"][-1]["mean"], 3) == 0.948


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="choose one of characters, curve-maml, curve-pretrained"):
        shipped_run("digits")  # type: ignore[arg-type]
