"""The comparison of curvatures from parts of the time steps: by hand, and on the smallest run."""

from dataclasses import replace

import pytest
import torch

from benchmarks.subsample import compared, summary
from headstart.recipes import experiment
from headstart.recipes.control import ControlRecipe


def test_differences_are_paired():
    updates = {1.0: [1.0, 3.0, 5.0], 0.5: [2.0, 3.0, 7.0]}
    rows = summary({fraction: [{"gain": gain} for gain in gains] for fraction, gains in updates.items()})
    assert [row["gain"] for row in rows] == [3.0, 4.0]
    assert (rows[0]["difference"], rows[0]["standard_error"]) == (0.0, 0.0)
    assert rows[1]["difference"] == 1.0
    assert rows[1]["standard_error"] == pytest.approx(1 / 3**0.5)


def test_updates_start_from_the_same_policy_and_leave_it():
    recipe = experiment("navigation-2d").recipe.smoke()
    assert isinstance(recipe, ControlRecipe)
    recipe = replace(recipe, fisher_fraction=1.0)
    torch.manual_seed(0)
    learner = recipe.make_learner()
    before = {name: p.detach().clone() for name, p in learner.policy.named_parameters()}
    found = compared(recipe, learner, [1.0, 0.5], repeats=2, batches=1)
    assert all(torch.equal(p, before[name]) for name, p in learner.policy.named_parameters())
    assert [len(updates) for updates in found.values()] == [2, 2]
    accepted = [update for updates in found.values() for update in updates if update["kl"] > 0]
    assert accepted, "no update was accepted: nothing is compared"
    assert all(update["own_gain"] > 0 for update in accepted)  # a step along F^-1 g
