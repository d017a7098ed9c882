import json
import sys

import pytest
import torch

import headstart
from headstart import recipes
from headstart.adapted import Trained, load_run
from headstart.cli import main
from headstart.export import ArgumentError, ExportError, of_run
from headstart.export_command import Export
from headstart.recipes.work import config_of
from headstart.tasks import glyphs
from headstart.training.run import Run
from headstart.types import Batch, Task
from headstart.usage import UsageError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "glyphs"
    settings = ["--smoke", "--mode", "eager", "--learner", "shared-head", "--filters", "2"]
    assert main(["train", "glyphs-5way-1shot", *settings, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def drawings():
    return glyphs.store(3, size=28, part="test").images.float() / 255


@pytest.fixture(scope="module")
def adapted_folder(run, drawings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted")
    trained = load_run(Run(run))
    support = headstart.inputs.Support(Batch(drawings[:, 0], torch.arange(3)), ("a", "b", "c"))
    trained.adapt(support).save(folder)
    return folder


def test_a_runs_adaptation(run, drawings, tmp_path, capsys):
    """A run of 5 ways for 3, as a program: in it and beside it what goes in and comes out."""
    assert Export(run, tmp_path / "adapt.pt2", ways=3, steps=1).run() == 0
    assert "support_inputs [examples, 1, 28, 28]" in capsys.readouterr().out
    told = json.loads((tmp_path / "adapt.pt2.json").read_text())
    assert (told["exports"], told["ways"], told["steps"], told["norm"]) == ("adaptation", 3, 1, "support")
    assert told["outputs"] == [{"name": "outputs", "shape": [2, "queries", 3], "dtype": "float32"}]
    assert [each["dtype"] for each in told["inputs"]] == ["float32", "int64", "float32"]
    assert (told["preprocessing"]["size"], told["preprocessing"]["ink"]) == (28, True)
    within = {"headstart.json": ""}
    program = torch.export.load(tmp_path / "adapt.pt2", extra_files=within)
    assert json.loads(within["headstart.json"]) == told
    support, queries = Batch(drawings[:, 0], torch.arange(3)), drawings[:2, 1]
    expected = load_run(Run(run)).learner.predict([Task(support, Batch(queries, ()))], 1, "support")[0]
    found = program.module()(*support, queries)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_adapted_model(adapted_folder, drawings, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    assert Export(adapted_folder, tmp_path / "model.onnx").run() == 0
    told = json.loads((tmp_path / "model.onnx.json").read_text())
    assert (told["exports"], told["classes"]) == ("predictor", ["a", "b", "c"])
    assert [each["name"] for each in told["outputs"]] == ["outputs", "probabilities"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    within = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in within.items()} == told
    _, found = session.run(None, {"inputs": drawings[:, 1].numpy()})
    expected = headstart.load(adapted_folder).model(drawings[:, 1]).softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"out": "model.bin"}, "must end in .onnx"),
        ({"steps": -1}, "--steps must be 0 or more"),
        ({"shots": 0}, "--shots must be at least 1"),
        ({"ways": 1}, "--ways must be at least 2"),
        ({"source": "."}, "neither a run nor an adapted model"),
    ],
)
def test_wrong_use_is_one_sentence(run, tmp_path, settings, told):
    given = {"source": run, "out": tmp_path / "model.pt2", **settings}
    with pytest.raises(UsageError, match=told):
        Export(**{key: tmp_path / value if isinstance(value, str) else value for key, value in given.items()}).run()
    assert list(tmp_path.iterdir()) == []


def test_an_adapted_model_has_no_steps_left(adapted_folder, tmp_path):
    with pytest.raises(UsageError, match=r"--steps, --queries: .* is adapted already"):
        Export(adapted_folder, tmp_path / "model.pt2", steps=1, queries=1).run()


def test_policies_adapt_to_episodes(tmp_path):
    pytest.importorskip("mujoco", reason="the extra `rl` is not installed")
    control = next(e for e in recipes.experiments().values() if e.recipe.kind == "control")
    Run(tmp_path / "run").start(config_of(control.name, control.recipe))
    with pytest.raises(headstart.inputs.InputError, match="a policy"):
        Export(tmp_path / "run", tmp_path / "model.pt2").run()


def test_ways_that_the_run_cannot_tell_apart():
    recipe = recipes.experiment("glyphs-5way-1shot").recipe
    trained = Trained(recipe.make_learner(), recipe, recipe.inputs({}), {}, {})
    for ways, told in ((3, "tells 5 classes apart, and --ways is 3"), (1, "must be at least 2, got 1")):
        with pytest.raises(ArgumentError, match=told):
            of_run(trained, ways=ways)


def test_wrong_arguments_end_with_2_and_failed_work_with_1(run, adapted_folder, tmp_path, monkeypatch, capsys):
    def told(*arguments):
        code = main(["export", *map(str, arguments)])
        return code, capsys.readouterr().err

    out = tmp_path / "model.pt2"
    assert told(run, "--out", out, "--ways", 1) == (2, "headstart: --ways must be at least 2, got 1.\n")
    assert told(run, "--out", tmp_path)[0] == 2
    monkeypatch.setattr("headstart.export.sources.predictor", fails)
    assert told(adapted_folder, "--out", out) == (1, "headstart: It cannot be recorded.\n")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert told(adapted_folder, "--out", tmp_path / "model.onnx")[0] == 1
    assert list(tmp_path.iterdir()) == []


def fails(*_):
    raise ExportError("It cannot be recorded.")


def test_the_exported_model_is_not_overwritten(adapted_folder):
    """In its own folder, and by its own name."""
    kept = (adapted_folder / "adapted.json").read_bytes()
    out = adapted_folder / "adapted.pt2"
    try:
        assert Export(adapted_folder, out).run() == 0
        assert (adapted_folder / "adapted.json").read_bytes() == kept
        assert json.loads((adapted_folder / "adapted.pt2.json").read_text())["exports"] == "predictor"
    finally:
        for each in adapted_folder.glob("adapted.pt2*"):
            each.unlink()
