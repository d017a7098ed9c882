"""From a folder of images to predictions, on folders made of generated characters."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import headstart
from headstart import recipes
from headstart.cli import main
from headstart.models import Conv4
from headstart.models.resnet12 import ResNet12
from headstart.recipes import ImageRecipe, work
from headstart.recipes.learners import LEARNERS
from headstart.recipes.own_model import Logits, load_weights
from headstart.tasks import glyphs
from headstart.tasks.folder import load
from headstart.training.run import Run

SMALL = ["--size", "16", "--filters", "4", "--ways", "3", "--queries", "2", "--eval-queries", "2", "--mode", "eager"]

MODULE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, outputs)

    def forward(self, images):
        return self.head(self.body(images).mean((-2, -1)))


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Answering(Net):
    def forward(self, images):
        return Answer(super().forward(images))


class Twice(Net):
    def forward(self, images):
        return (super().forward(images),) * 2


def twice(outputs):
    return Twice(outputs)


def net(outputs):
    return Net(outputs)


def answering(outputs):
    return Answering(outputs)


def one_too_many(outputs):
    return Net(outputs + 1)


def raising(outputs):
    raise KeyError("no such size")


def no_module(outputs):
    return 5


def no_tensor(outputs):
    return nn.LSTM(16, 3)


def grey_only(outputs):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(outputs))


def other_arguments(classes):
    return Net(classes)


NUMBER = 3
"""


def draw(folder: Path, classes: int, examples: int = 4, part: str = "train") -> Path:
    for number, images in enumerate(glyphs.store(classes, examples=examples, size=20, part=part).images):
        (folder / f"class{number:02d}").mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(255 - image[0].numpy()).save(folder / f"class{number:02d}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def own(tmp_path, monkeypatch) -> str:
    """The name of a module in the current folder."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return name


def recipe(photos: Path, learner="proto-maml", **changes) -> ImageRecipe:
    small = {"size": 16, "filters": 4, "ways": 3, "queries": 2, "eval_queries": 2, "mode": "eager"}
    base = recipes.experiment("my-images").recipe.with_learner(learner)
    return replace(base, **{**small, **changes}).fitted(photos).smoke()


def trained(path: Path, photos: Path, settings: ImageRecipe) -> Run:
    run = Run(path)
    run.start(work.config_of("my-images", settings, photos))
    settings.trainer(run, photos, "cpu").train()
    return run


def test_from_a_folder_to_predictions(photos, tmp_path, capsys):
    run, new = tmp_path / "run", draw(tmp_path / "new", 4, 2, "test")
    assert main(["train", "my-images", "--data", str(photos), "--smoke", *SMALL, "--out", str(run)]) == 0
    kept = json.loads((run / "config.json").read_text())["settings"]
    parts = [set(kept[f"{part}_classes"]) for part in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 3, 3]
    assert len(set.union(*parts)) == 12
    assert main(["evaluate", str(run), "--num-tasks", "3", "--json"]) == 0  # it knows where the images are
    assert json.loads(capsys.readouterr().out)["metric"] == "accuracy"
    assert main(["adapt", str(run), "--support", str(new), "--out", str(tmp_path / "adapted")]) == 0
    files = sorted(new.glob("*/1.png"))
    assert main(["predict", str(tmp_path / "adapted"), *map(str, files), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.partition("\n[")[2].join(["[", ""]))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    for row in rows:
        assert list(row["probabilities"]) == [f"class{n:02d}" for n in range(4)]  # four, and three in training
        assert sum(row["probabilities"].values()) == pytest.approx(1)


def test_a_run_goes_on_where_it_stopped(photos, tmp_path, capsys):
    asked = ["train", "my-images", "--data", str(photos), "--smoke", *SMALL, "--out", str(tmp_path)]
    assert main(asked) == 0
    assert "6 classes to train on, 3 to choose the best checkpoint by" in capsys.readouterr().err
    assert main(asked) == 2
    assert main([*asked, "--resume"]) == 0
    assert "is finished: 4 iterations" in capsys.readouterr().err


def test_a_folder_that_grows_does_not_stop_a_run_or_move_its_classes(photos, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "photos")
    asked = ["train", "my-images", "--data", str(folder), "--smoke", *SMALL, "--out", str(tmp_path / "run")]
    assert main(asked) == 0
    parts = Run(tmp_path / "run").config()["settings"]
    shutil.copytree(next(folder.iterdir()), folder / "one more")
    assert main([*asked, "--resume", "--iterations", "6"]) == 0
    after = Run(tmp_path / "run").config()["settings"]
    assert all(after[name] == parts[name] for name in ("train_classes", "val_classes", "test_classes"))
    assert main([*asked, "--resume", "--iterations", "6", "--train-classes", "one more"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_training_learns(photos, tmp_path):
    """Shades of grey are easy: those of classes never seen are told apart."""
    for number in range(9):
        (tmp_path / "photos" / f"shade{number}").mkdir(parents=True)
        for index in range(6):
            shade = 28 * number + 2 * index
            Image.new("L", (16, 16), shade).save(tmp_path / "photos" / f"shade{number}" / f"{index}.png")
    settings = replace(
        recipe(tmp_path / "photos", channels=1, backbone="conv4", filters=8),
        iterations=30,
        meta_batch=4,
        validate_every=30,
    )
    run = trained(tmp_path / "run", tmp_path / "photos", settings)
    accuracies = work.evaluate_run(run, num_tasks=50)["per_step"]
    assert accuracies[-1]["mean"] > 0.8  # of three classes


@pytest.mark.parametrize("learner", LEARNERS)
def test_every_learner_trains(learner, photos, tmp_path):
    run = trained(tmp_path, photos, recipe(photos, learner))
    result = work.evaluate_run(run, num_tasks=2)
    assert all(step["mean"] is not None for step in result["per_step"])


@pytest.mark.parametrize("backbone", ["conv4", "resnet12", "net"])
@pytest.mark.parametrize(("learner", "adapts"), [("anil", "head."), ("bias-only", "bias"), ("lora", "low_rank")])
def test_learners_that_adapt_a_part(learner, adapts, backbone, photos, own, tmp_path):
    backbone = f"{own}:net" if backbone == "net" else backbone
    settings = recipe(photos, learner, backbone=backbone)
    names = settings.make_learner().adapted_names
    assert names
    assert all(adapts in name for name in names)
    run = trained(tmp_path / "run", photos, settings)
    adapted = headstart.adapted.load_run(run, checkpoint="last")
    before = {name: p.clone() for name, p in adapted.learner.model.named_parameters()}
    model = adapted.adapt(adapted.inputs.support(draw(tmp_path / "new", 3, 1, "test"))).model
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= set(names)
    assert changed


def test_backbones_are_made_as_asked(photos):
    plain = recipe(photos).model()
    assert isinstance(plain, Conv4)
    assert plain.body[0][0].in_channels == 3
    deep = recipe(photos, backbone="resnet12", filters=8, channels=1).model()
    assert isinstance(deep, ResNet12)
    assert deep.body[0].shortcut[0].weight.shape == (8, 1, 1, 1)


@pytest.mark.parametrize("factory", ["net", "answering"])
def test_a_network_of_ones_own(factory, photos, own, tmp_path):
    run = tmp_path / "run"
    asked = ["--data", str(photos), "--smoke", "--mode", "eager", "--size", "16", "--ways", "3", "--queries", "2"]
    asked += ["--eval-queries", "2", "--model", f"{own}:{factory}"]
    assert main(["train", "my-images", *asked, "--out", str(run)]) == 0
    settings, learner, _ = work.trained(Run(run))
    assert settings.backbone == f"{own}:{factory}"
    assert isinstance(learner.model, Logits) == (factory == "answering")
    assert main(["adapt", str(run), "--support", str(draw(tmp_path / "new", 4, 1, "test")), "--out", "model"]) == 0
    assert len(headstart.load("model").predict(tmp_path / "new" / "class00" / "0.png")[0]["probabilities"]) == 4


WRONG = {
    "nowhere:net": "cannot be imported: ModuleNotFoundError",
    "OWN:nonesuch": "cannot be imported: AttributeError",
    "OWN:NUMBER": "name a function that makes the network",
    "OWN:raising": "failed: KeyError: 'no such size'",
    "OWN:other_arguments": "unexpected keyword argument 'outputs'",
    "OWN:no_module": "gave a int: return a torch.nn.Module",
    "OWN:no_tensor": "fails on inputs of shape",
    "OWN:grey_only": "fails on inputs of shape [2, 3, 16, 16]",
    "OWN:twice": "returns a tuple: return the logits",
    "OWN:one_too_many": "gives outputs of shape [2, 4] for inputs of shape [2, 3, 16, 16]: they must be [2, 3]",
}


@pytest.mark.parametrize("given", WRONG)
def test_networks_that_cannot_be_used_are_told_before_training(given, photos, own, tmp_path, capsys):
    name = given.replace("OWN", own)
    asked = ["--data", str(photos), "--size", "16", "--ways", "3", "--queries", "2", "--eval-queries", "2"]
    assert main(["train", "my-images", *asked, "--model", name, "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert WRONG[given] in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_weights_are_where_training_starts(photos, tmp_path):
    given = Conv4(7, channels=3, filters=4)  # with a head for other classes
    save_file(given.state_dict(), tmp_path / "weights.safetensors")
    settings = recipe(photos, weights=str(tmp_path / "weights.safetensors"))
    started = settings.start().state_dict()
    assert all(torch.equal(started[name], value) for name, value in given.state_dict().items() if "head" not in name)
    assert started["head.weight"].shape == (3, 4)
    run = trained(tmp_path / "run", photos, replace(settings, meta_lr=0.0))
    (tmp_path / "weights.safetensors").unlink()  # a run holds all that it needs
    _, learner, _ = work.trained(run)
    assert torch.equal(learner.model.body[0][0].weight, given.body[0][0].weight)


def test_weights_go_into_the_model_that_answers(tmp_path):
    inside = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
    given = {name: torch.randn_like(value) for name, value in inside.state_dict().items()}
    save_file(given, tmp_path / "weights.safetensors")
    load_weights(Logits(inside), tmp_path / "weights.safetensors")
    assert all(torch.equal(inside.state_dict()[name], value) for name, value in given.items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: {**tensors, "more": torch.zeros(1)}, "the network has no more"),
        (lambda tensors: {n: t for n, t in tensors.items() if "body.0.0" not in n}, "it lacks body.0.0.weight"),
        (lambda tensors: {n: t[:2] if "body.1.0" in n else t for n, t in tensors.items()}, "of another shape are body"),
        (lambda tensors: {}, r"it lacks .* and \d+ more"),
    ],
)
def test_weights_of_another_network_are_refused(change, told, photos, tmp_path):
    tensors = change(dict(Conv4(3, channels=3, filters=4).state_dict()))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=told):
        recipe(photos, weights=str(tmp_path / "weights.safetensors")).check(torch.device("cpu"))


@pytest.mark.parametrize("content", [None, b"", b"\x80\x04}q\x00."])
def test_only_safetensors_are_read(content, photos, tmp_path, capsys):
    if content is not None:
        (tmp_path / "weights.pt").write_bytes(content)
    asked = ["--data", str(photos), *SMALL, "--weights", str(tmp_path / "weights.pt"), "--out", str(tmp_path / "run")]
    assert main(["train", "my-images", *asked]) == 2
    assert "weights.pt as safetensors" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([], "12 usable classes are too few"),
        (["--ways", "3", "--shots", "3"], "0 usable classes are too few"),
        (["--ways", "1"], "ways must be 2 or more"),
        (["--size", "8"], "size must be 16 or more"),
        (["--model", "resnet18"], "backbone must be conv4 or resnet12, or a network of your own"),
        (["--test-classes", "moose"], "no usable classes moose"),
        (["--model", "a:b", "--filters", "8"], "--filters would change nothing here"),
        (["--model", "a:b", "--learner", "cavia"], "cavia needs a place for its context"),
        (["--backbone", "resnet12", "--filters", "5", "--ways", "3"], "even number of channels"),
    ],
)
def test_settings_that_cannot_be_are_told_in_a_sentence(asked, told, photos, tmp_path, capsys):
    asked = ["--data", str(photos), "--queries", "2", "--eval-queries", "2", *asked, "--out", str(tmp_path / "run")]
    try:
        code = main(["train", "my-images", *asked])
    except SystemExit as ended:  # the parser's own way
        code = ended.code
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert code == 2
    assert told in said
    assert not (tmp_path / "run").exists()


def test_a_folder_is_needed(tmp_path, capsys):
    assert main(["train", "my-images", "--out", str(tmp_path / "run")]) == 2
    assert "say where it is by --data" in capsys.readouterr().err
    assert main(["train", "my-images", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")]) == 2
    assert "none does not exist: give a folder" in capsys.readouterr().err


def test_parts_stay_apart_whatever_becomes_of_the_folder(tmp_path):
    photos = draw(tmp_path / "photos", 9)
    settings = recipe(photos)
    (photos / "class00" / "more.png").write_bytes((photos / "class00" / "0.png").read_bytes())
    draw(tmp_path / "others", 3)
    for folder in (tmp_path / "others").iterdir():
        folder.rename(photos / f"new {folder.name}")
    for part in ("train", "val", "test"):
        assert settings.store(part, photos).names == getattr(settings, f"{part}_classes")


def test_a_class_that_is_gone_is_named(tmp_path):
    photos = draw(tmp_path / "photos", 9)
    settings = recipe(photos)
    lost = settings.train_classes[0]
    (photos / lost).rename(photos / ".gone")
    recipes.my_images._loaded.cache_clear()
    with pytest.raises(ValueError, match=f"lacks the class folders {lost} that this run knows"):
        settings.source("train", photos)


def test_more_shots_are_evaluated_on_the_classes_that_have_them(tmp_path, caplog):
    photos = draw(tmp_path / "photos", 15)
    settings = recipe(photos, ways=2)
    small = settings.test_classes[0]
    (photos / small / "3.png").unlink()
    recipes.my_images._loaded.cache_clear()
    assert settings.source("test", photos).store.names == settings.test_classes
    more = settings.source("test", photos, shots=2)
    assert more.store.names == settings.test_classes[1:]
    assert f"{small} (3)" in caplog.text


def test_what_is_predicted_is_prepared_as_what_was_trained_on(photos):
    settings = recipe(photos)
    likeness = settings.seen(photos)
    inputs = settings.inputs(likeness)
    stored = load(photos, 16, 3)
    image = inputs.image(photos / "class00" / "0.png")
    assert torch.equal(image, stored.flat[0].float() / 255)
    assert len(inputs.likeness.low) == len(likeness["images"]["low"])


def test_the_recipe_is_restored_from_its_config(photos):
    settings = recipe(photos)
    assert recipes.restore(json.loads(json.dumps(work.config_of("my-images", settings, photos)))) == settings
