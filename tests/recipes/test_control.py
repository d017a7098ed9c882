import json
import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from headstart import recipes
from headstart.inner import SGD
from headstart.models.policy import Gaussian
from headstart.recipes import ControlRecipe, work
from headstart.recipes.control import Conditions, returns
from headstart.rl.envs.navigation import Navigation
from headstart.training.checkpoint import load_parameters, load_state
from headstart.training.run import Run

EXPERIMENTS = {name: e for name, e in recipes.experiments().items() if isinstance(e.recipe, ControlRecipe)}
PROBLEMS = ("navigation-2d", "half-cheetah-velocity", "half-cheetah-direction", "ant-velocity", "ant-direction")


def recipe_of(name: str) -> ControlRecipe:
    recipe = EXPERIMENTS[name].recipe
    assert isinstance(recipe, ControlRecipe)
    return recipe


def small(name="navigation-2d", **changes) -> ControlRecipe:
    return replace(recipe_of(name).smoke(), **{"iterations": 4, "hidden": (8,), **changes})


def trained(path, recipe: ControlRecipe, name="navigation-2d") -> Run:
    run = Run(path)
    run.start(work.config_of(name, recipe))
    recipe.trainer(run, None, "cpu").train()
    return run


def test_there_is_each_problem_with_each_method():
    methods = {*("", "-pretrained", "-random", "-oracle")}
    wanted = {problem + method for problem in PROBLEMS for method in methods}
    assert set(EXPERIMENTS) == wanted | {"navigation-2d-context", "half-cheetah-direction-context"}


@pytest.mark.parametrize(
    ("name", "step", "value"),
    [
        ("navigation-2d", 1, -11.68),
        ("navigation-2d", 4, -3.35),
        ("navigation-2d-context", 1, -13.90),
        ("half-cheetah-velocity", 1, -78.57),
        ("half-cheetah-direction", 1, 293.19),
        ("half-cheetah-direction-random", 3, 86.18),
        ("half-cheetah-direction-context", 3, -42.50),
        ("ant-velocity-pretrained", 0, -1.83),
        ("ant-direction", 3, 499.11),
        ("ant-direction-oracle", 0, 524.80),
    ],
)
def test_published_returns(name, step, value):
    """Section 2.4 of the reference."""
    assert {p.step: p.value for p in EXPERIMENTS[name].published}[step] == value


def test_every_method_has_its_published_curve():
    for name, e in EXPERIMENTS.items():
        steps = [p.step for p in e.published]
        assert steps == ([0] if name.endswith("-oracle") else list(range(len(steps))))
        assert len(steps) > recipe_of(name).eval_steps


def test_settings_are_those_of_the_policies_evaluated():
    """Section 3.2 of the reference, its row on the evaluated snapshots; for half-cheetah direction on the script."""
    told = {
        problem: (r.rollouts, r.meta_batch, r.inner_lr, r.max_kl, r.eval_rollouts, r.eval_lr, r.eval_lr_later)
        for problem in PROBLEMS
        if (r := recipe_of(problem))
    }
    assert told == {
        "navigation-2d": (20, 20, 0.5, 0.01, 40, 0.5, 0.25),
        "half-cheetah-velocity": (10, 40, 0.1, 0.01, 20, 0.1, 0.05),
        "half-cheetah-direction": (20, 40, 0.1, 0.01, 20, 0.1, 0.05),
        "ant-velocity": (20, 40, 0.1, 0.01, 20, 0.1, 0.05),
        "ant-direction": (40, 40, 0.1, 0.01, 40, 0.1, 0.001),
    }
    firsts = {
        "navigation-2d": (0.5, 0.5),
        "half-cheetah-velocity": (0.02, 0.1),
        "half-cheetah-direction": (0.2, 0.5),
        "ant-velocity": (0.2, 1.0),
        "ant-direction": (0.2, 1.0),
    }
    for problem, rates in firsts.items():
        baselines = [recipe_of(f"{problem}-{method}") for method in ("pretrained", "random")]
        assert tuple(r.eval_lr for r in baselines) == rates
        share = 0.01 if problem == "ant-direction" else 0.5
        assert [r.eval_lr_later for r in baselines] == [share * rate for rate in rates]
    for problem in PROBLEMS:
        joint, oracle = recipe_of(f"{problem}-pretrained"), recipe_of(f"{problem}-oracle")
        assert (joint.steps, joint.select_step, joint.oracle, joint.max_kl) == (0, 0, False, 0.01)
        assert (oracle.steps, oracle.eval_steps, oracle.oracle, oracle.max_kl) == (0, 0, True, 0.01)
        if problem != "navigation-2d":
            assert (joint.meta_batch, joint.rollouts) == (oracle.meta_batch, oracle.rollouts) == (100, 1)
    common = {(r.horizon, r.discount, r.gae_lambda, r.hidden, r.activation) for e in EXPERIMENTS if (r := recipe_of(e))}
    untrained = (100, 0.99, 1.0, (100, 100), "tanh")  # navigation's, by its test script
    assert common == {(100, 0.99, 1.0, (100, 100), "relu"), (200, 0.99, 1.0, (100, 100), "relu"), untrained}
    assert recipe_of("navigation-2d-random").activation == "tanh"
    others = {r.meta_update for e in EXPERIMENTS if e != "navigation-2d-pretrained" and (r := recipe_of(e))}
    first_order = recipe_of("navigation-2d-pretrained")
    assert (others, first_order.meta_update, first_order.meta_lr) == ({"trpo"}, "policy-gradient", 0.01)


def everything(run: Run):
    """All that a run left behind, but times."""
    state = load_state(run.checkpoints)
    del state["seconds"]
    for record in (metrics := run.metrics()):
        del record["seconds"]
    best, about = load_parameters(run.checkpoints, "best")
    return [state, metrics, best, about["iteration"], load_parameters(run.checkpoints, "last")[0]]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("navigation-2d", {}),
        ("navigation-2d", {"meta_update": "ppo"}),
        ("navigation-2d", {"meta_update": "policy-gradient"}),
        ("navigation-2d", {"steps": 0, "select_step": 0}),
        ("half-cheetah-velocity", {}),
        ("ant-direction", {"horizon": 60}),  # in which some ants fall
    ],
)
def test_resumed_is_uninterrupted(name, changes, tmp_path):
    if name != "navigation-2d":
        pytest.importorskip("mujoco", reason="simulated robots need the extra rl")
    recipe = small(name, **changes)
    whole = trained(tmp_path / "whole", recipe, name)
    parts, seen = Run(tmp_path / "parts"), []
    parts.start(work.config_of(name, recipe))
    assert not recipe.trainer(parts, None, "cpu").train(observe=lambda i, _: seen.append(i), stop=lambda: len(seen) > 1)
    torch.rand(3)  # whatever happened to the global random state in between
    resumed = recipe.trainer(parts, None, "cpu")
    resumed.resume()
    assert resumed.iteration == 2
    assert resumed.train()
    ours, theirs = (torch.utils._pytree.tree_flatten(everything(run)) for run in (whole, parts))
    assert ours[1] == theirs[1]
    for x, y in zip(ours[0], theirs[0], strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    first, last = (
        load_parameters(run.checkpoints, "last")[0]
        for run in (trained(tmp_path / "0", replace(recipe, iterations=0), name), whole)
    )
    assert any(not torch.equal(first[name], last[name]) for name in first)  # there was something to resume


def test_random_keeps_the_initialisation(tmp_path):
    recipe = small("navigation-2d-random", iterations=0)
    run = trained(tmp_path, recipe, "navigation-2d-random")
    torch.manual_seed(recipe.seed)
    initial = recipe.make_learner().state_dict()
    for name in ("best", "last"):
        parameters, about = load_parameters(run.checkpoints, name)
        assert about["iteration"] == 0
        assert_close(parameters, dict(initial), rtol=0, atol=0)
    assert run.resumable
    assert work.evaluate_run(run, num_tasks=2)["iteration"] == 0


def test_an_untrained_policy_is_drawn_for_each_task(monkeypatch):
    monkeypatch.setattr(Gaussian, "sample", lambda policy, generator: policy.mean)  # nothing else is random
    recipe = small("navigation-2d-random", iterations=0)
    tasks = recipe.family().sample(3, torch.Generator().manual_seed(0))
    table = returns(recipe.trajectory(recipe.make_learner(), tasks, 1, 2, torch.Generator().manual_seed(1)))
    for index, row in enumerate(table):
        torch.manual_seed(recipe.seed + index)
        one, rng = replace(recipe, iterations=1), torch.Generator().manual_seed(2)
        assert_close(returns(one.trajectory(one.make_learner(), tasks[index : index + 1], 1, 2, rng))[0], row)


def test_one_untrained_policy_for_all_tasks_is_not_measured_alike():
    recipe = small("navigation-2d-random", iterations=0)
    asked = Conditions(num_tasks=2, steps=1, rollouts=recipe.eval_rollouts)
    evaluation = recipe.evaluate(recipe.make_learner(), asked, None)
    assert evaluation["initialisations"] == 2
    assert recipe.measured_alike(evaluation)
    del evaluation["initialisations"]  # as those before there was a policy for each task
    assert not recipe.measured_alike(evaluation)


def test_evaluation_halves_the_step_size_and_averages_episodes_then_tasks():
    class Learner:
        problem = small().family()
        asked: tuple = ()

        def trajectory(self, tasks, steps, *, rollouts, generator, inners, budget, streams, starts):
            self.asked = (len(tasks), steps, rollouts, [inner.lr for inner in inners], budget, streams)
            for step in range(steps + 1):
                yield {}, Episodes(torch.arange(len(tasks))[:, None] + torch.tensor([0.0, 2.0 * step]))

    class Episodes:
        def __init__(self, values):
            self.values = values

        def mean_returns(self):
            return self.values.mean(1)

    learner = Learner()
    result = recipe_of("navigation-2d").evaluate(learner, Conditions(), None)  # pyright: ignore
    assert learner.asked == (40, 3, 40, [0.5, 0.25, 0.25], "steps", 40)
    assert [step["mean"] for step in result["per_step"]] == [19.5, 20.5, 21.5, 22.5]
    spread = 1.96 * float(torch.arange(40.0).std(correction=0)) / math.sqrt(40)
    assert [step["ci95"] for step in result["per_step"]] == pytest.approx([spread] * 4, rel=1e-5)
    assert (result["num_tasks"], result["rollouts"], result["inner_lr"], result["inner_lr_later"]) == (
        40,
        40,
        0.5,
        0.25,
    )


def test_evaluation_repeats_itself_and_its_seed_means_other_tasks(tmp_path):
    run = trained(tmp_path, small())
    first, again, other = (work.evaluate_run(run, num_tasks=3, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first["tasks_digest"] != other["tasks_digest"]
    assert [step["step"] for step in first["per_step"]] == [0, 1, 2, 3]
    json.dumps(first, allow_nan=False)


@pytest.mark.parametrize(
    ("changes", "asked", "published"),
    [
        ({}, {}, True),
        ({"meta_update": "ppo"}, {}, True),
        ({}, {"rollouts": 3}, False),
        ({"eval_lr": 0.1}, {}, False),
        ({"horizon": 9}, {}, False),
        ({"timestep": 0.005}, {}, False),
        ({"context": 2}, {}, False),
        ({"oracle": True}, {}, False),
        ({"steps": 0, "select_step": 0}, {}, False),
        ({"iterations": 0}, {}, False),
    ],
)
def test_published_returns_stand_beside_nothing_else(changes, asked, published, tmp_path, monkeypatch):
    """Against a small experiment that is given the published numbers, so that it takes no time."""
    usual = small(iterations=1)
    known = EXPERIMENTS["navigation-2d"]._replace(recipe=usual)
    monkeypatch.setattr(work, "experiments", lambda: {known.name: known})
    run = trained(tmp_path, replace(usual, **changes))
    result = work.evaluate_run(run, num_tasks=2, **asked)
    assert result["published"] == ([p._asdict() for p in known.published] if published else [])


def test_only_the_context_adapts():
    learner = recipe_of("navigation-2d-context").make_learner()
    assert learner.adapted_names == ("context",)
    assert learner.policy.context.shape == (learner.problem.observation_size,)
    assert set(recipe_of("navigation-2d").make_learner().adapted_names) >= {"log_std", "body.0.weight", "head.bias"}


def test_an_oracle_sees_the_task():
    seeing, not_seeing = (
        recipe_of(name).family().observation_size for name in ("navigation-2d-oracle", "navigation-2d")
    )
    assert (seeing, not_seeing) == (4, 2)


@pytest.mark.parametrize("meta_update", ["trpo", "policy-gradient", "ppo"])
def test_settings_reach_the_meta_update(meta_update):
    values = {"max_kl": 0.3, "cg_iterations": 2, "damping": 0.2, "backtracks": 3, "backtrack_ratio": 0.7}
    values |= {"fisher_fraction": 0.5, "epochs": 2, "clip": 0.1, "inner_kl": 0.4}
    recipe = small(meta_update=meta_update, meta_lr=0.25, seed=3, **values)
    updater = recipe.updater(recipe.make_learner())
    looked_at = {name: value for name, value in values.items() if name not in recipe.idle}
    assert {name: getattr(updater, name) for name in looked_at} == looked_at
    if meta_update != "trpo":
        assert updater.optimizer.param_groups[0]["lr"] == 0.25
    assert "meta_lr" in recipe.idle if meta_update == "trpo" else "max_kl" in recipe.idle


def test_differences_take_the_whole_episodes():
    recipe = small(hessian="finite-differences", fisher_fraction=1.0)
    assert recipe.updater(recipe.make_learner()).hessian == "finite-differences"
    recipe.check(torch.device("cpu"))
    with pytest.raises(ValueError, match="give both, --hessian finite-differences --fisher-fraction 1"):
        small(hessian="finite-differences", fisher_fraction=0.25).check(torch.device("cpu"))


def test_an_evaluation_counts_as_it_is_asked_to():
    """Small steps to goals close by end episodes early: more of them fit into the same number of steps."""

    class CloseBy(Navigation):
        def sample(self, size, generator):
            return 0.02 * super().sample(size, generator)

    torch.manual_seed(0)
    recipe = small(budget="episodes")
    learner = recipe.make_learner()
    learner.problem = CloseBy(horizon=10)
    torch.nn.init.constant_(learner.policy.log_std, -4.0)
    before = {name: p.clone() for name, p in learner.state_dict().items()}
    counted = {}
    for budget in ("episodes", "steps", None):
        result = recipe.evaluate(learner, Conditions(num_tasks=2, budget=budget), None)
        assert result["budget"] == (budget or "episodes")
        assert learner.budget == "episodes"
        assert_close(dict(learner.state_dict()), before, rtol=0, atol=0)
        counted[budget] = result["per_step"]
    assert counted[None] == counted["episodes"] != counted["steps"]


def test_settings_reach_learner_and_environments():
    recipe = small(inner_lr=0.3, steps=2, rollouts=3, discount=0.9, gae_lambda=0.8, objective="ratio", hidden=(5, 6))
    learner = recipe.make_learner()
    assert learner.inner == SGD(0.3)
    assert (learner.steps, learner.rollouts, learner.objective) == (2, 3, "ratio")
    assert (learner.discount, learner.gae_lambda) == (0.9, 0.8)
    assert [m.out_features for m in learner.policy.modules() if isinstance(m, torch.nn.Linear)] == [5, 6, 2]
    assert any(isinstance(m, torch.nn.Tanh) for m in small(activation="tanh").make_learner().policy.modules())
    assert learner.problem.horizon == recipe.horizon == 10


def test_settings_reach_the_simulator():
    pytest.importorskip("mujoco", reason="simulated robots need the extra rl")
    pytest.importorskip("gymnasium", reason="the robots' models are Gymnasium's")
    sizes = {}
    for problem in PROBLEMS[1:]:
        recipe = replace(
            recipe_of(problem), frame_skip=5, timestep=0.003, velocity="position-difference", threads=1, horizon=7
        )
        family = recipe.family()
        assert family.timestep == 0.003
        assert (family.frame_skip, family.velocity, family.threads, family.horizon) == (5, "position-difference", 1, 7)
        usual = recipe_of(problem).family()
        assert (usual.frame_skip, usual.velocity, usual.horizon) == (1, "subtree", 200)
        assert usual.timestep == usual.robot.timestep
        sizes[problem] = (usual.observation_size, usual.action_size)
        assert recipe_of(f"{problem}-oracle").family().observation_size == usual.observation_size + 1
    assert set(sizes.values()) == {(20, 6), (125, 8)}
    assert recipe_of("half-cheetah-direction-context").context == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"rollouts": 0},
        {"meta_batch": 0},
        {"iterations": -1},
        {"horizon": 0},
        {"threads": 0},
        {"timestep": 0.0},
        {"timestep": 5.0},
        {"max_kl": 0.0},
        {"max_kl": math.nan},
        {"discount": 1.5},
        {"fisher_fraction": 0.0},
        {"eval_lr": -0.1},
        {"context": -1},
        {"select_step": -1},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(recipe_of("navigation-2d"), **wrong)


def test_a_context_needs_adaptation():
    with pytest.raises(ValueError, match="context"):
        replace(recipe_of("navigation-2d-pretrained"), context=2)
