"""Whatever a person gives that cannot work is told in one sentence, with the right exit code, and nothing is written.

Each case sets something up in an empty folder and gives the arguments of a command; `{name}` in them is a run, an
adapted model or a support set that is in order.
"""

import errno
import json
import logging
import os
import socket
from pathlib import Path

import pytest
from contracts.folders import (
    CLASSES,
    CURVE,
    FLEET,
    Setup,
    classes,
    corrupt,
    damaged,
    drawn,
    folders,
    module,
    nothing,
    only_bombs,
    raw,
    text,
    weights,
)

from headstart.cli import main

TINY = ["--smoke", "--mode", "eager"]
PHOTOS = [*TINY, "--size", "16", "--ways", "2", "--queries", "1", "--eval-queries", "1"]
TABLE = [*TINY, "--shots", "2", "--queries", "2", "--eval-queries", "2", "--task-column", "device", "--target", "y"]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, Path]:
    """Runs, adapted models and support sets in order."""
    root = tmp_path_factory.mktemp("good")
    (root / "fleet.csv").write_text(FLEET)
    (root / "classes.csv").write_text(CLASSES)
    (root / "curve.csv").write_text(CURVE)
    photos = drawn(root / "photos", 6, 3)
    drawn(root / "support", 2, 1)
    trainings = {
        "letters": ["glyphs-5way-1shot", *TINY, "--glyph-classes", "20", "--filters", "2", "--learner", "maml"],
        "waves": ["sinusoid-5shot", *TINY],
        "images": ["my-images", "--data", str(photos), *PHOTOS],
        "table": ["my-table", "--data", str(root / "fleet.csv"), *TABLE],
        "labels": ["my-table", "--data", str(root / "classes.csv"), *TABLE],
        "policy": ["navigation-2d", "--smoke"],
    }
    for name, arguments in trainings.items():
        assert main(["train", *arguments, "--out", str(root / name)]) == 0
    for run, support in (("images", "support"), ("waves", "curve.csv"), ("table", "fleet.csv")):
        arguments = ["adapt", str(root / run), "--support", str(root / support), "--out", str(root / f"adapted-{run}")]
        assert main(arguments) == 0
    return {path.stem: path for path in root.iterdir()}


ON_PHOTOS = ["train", "my-images", "--data", "photos", *PHOTOS, "--out", "run"]
ON_GOOD = ["train", "my-images", "--data", "{photos}", *PHOTOS, "--out", "run"]
ON_TABLE = ["train", "my-table", "--data", "table.csv", *TABLE, "--out", "run"]
OWN = "import torch\ndef make(outputs):\n    "

CASES: dict[str, tuple[Setup, list[str], str]] = {
    # Your images
    "images: no data named": (nothing, ["train", "my-images", "--out", "run"], "--data"),
    "images: nowhere": (nothing, ON_PHOTOS, "does not exist"),
    "images: a file": (text("photos", "x"), ON_PHOTOS, "is a file"),
    "images: empty folder": (folders("photos"), ON_PHOTOS, "no sub-folders"),
    "images: one class": (classes(1, 5), ON_PHOTOS, "too few"),
    "images: too few classes": (classes(4, 5), ON_PHOTOS, "too few"),
    "images: empty classes": (folders(*(f"photos/{i}" for i in range(6))), ON_PHOTOS, "no images"),
    "images: all corrupt": (corrupt, ON_PHOTOS, "no images"),
    "images: zip bombs": (only_bombs, ON_PHOTOS, "no images"),
    "images: too few each": (classes(6, 1), ON_PHOTOS, "too few"),
    "images: one way": (nothing, [*ON_GOOD, "--ways", "1"], "ways must be 2 or more"),
    "images: size 0": (nothing, [*ON_GOOD, "--size", "0"], "size must be 16 or more"),
    "images: no such module": (nothing, [*ON_GOOD, "--model", "nowhere_at_all:make"], "cannot be imported"),
    "images: no such factory": (nothing, [*ON_GOOD, "--model", "math:make"], "cannot be imported"),
    "images: a factory that fails": (
        module(OWN + "raise OSError('no')"),
        [*ON_GOOD, "--model", "{own}:make"],
        "failed: OSError: no",
    ),
    "images: a factory of nothing": (module(OWN + "return 3"), [*ON_GOOD, "--model", "{own}:make"], "gave a int"),
    "images: other outputs": (
        module(OWN + "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 9))"),
        [*ON_GOOD, "--model", "{own}:make"],
        "[2, 9]",
    ),
    "images: weights missing": (nothing, [*ON_GOOD, "--weights", "none.safetensors"], "none.safetensors"),
    "images: weights damaged": (
        raw("w.safetensors", b"short"),
        [*ON_GOOD, "--weights", "w.safetensors"],
        "safetensors",
    ),
    "images: weights of another": (weights, [*ON_GOOD, "--weights", "other.safetensors"], "it lacks body.0.0.weight"),
    # Your tables
    "table: nowhere": (nothing, ON_TABLE, "There is no file table.csv"),
    "table: a folder": (folders("table.csv"), ON_TABLE, "folder"),
    "table: empty": (text("table.csv", ""), ON_TABLE, "empty"),
    "table: header only": (text("table.csv", "device,heat,y\n"), ON_TABLE, "no rows"),
    "table: binary": (raw("table.csv", bytes(range(256)) * 9), ON_TABLE, "table.csv is no text"),
    "table: a truncated Parquet file": (
        raw("t.parquet", b"PAR1abc"),
        [*ON_TABLE, "--data", "t.parquet"],
        "Cannot read t.parquet as Parquet",
    ),
    "table: no such target": (
        text("table.csv", FLEET),
        [*ON_TABLE, "--target", "z"],
        "no column z: its columns are device, heat, place, y",
    ),
    "table: no such task column": (
        text("table.csv", FLEET),
        [*ON_TABLE, "--task-column", "z"],
        "no column z: its columns are device, heat, place, y",
    ),
    "table: no target named": (text("table.csv", FLEET), [*ON_TABLE, "--target", ""], "Say by --target which column"),
    "table: one task": (
        text("table.csv", FLEET.replace("d1", "d0").replace("d2", "d0")[:200]),
        ON_TABLE,
        "device has 1 different value",
    ),
    "table: few rows per task": (
        text("table.csv", FLEET),
        [*ON_TABLE, "--shots", "50"],
        "0 of 12 tasks have 52 rows or more",
    ),
    "table: the same column twice": (text("table.csv", "device,y,y\na,1,2\n"), ON_TABLE, "more than one column y"),
    "table: target all missing": (
        text("table.csv", "device,heat,y\na,1,\nb,2,\n"),
        ON_TABLE,
        "y is missing in every row",
    ),
    "table: columns all missing": (
        text("table.csv", "device,heat,y\n" + "".join(f"d{i % 9},,{i}\n" for i in range(99))),
        ON_TABLE,
        "no column to predict y from (heat: no value",
    ),
    "table: text among target numbers": (
        text("table.csv", FLEET.replace(",22\n", ",many\n")),
        [*ON_TABLE, "--target-kind", "number"],
        "y is 'many'",
    ),
    # Adaptation
    "adapt: no run": (nothing, ["adapt", "gone", "--support", "{support}", "--out", "a"], "gone is not a run folder"),
    "adapt: path with ..": (
        nothing,
        ["adapt", "{images}", "--support", "../../gone", "--out", "a"],
        "../../gone is not a folder",
    ),
    "adapt: a file": (nothing, ["adapt", "{images}", "--support", "{curve}", "--out", "a"], "not a folder"),
    "adapt: one class": (
        classes(1, 1),
        ["adapt", "{images}", "--support", "photos", "--out", "a"],
        "has 1 class folders",
    ),
    "adapt: empty class": (folders("s/a", "s/b"), ["adapt", "{images}", "--support", "s", "--out", "a"], "is empty"),
    "adapt: unreadable image": (corrupt, ["adapt", "{images}", "--support", "photos", "--out", "a"], "cannot read"),
    "adapt: huge image": (only_bombs, ["adapt", "{images}", "--support", "photos", "--out", "a"], "pixels"),
    "adapt: too many classes": (
        classes(6, 1),
        ["adapt", "{letters}", "--support", "photos", "--out", "a"],
        "at most 5",
    ),
    "adapt: no number": (
        text("t.csv", "x,y\n1,nan\n"),
        ["adapt", "{waves}", "--support", "t.csv", "--out", "a"],
        "line 2",
    ),
    "adapt: a label never seen": (
        text("t.csv", "device,heat,place,y\nd,1,north,middling\n"),
        ["adapt", "{labels}", "--support", "t.csv", "--out", "a"],
        "middling",
    ),
    "adapt: a column missing": (
        text("t.csv", "device,place,y\nd,north,3\n"),
        ["adapt", "{table}", "--support", "t.csv", "--out", "a"],
        "no column heat",
    ),
    "adapt: a policy": (nothing, ["adapt", "{policy}", "--support", "{support}", "--out", "a"], "policy"),
    "adapt: steps below 0": (
        nothing,
        ["adapt", "{waves}", "--support", "{curve}", "--out", "a", "--steps", "-1"],
        "must be 0 or more, got -1",
    ),
    "adapt: out is a file": (text("a", "x"), ["adapt", "{waves}", "--support", "{curve}", "--out", "a"], "is a file"),
    "adapt: out is in use": (
        lambda folder, good: (folders("a")(folder, good), (folder / "a" / "thesis.txt").write_text("x")),
        ["adapt", "{waves}", "--support", "{curve}", "--out", "a"],
        "other files",
    ),
    "adapt: a truncated checkpoint": (
        damaged("waves", "checkpoints/best.safetensors", None),
        ["adapt", "copy", "--support", "{curve}", "--out", "a"],
        "best.safetensors",
    ),
    "adapt: a damaged config": (
        damaged("waves", "config.json", b"{"),
        ["adapt", "copy", "--support", "{curve}", "--out", "a"],
        "config.json",
    ),
    "adapt: a config of another version": (
        damaged("waves", "config.json", json.dumps({"recipe": "x", "kind": "y", "settings": {}}).encode()),
        ["adapt", "copy", "--support", "{curve}", "--out", "a"],
        "version",
    ),
    # Prediction
    "predict: no model": (folders("m"), ["predict", "m", "{curve}"], "headstart adapt"),
    "predict: a truncated model": (
        damaged("adapted-waves", "model.safetensors", None),
        ["predict", "copy", "{curve}"],
        "model.safetensors",
    ),
    "predict: no such image": (nothing, ["predict", "{adapted-images}", "gone.png"], "gone.png"),
    "predict: text for an image": (nothing, ["predict", "{adapted-images}", "{curve}"], "cannot read"),
    "predict: an image for a table": (nothing, ["predict", "{adapted-waves}", "{support}/class0/0.png"], "CSV"),
    "predict: a column missing": (
        text("t.csv", "place\nnorth\n"),
        ["predict", "{adapted-table}", "t.csv"],
        "no column heat",
    ),
    "predict: two forms": (nothing, ["predict", "{adapted-waves}", "{curve}", "--csv", "--json"], "give one"),
    "predict: nothing": (nothing, ["predict", "{adapted-waves}"], "at least one"),
    # Export
    "export: neither run nor model": (
        folders("m"),
        ["export", "m", "--out", "e.onnx"],
        "neither a run nor an adapted model",
    ),
    "export: another suffix": (nothing, ["export", "{adapted-waves}", "--out", "e.tflite"], "must end in .onnx"),
    "export: a policy": (nothing, ["export", "{policy}", "--out", "e.onnx"], "policy"),
    # The page
    "serve: a port that is none": (nothing, ["serve", "--port", "70000"], "65535"),
    "serve: a run of another kind": (nothing, ["serve", "{waves}", "--port", "0"], "whose inputs are no images"),
    "serve: no run": (nothing, ["serve", "gone", "--port", "0"], "gone is not a run folder"),
}
USAGE = (
    *("predict: two forms", "predict: nothing", "adapt: steps below 0", "serve: a port that is none"),
    *("export: neither run nor model", "export: another suffix"),
)
"""Wrong in the arguments themselves, beside all of training's: exit code 2, where work that fails ends with 1."""


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def told(arguments: list[str], capsys) -> tuple[int, str]:
    """The exit code, and the one sentence on standard error."""
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as exit_:  # of the parser
        code = exit_.code
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, error


@pytest.mark.parametrize("name", CASES)
def test_it_is_told_and_nothing_is_written(name, good, tmp_path, monkeypatch, capsys):
    pytest.importorskip({"table": "polars", "export": "onnx", "serve": "starlette"}.get(name.split(":")[0], "json"))
    setup, arguments, phrase = CASES[name]
    setup(tmp_path, good)
    monkeypatch.chdir(tmp_path)
    values = {key: str(path) for key, path in good.items()}
    if (tmp_path / "name").exists():
        values["own"] = (tmp_path / "name").read_text()
    before = tree(tmp_path)
    code, error = told([argument.format_map(values) for argument in arguments], capsys)
    assert phrase in error
    assert max(map(len, error.splitlines())) < 500
    wrong_usage = arguments[0] == "train" or name in USAGE
    assert code == (2 if wrong_usage else 1), error
    assert tree(tmp_path) == before


def test_there_are_more_than_forty():
    assert len(CASES) > 40


def test_a_full_disk(good, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "a"
    code, error = told(["adapt", str(good["waves"]), "--support", str(good["curve"]), "--out", str(out)], capsys)
    assert code == 1
    assert "No space left on device" in error
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken(capsys):
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, error = told(["serve", "--port", str(taken.getsockname()[1])], capsys)
    assert code == 1
    assert "port" in error.lower()


@pytest.fixture(autouse=True)
def as_it_was():
    """The command line configures logging for the whole process."""
    yield
    logging.getLogger().handlers.clear()
