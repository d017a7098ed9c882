"""Every learner by its name on the command line: stopped and resumed it is uninterrupted."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils import _pytree as pytree

from headstart.recipes import experiment, work
from headstart.recipes.characters import CharacterRecipe
from headstart.recipes.learners import LEARNERS, LearnerName
from headstart.recipes.recipe import Part
from headstart.tasks import ClassStore, glyphs
from headstart.training.checkpoint import load_parameters, load_state
from headstart.training.run import Run
from headstart.training.trainer import Trainer

NAME = "glyphs-5way-1shot"
draw = glyphs.store


@functools.cache
def few(classes: int, size: int, part: Part) -> ClassStore:
    return draw(10, examples=4, size=size, part=part)


@pytest.fixture(autouse=True)
def _few_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn once: that would take longer than all the rest."""
    monkeypatch.setattr(glyphs, "store", few)


def recipe_of(learner: LearnerName) -> CharacterRecipe:
    """Small; MAML++ changes its order, and is still annealing its losses, in the second half."""
    recipe = experiment(NAME).recipe
    assert isinstance(recipe, CharacterRecipe)
    recipe = replace(recipe.with_learner(learner).smoke(), filters=4, mode="eager", chunk_size=None)
    if learner == "maml++":
        return replace(recipe, first_order_share=0.75, multi_step_loss=1.0)
    return recipe


def trainer_of(path: Path, learner: LearnerName) -> Trainer:
    run, recipe = Run(path), recipe_of(learner)
    if not run.exists:
        run.start(work.config_of(NAME, recipe))
    return recipe.trainer(run, None, "cpu")


def everything(path: Path) -> list:
    """All that a run left behind, but times."""
    state, metrics = load_state(path / "checkpoints"), Run(path).metrics()
    del state["seconds"]
    for record in metrics:
        del record["seconds"]
    best, last = (load_parameters(path / "checkpoints", which)[0] for which in ("best", "last"))
    return [state, metrics, json.loads((path / "checkpoints" / "best.json").read_text())["iteration"], best, last]


@pytest.mark.parametrize("learner", LEARNERS)
def test_resumed_is_uninterrupted(learner, tmp_path):
    whole = trainer_of(tmp_path / "whole", learner)
    assert whole.train()
    seen = []
    stopped = trainer_of(tmp_path / "parts", learner)
    assert not stopped.train(observe=lambda i, _: seen.append(i), stop=lambda: len(seen) == 2)
    torch.rand(3)  # whatever happened to the global random state in between
    resumed = trainer_of(tmp_path / "parts", learner)
    resumed.resume()
    assert resumed.iteration == 2
    assert resumed.train()
    leaves, structure = pytree.tree_flatten(everything(tmp_path / "whole"))
    others, other = pytree.tree_flatten(everything(tmp_path / "parts"))
    assert structure == other
    assert all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(leaves, others, strict=True)
    )
    moved = [r["meta_loss"] for r in Run(tmp_path / "whole").metrics("train")]
    assert len(set(moved)) == 4
