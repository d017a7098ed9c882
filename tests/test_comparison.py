import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from headstart import comparison
from headstart.cli import main
from headstart.training.checkpoint import load_parameters
from headstart.training.files import read_json
from headstart.training.run import Run

SMALL = ["--smoke", "--num-tasks", "4"]
GLYPHS = ["--filters", "2", "--glyph-classes", "10"]


def told(capsys) -> dict:
    """The one JSON object on standard output."""
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.fixture(scope="module")
def sines(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sines"
    arguments = ["sinusoid-5shot", "--learners", "maml", "meta-sgd", "--meta-lr", "0.01", *SMALL]
    assert main(["compare", *arguments, "--out", str(folder)]) == 0
    return folder


def test_each_learner_has_a_run_like_any_other(sines, tmp_path):
    arguments = ["sinusoid-5shot", "--smoke", "--learner", "meta-sgd", "--meta-lr", "0.01"]
    assert main(["train", *arguments, "--out", str(tmp_path / "alone")]) == 0
    alone, compared = Run(tmp_path / "alone"), Run(sines / "meta-sgd")
    assert compared.config() == alone.config()
    assert [line["meta_loss"] for line in compared.metrics("train")] == [
        line["meta_loss"] for line in alone.metrics("train")
    ]
    assert main(["evaluate", str(compared.path), "--num-tasks", "3"]) == 0


def test_the_file_says_what_was_measured(sines):
    content = read_json(sines / "comparison.json")
    assert (content["recipe"], content["metric"], content["iterations"]) == ("sinusoid-5shot", "mse", 4)
    assert content["given"] == ["--meta-lr", "0.01", "--smoke"]
    for entry, learner in zip(content["learners"], ("maml", "meta-sgd"), strict=True):
        (kept,) = (read_json(path) for path in (sines / learner / "evaluations").glob("*-4tasks-*"))
        assert entry["learner"] == learner
        assert entry["settings"]["meta_lr"] == 0.01
        assert entry["results"]["published"]["per_step"] == kept["per_step"]
        assert entry["results"]["published"]["mean"] == kept["per_step"][10]["mean"]
        assert list(entry["results"]) == ["published"]  # in regression nothing depends on the other queries
        assert entry["iteration"] == entry["planned"] == 4
        assert entry["ms_per_iteration"] > 0
        assert entry["memory_mib"] is not None
        assert entry["error"] is None


def test_what_is_finished_is_not_done_again(sines, capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing was left to do")

    monkeypatch.setattr(comparison.subprocess, "Popen", refuse)
    monkeypatch.setattr(comparison.work, "evaluate_run", refuse)
    before = read_json(sines / "comparison.json")
    again = ["compare", "sinusoid-5shot", "--learners", "maml", "meta-sgd", "--meta-lr", "0.01", *SMALL]
    assert main([*again, "--out", str(sines), "--json"]) == 0
    assert told(capsys) == before == read_json(sines / "comparison.json")
    assert main([*again, "--out", str(sines)]) == 0
    assert "meta-sgd" in capsys.readouterr().out


def test_two_processes_do_not_compare_in_one_folder(tmp_path, capsys):
    run = Run(tmp_path / "c")
    with run.alone():
        assert main(["compare", "sinusoid-5shot", "--learners", "maml", *SMALL, "--out", str(run.path)]) == 1
    assert "Another process is working in" in capsys.readouterr().err
    assert [path.name for path in run.path.iterdir()] == [".lock"]  # nothing was begun


def test_one_that_fails_is_named_and_does_not_stop_the_others(tmp_path, capsys):
    """The step size, which only one of them has a use for, ruins it; the other is not told of it."""
    arguments = ["glyphs-5way-1shot", "--learners", "maml", "protonet", "--inner-lr", "1e38", *GLYPHS, *SMALL]
    assert main(["compare", *arguments, "--out", str(tmp_path / "c"), "--json"]) == 1
    maml, protonet = told(capsys)["learners"]
    assert maml["error"].startswith("Stopped at iteration 1: the meta-")
    assert maml["results"] == {}
    assert protonet["error"] is None
    assert {name: found["norm"] for name, found in protonet["results"].items()} == {
        "published": "batch",
        "one_at_a_time": "support",
        "one_at_a_time_batch": "batch",
    }
    assert protonet["settings"]["steps"] == 0  # usual for it
    assert "inner_lr" not in protonet["settings"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "Name a recipe"),
        (["sinusoid"], "Did you mean"),
        (["navigation-2d"], "learns to act"),
        (["sinusoid-5shot-averaged"], "Only maml"),
        (["sinusoid-5shot", "--learners", "maml", "protonet"], "for regression choose another"),
        (["sinusoid-5shot", "--learners", "maml", "anil", "--rank", "2"], "--rank would change nothing"),
        (["sinusoid-5shot", "--learners", "maml", "--resume"], "--resume"),
        (["sinusoid-5shot", "--learners", "maml", "--learner", "anil"], "--learner:"),
        (["sinusoid-5shot", "--learners", "maml", "--num-tasks", "0"], "--num-tasks must be"),
        (["sinusoid-5shot", "--learners", "maml", "--adapt-only", "nothing"], "nothing"),
        (["sinusoid-5shot", "--learners", "maml", "--smoke", "--out", "SINES/maml"], "a folder of its own"),
        (["sinusoid-5shot", "--learners", "anil", "maml", "--smoke", "--out", "SINES"], "meta_lr 0.01 -> 0.001"),
    ],
)
def test_what_cannot_work_is_told_before_anything_begins(arguments, error, sines, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(sines.rglob("*"))
    assert main(["compare", *(a.replace("SINES", str(sines)) for a in arguments)]) == 2
    assert error in capsys.readouterr().err
    assert sorted(sines.rglob("*")) == before
    assert not list(tmp_path.iterdir())


def test_a_wrong_option_of_one_of_them_is_wrong_usage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["--no-such-thing", "1"], ["--iterations", "many"], ["--learners", "mamml"]):
        with pytest.raises(SystemExit) as exit_:
            main(["compare", "sinusoid-5shot", "--learners", "maml", *arguments])
        assert exit_.value.code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_what_was_interrupted_goes_on_with_the_same_numbers(number, code, tmp_path):
    settings = ["--iterations", "600", "--mode", "eager", "--chunk-size", "25", "--val-tasks", "2", "--log-every", "1"]
    train = ["sinusoid-5shot", *settings, "--checkpoint-every", "600", "--validate-every", "600"]
    assert main(["train", *train, "--out", str(tmp_path / "whole")]) == 0
    command = ["compare", *train, "--learners", "maml", "--num-tasks", "2", "--out", str(tmp_path / "c")]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "c" / "maml")
    wait_until(lambda: bool(run.metrics("train")))
    process.send_signal(number)
    assert process.wait(120) == code
    wait_until(lambda: run.resumable)  # where the parent was killed, the child saves a moment later
    reached = load_parameters(run.checkpoints, "last")[1]["iteration"]
    assert 1 <= reached < 600
    (entry,) = read_json(tmp_path / "c" / "comparison.json")["learners"]
    assert entry["results"] == {}
    assert main(command) == 0
    losses = [[line["meta_loss"] for line in r.metrics("train")] for r in (whole, run)]
    assert losses[0] == losses[1]
    ends = [load_parameters(r.checkpoints, "last")[0] for r in (whole, run)]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)
    (entry,) = read_json(tmp_path / "c" / "comparison.json")["learners"]
    assert entry["iteration"] == 600
    assert "published" in entry["results"]


def wait_until(condition) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
