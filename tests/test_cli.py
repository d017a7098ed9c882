import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from headstart.cli import main
from headstart.tasks import glyphs
from headstart.training.checkpoint import load_parameters
from headstart.training.run import Run

SMALL = [
    "--iterations",
    "6",
    "--meta-batch",
    "2",
    "--val-tasks",
    "2",
    "--validate-every",
    "3",
    "--checkpoint-every",
    "2",
]


@pytest.fixture(scope="module")
def sinusoid_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "sinusoid"
    assert main(["train", "sinusoid-5shot", "--out", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture(scope="module")
def glyph_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "glyphs"
    small = ["--filters", "4", "--glyph-classes", "20", *SMALL]
    assert main(["train", "glyphs-5way-1shot", "--out", str(folder), *small]) == 0
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A support folder `support/NAME/*.png` of four glyphs, two drawings each but one, and queries beside it."""
    folder = tmp_path_factory.mktemp("photos")
    images = glyphs.store(4, examples=5, part="test").images
    for label, name in enumerate(["alpha", "beta", "gamma", "delta"]):
        (folder / "support" / name).mkdir(parents=True)
        for example in range(5):
            kind = "support" if example < 1 + (label > 0) else "query"
            path = (
                folder / "support" / name / f"{example}.png" if kind == "support" else folder / f"{name}{example}.png"
            )
            Image.fromarray(255 - images[label, example, 0].numpy()).save(path)
    return folder


def test_list(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "sinusoid-5shot " in text
    assert "0.67 after 1" in text
    assert main(["list", "--json"]) == 0
    listed = {e["recipe"]: e for e in json.loads(capsys.readouterr().out)}
    assert listed["omniglot-20way-1shot"]["published"][0]["value"] == 0.958
    assert listed["sinusoid-5shot"]["settings"]["iterations"] == 70_000


@pytest.mark.parametrize("command", ["", "list", "train", "evaluate", "adapt", "predict", "export", "report", "serve"])
def test_help_is_there(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*([command] if command else []), "--help"])
    assert exit_.value.code == 0
    assert "usage: headstart" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "sinusoid-5shot", "--iterations", "many"],
        ["train", "sinusoid-5shot", "--log-every", "0"],
        ["evaluate"],
    ],
)
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train"], "Name a recipe"),
        (["train", "sinusoid"], "Did you mean"),
        (["train", "sinusoid-5shot", "--device", "cuda", "--out", "x"], "no GPU"),
        (["predict", "somewhere"], "at least one file"),
        (["evaluate", "RUN", "--steps", "-1"], "--steps must be 0 or more"),
        (["adapt", "RUN", "--support", "x", "--out", "y", "--steps", "-1"], "--steps must be 0 or more"),
        (["evaluate", "RUN", "--num-tasks", "0"], "--num-tasks must be at least 1"),
        (["train", "sinusoid-5shot", "--out", "RUN"], "already holds a run"),
        (["train", "sinusoid-5shot", "--out", "RUN", "--resume", *SMALL, "--inner-lr", "0.5"], "inner_lr 0.01 -> 0.5"),
        (["train", "sinusoid-10shot", "--out", "RUN", "--resume", *SMALL], "a run of sinusoid-5shot"),
    ],
)
def test_what_cannot_work_is_told_in_a_sentence(arguments, told, sinusoid_run, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main([str(sinusoid_run) if a == "RUN" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_failure_at_work_exits_1_and_debug_shows_where(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_missing_data_is_told_without_a_download(tmp_path, capsys):
    assert main(["train", "omniglot-5way-1shot", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == 1
    assert "images_background.zip" in capsys.readouterr().err


def test_evaluate_json_is_one_object_and_is_kept(sinusoid_run, capsys):
    arguments = ["evaluate", str(sinusoid_run), "--num-tasks", "5", "--steps", "2", "--shots", "7", "--queries", "3"]
    assert main([*arguments, "--checkpoint", "last", "--seed", "8", "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out)
    assert out.count("\n") == 1
    given = {"num_tasks": 5, "shots": 7, "queries": 3, "checkpoint": "last", "seed": 8, "iteration": 6, "metric": "mse"}
    assert given.items() <= result.items()
    assert [list(step) for step in result["per_step"]] == [["step", "mean", "ci95", "median", "diverged"]] * 3
    kept = [json.loads(path.read_text()) for path in (sinusoid_run / "evaluations").glob("*.json")]
    assert result in kept
    assert main(arguments) == 0
    assert result["recipe"] in capsys.readouterr().out


def test_an_evaluation_that_cannot_be_kept_is_still_printed(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", "sinusoid-5shot", "--smoke", "--out", str(run)]) == 0
    (run / "evaluations").write_text("a file where a folder should be")
    assert main(["evaluate", str(run), "--num-tasks", "3", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["num_tasks"] == 3
    assert "Cannot write" in captured.err


def test_an_evaluation_that_nobody_reads_to_the_end_is_still_kept(tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert main(["train", "sinusoid-5shot", "--smoke", "--out", str(run)]) == 0

    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Gone())
    assert main(["evaluate", str(run), "--num-tasks", "3", "--json"]) == 1
    assert [json.loads(path.read_text())["num_tasks"] for path in (run / "evaluations").glob("*.json")] == [3]


def test_norms_differ_and_are_named(glyph_run, capsys):
    means = {}
    for norm in ("batch", "support", "running"):
        assert main(["evaluate", str(glyph_run), "--num-tasks", "40", "--queries", "4", "--norm", norm, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["norm"] == norm
        means[norm] = result["per_step"][3]["mean"]
    assert len(set(means.values())) == 3


def test_resume_before_the_first_checkpoint_begins_anew(tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["train", "sinusoid-5shot", "--out", str(run), *SMALL, "--log-every", "1"]
    assert main(arguments) == 0
    whole = [line["meta_loss"] for line in Run(run).metrics("train")]
    (run / "checkpoints" / "last.resume.safetensors").unlink()  # as if killed before it was written
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')
    assert main([*arguments, "--resume"]) == 0
    assert [line["meta_loss"] for line in Run(run).metrics("train")] == whole


def test_a_schedule_that_ends_cannot_be_lengthened(tmp_path, capsys):
    arguments = ["train", "sinusoid-5shot", "--out", str(tmp_path / "run"), *SMALL, "--schedule", "cosine"]
    assert main(arguments) == 0
    assert main([*arguments, "--iterations", "8", "--resume"]) == 2
    assert "cannot change on --resume" in capsys.readouterr().err


def test_columns_are_found_by_name(sinusoid_run, tmp_path, capsys):
    predictions = []
    for name, text in {
        "plain": "-1,0.5\n2,1.5\n",
        "named": "x,y\n-1,0.5\n2,1.5\n",
        "swapped": "id, Y ,x\na,0.5,-1\nb,1.5,2\n",
        "marked": "\ufeff-1,0.5\n2,1.5\n",
    }.items():
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
        out = tmp_path / name
        assert main(["adapt", str(sinusoid_run), "--support", str(tmp_path / f"{name}.csv"), "--out", str(out)]) == 0
        capsys.readouterr()
        assert main(["predict", str(out), str(tmp_path / "plain.csv"), "--json"]) == 0
        predictions.append([row["y"] for row in json.loads(capsys.readouterr().out)])
    assert predictions[0] == predictions[1] == predictions[2] == predictions[3]


def test_a_mistyped_command_is_answered(capsys):
    assert main(["trian"]) == 2
    assert "Did you mean train?" in capsys.readouterr().err


def test_two_norms_side_by_side(glyph_run, capsys):
    arguments = ["evaluate", str(glyph_run), "--num-tasks", "10", "--norm", "batch", "--beside", "support"]
    assert main([*arguments, "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert main(["evaluate", str(glyph_run), "--num-tasks", "10", "--norm", "support", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert (both["norm"], both["beside"]["norm"]) == ("batch", "support")
    assert both["tasks_digest"] == alone["tasks_digest"]
    assert both["beside"]["per_step"] == alone["per_step"] != both["per_step"]
    assert main(arguments) == 0
    assert "norm support" in capsys.readouterr().out


def test_tensorboard_events_are_written(tmp_path):
    pytest.importorskip("tensorboard")
    assert main(["train", "sinusoid-5shot", "--smoke", "--tensorboard", "--out", str(tmp_path / "run")]) == 0
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_resume_starts_continues_and_ends(tmp_path, capsys):
    arguments = ["train", "sinusoid-5shot", "--out", str(tmp_path / "run"), "--resume", *SMALL]
    assert main(arguments) == 0  # there was nothing to resume
    assert main(arguments) == 0
    assert "is finished" in capsys.readouterr().err
    assert main([*arguments, "--iterations", "8"]) == 0
    assert load_parameters(tmp_path / "run" / "checkpoints", "last")[1]["iteration"] == 8


def test_two_processes_do_not_train_in_one_folder(tmp_path, capsys):
    """A lock is between open files, so that one process can stand for two."""
    run = Run(tmp_path / "run")
    arguments = ["train", "sinusoid-5shot", "--out", str(run.path), "--resume", *SMALL]
    with run.alone():
        assert main(arguments) == 1
        assert "Another process is working in" in capsys.readouterr().err
        assert not run.exists
    assert main(arguments) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_saves_and_resumes(tmp_path, number, code):
    run = tmp_path / "run"
    many = ["--iterations", "100000", "--validate-every", "100000", "--checkpoint-every", "100000", "--log-every", "1"]
    command = ["train", "sinusoid-5shot", "--out", str(run), "--val-tasks", "2", *many]
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from headstart.cli import main; sys.exit(main())", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not Run(run).metrics("train") and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "--resume" in error
    reached = load_parameters(run / "checkpoints", "last")[1]["iteration"]
    assert reached >= 1
    again = [word if word != "100000" else str(reached + 2) for word in command]
    again[again.index("--validate-every") + 1] = again[again.index("--checkpoint-every") + 1] = "100000"
    assert main([*again, "--resume"]) == 0
    assert load_parameters(run / "checkpoints", "last")[1]["iteration"] == reached + 2


def test_adapt_and_predict_images(glyph_run, photos, tmp_path, capsys):
    model, files = tmp_path / "adapted", sorted(photos.glob("*.png"))
    assert main(["adapt", str(glyph_run), "--support", str(photos / "support"), "--out", str(model)]) == 0
    assert "7 examples of 4 classes" in capsys.readouterr().out
    assert main(["predict", str(model), *map(str, files), "--json"]) == 0
    together = json.loads(capsys.readouterr().out)
    assert [r["file"] for r in together] == [str(file) for file in files]
    for result in together:
        assert set(result["probabilities"]) == {"alpha", "beta", "gamma", "delta"}
        assert (
            result["probability"] == max(result["probabilities"].values()) == result["probabilities"][result["class"]]
        )
    assert main(["predict", str(model), str(files[3]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [together[3]]  # alone as among others, to the last bit
    assert main(["predict", str(model), str(files[3]), "--csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert line["class"] == together[3]["class"]
    assert float(line["probability of gamma"]) == together[3]["probabilities"]["gamma"]


def test_more_steps_fit_the_support_better(glyph_run, photos, tmp_path, capsys):
    """Adaptation does something, and `--steps` reaches it: the support images themselves become more certain."""
    certainties = []
    for steps in ("0", "5"):
        model = tmp_path / steps
        main(["adapt", str(glyph_run), "--support", str(photos / "support"), "--out", str(model), "--steps", steps])
        capsys.readouterr()
        files = sorted((photos / "support").glob("*/*.png"))
        main(["predict", str(model), *map(str, files), "--json"])
        results = json.loads(capsys.readouterr().out)
        certainties.append(sum(r["probabilities"][Path(r["file"]).parent.name] for r in results) / len(results))
    assert certainties[1] > certainties[0] + 0.1


def test_a_corrupt_image_does_not_stop_the_others(glyph_run, photos, tmp_path, capsys):
    model, bad = tmp_path / "adapted", tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    main(["adapt", str(glyph_run), "--support", str(photos / "support"), "--out", str(model)])
    capsys.readouterr()
    files = [photos / "alpha4.png", bad, tmp_path / "missing.png", photos / "beta4.png"]
    assert main(["predict", str(model), *map(str, files), "--json"]) == 1
    captured = capsys.readouterr()
    assert ["class" in r for r in json.loads(captured.out)] == [True, False, False, True]
    assert "bad.png" in captured.err
    assert "missing.png" in captured.err


def test_adapt_and_predict_rows(sinusoid_run, tmp_path, capsys):
    table, model = tmp_path / "table.csv", tmp_path / "adapted"
    table.write_text("x,y\n-1,0.5\n2,1.5\n")
    assert main(["adapt", str(sinusoid_run), "--support", str(table), "--out", str(model)]) == 0
    (tmp_path / "new.csv").write_text("x\n0.5\n1.5\n")
    capsys.readouterr()
    assert main(["predict", str(model), str(tmp_path / "new.csv"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["x"] for row in rows] == [0.5, 1.5]
    assert main(["predict", str(model), str(tmp_path / "new.csv"), "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(line["y"]) for line in lines] == [row["y"] for row in rows]
    assert main(["predict", str(model), str(tmp_path / "new.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split("\t")[1] == "1.5"
    assert main(["predict", str(model), str(tmp_path / "new.csv"), "--csv", "--json"]) == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x,y\n", "no rows"),
        ("x,y\n1,two\n", "line 2"),
        ("1\n", "line 1"),
        ("x,y\n1,inf\n", "line 2"),
        ("nan,1\n2,3\n", "line 1"),
        ("x,z\n1,2\n", "no y"),
        ("x,y\n1," + "9" * 200_000, "field larger"),
    ],
)
def test_a_wrong_table_is_told(text, told, sinusoid_run, tmp_path, capsys):
    (tmp_path / "table.csv").write_text(text)
    code = main(["adapt", str(sinusoid_run), "--support", str(tmp_path / "table.csv"), "--out", str(tmp_path / "a")])
    assert code == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_wrong_support_folder_is_told(glyph_run, photos, tmp_path, capsys):
    (tmp_path / "one" / "only").mkdir(parents=True)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "empty" / "b").mkdir()
    for folder, told in (("nowhere", "not a folder"), ("one", "1 class folder"), ("empty", "is empty")):
        code = main(["adapt", str(glyph_run), "--support", str(tmp_path / folder), "--out", str(tmp_path / "a")])
        assert code == 1
        assert told in capsys.readouterr().err


def test_a_damaged_adapted_model_is_told(sinusoid_run, tmp_path, capsys):
    (tmp_path / "table.csv").write_text("1,2\n")
    main(["adapt", str(sinusoid_run), "--support", str(tmp_path / "table.csv"), "--out", str(tmp_path / "a")])
    (tmp_path / "a" / "model.safetensors").write_bytes(b"short")
    assert main(["predict", str(tmp_path / "a"), str(tmp_path / "table.csv")]) == 1
    assert "model.safetensors is damaged" in capsys.readouterr().err
