import errno
import json
import os

import pytest
import torch
from PIL import Image
from torch import nn

import headstart
from headstart.adapted import Adapted, load_run
from headstart.cli import main
from headstart.inputs import InputError
from headstart.tasks import glyphs
from headstart.training.files import FileError
from headstart.training.run import Run

SMALL = ["--smoke", "--mode", "eager", "--glyph-classes", "20"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "glyphs"
    settings = [*SMALL, "--learner", "shared-head", "--filters", "8"]
    assert main(["train", "glyphs-5way-1shot", *settings, "--out", str(folder)]) == 0
    return Run(folder)


@pytest.fixture(scope="module")
def support(tmp_path_factory):
    """Seven classes of two drawings each, as black on white files."""
    folder = tmp_path_factory.mktemp("drawings")
    images = glyphs.store(7, size=28, part="test").images
    for label in range(7):
        (folder / f"class{label}").mkdir()
        for which in range(2):
            Image.fromarray(255 - images[label, which, 0].numpy()).save(folder / f"class{label}" / f"{which}.png")
    return folder


@pytest.fixture
def adapted(run, support) -> Adapted:
    model = load_run(run)
    return model.adapt(model.inputs.support(support))


def test_what_is_loaded_predicts_the_same(adapted, support, tmp_path):
    adapted.save(tmp_path / "model")
    again = headstart.load(tmp_path / "model")
    file = support / "class3" / "1.png"
    (one,), (other,) = again.predict(file), adapted.predict(str(file))
    assert one["class"] == other["class"]
    assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-6)
    assert again.classes == tuple(f"class{label}" for label in range(7))
    assert again.about == adapted.about


def test_predictions_are_the_models_own(adapted, support):
    """What is told of a file is the softmax of the adapted module's outputs on its pixels."""
    (told,) = adapted.predict(support / "class0" / "0.png")
    pixels = torch.tensor(list(Image.open(support / "class0" / "0.png").tobytes())).reshape(1, 1, 28, 28)
    expected = adapted.model(1 - pixels.float() / 255).softmax(-1)[0]
    torch.testing.assert_close(torch.tensor(list(told["probabilities"].values())), expected)


def test_a_learner_of_five_ways_refuses_seven(support, tmp_path):
    assert main(["train", "glyphs-5way-1shot", *SMALL, "--out", str(tmp_path / "run")]) == 0
    model = load_run(Run(tmp_path / "run"))
    with pytest.raises(InputError, match="7 classes; this run tells at most 5 apart"):
        model.adapt(model.inputs.support(support))


def test_images_unlike_the_training_images_are_noted(run, support, tmp_path):
    model = load_run(run)
    assert model.inputs.support(support).notes == ()
    inverted = tmp_path / "inverted"
    for file in support.glob("*/*.png"):
        target = inverted / file.relative_to(support)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.eval(Image.open(file), lambda value: 255 - value).save(target)
    (note,) = model.inputs.support(inverted).notes
    assert "14 of 14" in note
    assert "brightness" in note


def test_the_note_reaches_the_terminal_and_does_not_stop(run, tmp_path, capsys):
    for name, colour in (("dark", 0), ("light", 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (40, 40), colour).save(tmp_path / "photos" / name / "a.png")
    arguments = ["adapt", str(run.path), "--support", str(tmp_path / "photos"), "--out", str(tmp_path / "model")]
    assert main(arguments) == 0
    assert "look unlike the training images" in capsys.readouterr().err


def test_an_adapted_model_replaces_only_its_own_kind(adapted, tmp_path):
    adapted.save(tmp_path / "model")
    adapted.save(tmp_path / "model")  # again: replaced
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("words")
    with pytest.raises(FileError, match="holds other files"):
        adapted.save(tmp_path / "thesis")
    (tmp_path / "file").write_text("words")
    with pytest.raises(FileError, match="is a file"):
        adapted.save(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model", "thesis"]


def test_a_failure_leaves_the_old_model_whole(adapted, tmp_path, monkeypatch):
    adapted.save(tmp_path / "model")
    before = (tmp_path / "model" / "adapted.json").read_text()

    def full(path, content):
        raise FileError("Cannot write: No space left on device.")

    monkeypatch.setattr("headstart.adapted.write_json", full)
    with pytest.raises(FileError, match="No space"):
        adapted.save(tmp_path / "model")
    assert (tmp_path / "model" / "adapted.json").read_text() == before
    headstart.load(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_old_model_survives_a_swap_that_fails(adapted, tmp_path, monkeypatch):
    adapted.save(tmp_path / "model")
    rename, calls = os.rename, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(FileError, match="No space left"):
        adapted.save(tmp_path / "model")
    headstart.load(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_of_ones_own_beside_a_model_are_not_lost(adapted, tmp_path):
    adapted.save(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"notes\.txt"):
        adapted.save(tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"


def test_tensors_are_predicted_too(adapted, support):
    (from_file,) = adapted.predict(support / "class0" / "0.png")
    (from_tensor,) = adapted.predict(adapted.inputs.rows(support / "class0" / "0.png").inputs)
    assert from_tensor == from_file
    with pytest.raises(InputError, match="give a path"):
        adapted.predict([{"x": 1.0}])


def test_a_query_unlike_the_training_images_has_a_note(adapted, support, tmp_path, capsys):
    Image.new("L", (40, 40), 0).save(tmp_path / "dark.png")
    (told,) = adapted.predict(tmp_path / "dark.png")
    assert "brightness" in told["note"]
    (fine,) = adapted.predict(support / "class0" / "0.png")
    assert "note" not in fine
    adapted.save(tmp_path / "model")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "model"), str(tmp_path / "dark.png")]) == 0
    assert "unlike the training images" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"classes": None}, {"seen": 3}, {"settings": []}, {"classes": ["c"] * 9}])
def test_a_damaged_description_is_told(change, adapted, support, tmp_path):
    adapted.save(tmp_path / "model")
    file = tmp_path / "model" / "adapted.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises((FileError, InputError), match=r"adapted\.json"):
        headstart.load(tmp_path / "model").predict(support / "class0" / "0.png")
    file.write_text("null")
    with pytest.raises(FileError, match=r"adapted\.json"):
        headstart.load(tmp_path / "model")


def test_what_cannot_be_followed_is_not_written(tmp_path, capsys):
    assert main(["train", "sinusoid-5shot", "--smoke", "--mode", "eager", "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "far.csv").write_text("x,y\n1,1e38\n2,3e38\n")
    arguments = ["adapt", str(tmp_path / "run"), "--support", str(tmp_path / "far.csv"), "--out", str(tmp_path / "a")]
    assert main(arguments) == 1
    assert "no longer finite" in capsys.readouterr().err
    (tmp_path / "far.csv").write_text("x,y\n1,1e39\n")
    assert main(arguments) == 1
    assert "finite numbers" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_outputs_that_are_not_finite_are_told(adapted, support):
    with torch.no_grad():
        nn.init.constant_(adapted.model.head.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        adapted.predict(support / "class0" / "0.png")


def test_a_description_that_does_not_fit_is_told(adapted, tmp_path):
    adapted.save(tmp_path / "model")
    file = tmp_path / "model" / "adapted.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "settings": {**content["settings"], "filters": 4}}))
    with pytest.raises(FileError, match=r"does not fit adapted\.json"):
        headstart.load(tmp_path / "model")
