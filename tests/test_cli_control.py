import json
import sys
from pathlib import Path

import pytest
import torch

from headstart import recipes
from headstart.cli import main
from headstart.training.checkpoint import load_parameters
from headstart.training.run import Run


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "navigation"
    assert main(["train", "navigation-2d", "--smoke", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def random_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "random"
    assert main(["train", "navigation-2d-random", "--out", str(folder)]) == 0
    return folder


def test_a_run_is_a_run_like_any_other(smoke_run):
    lines = Run(smoke_run).metrics("train")
    assert [line["iteration"] for line in lines] == [1, 2]
    assert all({"return_before", "return_after", "meta_loss", "kl"} <= set(line) for line in lines)
    assert {line["metric"] for line in Run(smoke_run).metrics("validation")} == {"return"}
    files = {str(path.relative_to(smoke_run)) for path in smoke_run.rglob("*") if path.is_file()}
    names = {f"checkpoints/{name}" for name in ("best.safetensors", "best.json", "last.safetensors", "last.json")}
    names.add("checkpoints/last.resume.safetensors")
    assert files == names | {"config.json", "environment.json", "metrics.jsonl", ".lock"}


def test_the_untrained_policy_measured_by_the_papers_protocol(random_run, capsys):
    assert main(["evaluate", str(random_run), "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1
    told = {"recipe": "navigation-2d-random", "metric": "return", "num_tasks": 40, "rollouts": 40, "iteration": 0}
    assert told.items() <= result.items()
    assert [step["step"] for step in result["per_step"]] == [0, 1, 2, 3]
    assert [p["value"] for p in result["published"]] == [-82.66, -57.96, -53.84, -46.81, -42.91]
    # Sums of 100 distances to the goal: neither means over time nor discounted, which would be above -1 and -64.
    assert -200 < result["per_step"][0]["mean"] < -30
    assert result["per_step"][3]["mean"] > result["per_step"][0]["mean"]
    kept = list((random_run / "evaluations").glob("*.json"))
    assert [path.name for path in kept] == ["best-40tasks-40rollouts-by-steps-3steps-seed0.json"]
    assert json.loads(kept[0].read_text()) == result


def test_an_evaluation_as_a_table(smoke_run, capsys):
    arguments = ["evaluate", str(smoke_run), "--num-tasks", "3", "--rollouts", "4", "--steps", "2", "--seed", "9"]
    assert main([*arguments, "--checkpoint", "last"]) == 0
    text = capsys.readouterr().out
    assert "return\nover 3 tasks" in text
    assert "4 rollouts per step, budget steps, inner step 0.5, later 0.25" in text
    assert [row.split()[0] for row in text.splitlines()[2:]] == ["step", "0", "1", "2"]
    assert (smoke_run / "evaluations" / "last-3tasks-4rollouts-by-steps-2steps-seed9.json").exists()


def test_the_bar_shows_returns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["train", "navigation-2d", "--smoke", "--out", str(tmp_path / "run")]) == 0
    assert "after=-" in capsys.readouterr().err


def test_other_threads_may_go_on(tmp_path, capsys):
    pytest.importorskip("mujoco", reason="the extra rl is not installed")
    sizes = [*("--meta-batch", "1", "--rollouts", "1"), *("--val-tasks", "1", "--horizon", "3", "--eval-rollouts", "1")]
    arguments = ["train", "half-cheetah-velocity", *sizes, "--out", str(tmp_path / "run"), "--resume"]
    assert main([*arguments, "--iterations", "1", "--threads", "1"]) == 0
    assert main([*arguments, "--iterations", "2", "--threads", "2"]) == 0
    assert Run(tmp_path / "run").config()["settings"]["threads"] == 2
    assert main([*arguments, "--iterations", "2", "--max-kl", "0.5"]) == 2
    assert "max_kl 0.01 -> 0.5" in capsys.readouterr().err


def test_resumed_by_command_is_uninterrupted(tmp_path):
    arguments = ["train", "navigation-2d", "--meta-batch", "2", "--rollouts", "2", "--val-tasks", "2", "--horizon", "9"]
    for name, counts in {"whole": ("3",), "parts": ("2", "3")}.items():
        for count in counts:
            out = str(tmp_path / name)
            assert main([*arguments, "--iterations", count, "--validate-every", "1", "--out", out, "--resume"]) == 0
    whole, parts = (load_parameters(tmp_path / name / "checkpoints", "last")[0] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    metrics = [[{**line, "seconds": 0} for line in Run(tmp_path / name).metrics()] for name in ("whole", "parts")]
    # The shorter run validated at its end; both did after every iteration.
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shots", "5"], "--shots"),
        (["--queries", "5"], "--queries"),
        (["--norm", "support"], "--norm"),
        (["--beside", "support"], "--beside"),
        (["--protocol", "sampled"], "--protocol"),
        (["--shots", "5", "--norm", "batch"], "--shots, --norm"),
        (["--data", "somewhere"], "reads no data"),
        (["--device", "cuda"], "computed on cpu only"),
        (["--rollouts", "0"], "--rollouts must be at least 1"),
    ],
)
def test_options_of_supervised_evaluation_are_refused(arguments, told, smoke_run, capsys):
    assert main(["evaluate", str(smoke_run), "--num-tasks", "2", *arguments]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.out == ""


def test_rollouts_are_for_control_only(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "sinusoid-5shot", "--smoke", "--mode", "eager", "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--rollouts", "5"]) == 2
    assert "--rollouts: " in capsys.readouterr().err
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_tasks"] == 600


@pytest.mark.parametrize(
    ("recipe", "arguments", "told"),
    [
        ("navigation-2d", ["--meta-lr", "0.1"], "--meta-lr would change nothing here: meta_update is trpo"),
        ("navigation-2d", ["--meta-update", "ppo", "--max-kl", "0.1"], "--max-kl would change nothing"),
        ("navigation-2d", ["--frame-skip", "5"], "--frame-skip would change nothing"),
        ("navigation-2d", ["--timestep", "0.01"], "--timestep would change nothing here: navigation-2d has no simul"),
        ("navigation-2d-pretrained", ["--inner-lr", "0.2"], "--inner-lr would change nothing"),
        ("navigation-2d", ["--device", "cuda"], "computed on cpu only"),
        ("navigation-2d", ["--data", "somewhere"], "reads no data"),
    ],
)
def test_a_setting_that_would_change_nothing_is_refused(recipe, arguments, told, tmp_path, capsys):
    assert main(["train", recipe, "--smoke", "--out", str(tmp_path / "run"), *arguments]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "setting", "other"),
    [
        ("navigation-2d", "--problem", "half-cheetah-velocity"),
        ("ant-direction-pretrained", "--problem", "ant-velocity"),
        ("omniglot-5way-1shot", "--dataset", "glyphs"),
    ],
)
def test_a_recipe_stays_what_its_name_says(recipe, setting, other, tmp_path, capsys):
    assert main(["train", recipe, "--smoke", "--out", str(tmp_path / "run"), setting, other]) == 2
    told = capsys.readouterr().err
    assert f"{setting} {other}: the recipe {recipe} is of " in told
    assert "cannot be overridden" in told
    assert not (tmp_path / "run").exists()


def test_finite_differences_ask_for_both_options(tmp_path, capsys):
    arguments = ["train", "navigation-2d", "--smoke", "--out", str(tmp_path / "run"), "--hessian", "finite-differences"]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert "--hessian finite-differences --fisher-fraction 1" in told
    assert not (tmp_path / "run").exists()
    assert main([*arguments, "--fisher-fraction", "1"]) == 0


def test_a_run_older_than_a_setting_is_restored_and_resumed(tmp_path, capsys):
    """Settings with defaults taken out of config.json, as if they had not been there when the run was started."""
    folder = tmp_path / "run"
    sizes = ["--meta-batch", "2", "--rollouts", "2", "--val-tasks", "2", "--horizon", "9", "--eval-rollouts", "2"]
    arguments = ["train", "navigation-2d", "--out", str(folder), "--resume", *sizes, "--iterations"]
    assert main([*arguments, "1"]) == 0
    config = json.loads((folder / "config.json").read_text())
    now = recipes.restore(config)
    for name, default in {"timestep": None, "budget": "steps", "damping": 1e-5}.items():
        assert config["settings"].pop(name) == default
    (folder / "config.json").write_text(json.dumps(config))
    assert recipes.restore(config) == now
    assert main(["evaluate", str(folder), "--num-tasks", "2", "--checkpoint", "last"]) == 0
    assert main([*arguments, "2", "--damping", "0.5"]) == 2
    assert "(damping 1e-05 -> 0.5)" in capsys.readouterr().err
    assert main([*arguments, "2"]) == 0
    assert load_parameters(folder / "checkpoints", "last")[1]["iteration"] == 2


@pytest.mark.parametrize(
    "arguments",
    [["--shots", "5"], ["--norm", "batch"], ["--meta-update", "reinforce"], ["--rollouts", "0"], ["--max-kl", "0"]],
)
def test_wrong_settings_exit_2(arguments, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "navigation-2d", "--out", str(tmp_path / "run"), *arguments])
    assert exit_.value.code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["mujoco", "gymnasium"])
@pytest.mark.parametrize("recipe", ["half-cheetah-velocity", "ant-direction-random"])
def test_a_missing_extra_names_its_install_command(missing, recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    assert main(["train", recipe, "--smoke", "--out", str(tmp_path / "run")]) == 1
    assert "pip install 'headstart[rl]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["list"]) == 0
    assert recipe in capsys.readouterr().out


def test_navigation_needs_no_extra(tmp_path, monkeypatch):
    for missing in ("mujoco", "gymnasium"):
        monkeypatch.setitem(sys.modules, missing, None)
    assert main(["train", "navigation-2d", "--smoke", "--out", str(tmp_path / "run")]) == 0


def test_a_policy_adapts_in_python(smoke_run, tmp_path, capsys):
    assert main(["adapt", str(smoke_run), "--support", "x.csv", "--out", str(tmp_path / "adapted")]) == 1
    assert "learner.adapt(task" in capsys.readouterr().err
    assert not (tmp_path / "adapted").exists()
    assert main(["predict", str(smoke_run), "x.csv"]) == 1
    assert "learner.adapt(task" in capsys.readouterr().err


def test_the_python_that_the_error_shows(smoke_run):
    import headstart.recipes.work

    _, learner, _ = headstart.recipes.work.trained(Run(smoke_run))
    task = torch.tensor([0.3, -0.2])
    policy = learner.adapt(task, steps=1, generator=torch.Generator().manual_seed(0))
    assert type(policy) is type(learner.policy)
    assert not torch.equal(policy.log_std, learner.policy.log_std)


def test_list_shows_published_returns(capsys):
    assert main(["list"]) == 0
    assert "published return: -40.41 after 0, -11.68 after 1" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    listed = {e["recipe"]: e for e in json.loads(capsys.readouterr().out)}
    assert listed["ant-direction"]["settings"]["rollouts"] == 40
    assert listed["ant-direction"]["metric"] == "return"


def test_help_names_the_settings(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["train", "half-cheetah-velocity", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--rollouts", "--max-kl", "--frame-skip", "--eval-lr-later"))
    assert "--shots" not in text
    assert "--queries" not in text
