import functools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib import util
from pathlib import Path

import pytest
import torch
from PIL import Image

from headstart.recipes import experiment, work
from headstart.report import MissingExtraError, write_report
from headstart.report.page import write_page
from headstart.tasks import glyphs
from headstart.tasks.archives import DataNotFound
from headstart.training.files import FileError
from headstart.training.run import Run

NO_NUMBER = re.compile(r"\b([Nn]a[Nn]|inf|None)\b")


def train(folder: Path, name: str, **changes) -> Run:
    run = Run(folder / name)
    recipe = replace(experiment(name).recipe.smoke(), **changes)
    run.start(work.config_of(name, recipe))
    recipe.trainer(run, None, "cpu").train()
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Run]:
    """Two sine runs and one of characters, evaluated; and one sine run that is not."""
    folder = tmp_path_factory.mktemp("runs")
    glyphs = {"filters": 4, "glyph_classes": 20}
    made = [
        train(folder, "sinusoid-5shot"),
        train(folder, "sinusoid-5shot-pretrained", tune_inner_lr=(0.001, 0.01)),
        train(folder, "glyphs-5way-1shot", **glyphs),
        train(folder, "sinusoid-10shot"),
    ]
    for run in made[:3]:
        work.keep_evaluation(run, work.evaluate_run(run, num_tasks=20))
    work.keep_evaluation(made[2], work.evaluate_run(made[2], num_tasks=20, norm="support", queries=2))
    return made


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """Figures of few pixels, and generated characters kept: the same work in half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.report.picture._DPI", 50)
        patch.setattr(glyphs, "store", functools.cache(glyphs.store))
        yield


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(report) -> str:
    return report.read_text()


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def named(self, name: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.found if tag == name)


def text_of(page: str) -> str:
    """The page without its images."""
    return re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)


def test_the_page_asks_the_network_for_nothing(page):
    tags = Tags(page)
    assert not list(tags.named("script"))
    for tag, attributes in tags.found:
        for name in ("src", "srcset", "data", "poster", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), tag
        if tag == "link":
            assert attributes["href"] == "data:,"
    assert not re.search(r"url\(|@import", text_of(page))
    assert "default-src 'none'" in page


def test_every_image_has_words_and_four_renderings(page):
    tags = Tags(page)
    images, sources = list(tags.named("img")), list(tags.named("source"))
    # fits of two runs, errors, a grid, accuracies, and four learning curves
    assert len(images) == 2 + 1 + 1 + 1 + 4
    assert len(sources) == 3 * len(images)
    assert all(len(image["alt"] or "") > 40 for image in images)
    embedded = [image["src"] for image in images] + [source["srcset"] for source in sources]
    assert len(set(embedded)) == 4 * len(images)


def test_figures_lie_beside_the_page(report):
    names = {path.name for path in (report.parent / "figures").iterdir()}
    expected = {
        "sine-fits-sinusoid-5shot",
        "sine-fits-sinusoid-10shot",
        "error-per-step",
        "characters-glyphs-5way-1shot",
        "accuracy-per-step-glyphs-5way-1shot",
        *(f"learning-curve-{name}" for name in ("sinusoid-5shot", "sinusoid-5shot-pretrained")),
        *(f"learning-curve-{name}" for name in ("glyphs-5way-1shot", "sinusoid-10shot")),
    }
    assert names == {f"{name}{suffix}.png" for name in expected for suffix in ("", "-dark")}
    with Image.open(report.parent / "figures" / "error-per-step.png") as image:
        assert image.width == 8 * 50


def test_numbers_stand_in_the_page_as_in_the_files(page, runs):
    (evaluation,) = (runs[0].path / "evaluations").iterdir()
    per_step = json.loads(evaluation.read_text())["per_step"]
    shown = re.findall(r"<strong>([\d.]+) ±", page)
    for step in (1, 5, 10):
        mean = per_step[step]["mean"]
        assert any(float(text) == pytest.approx(mean, rel=5e-3) for text in shown), (step, mean)
    assert "0.67" in page  # published


def test_a_run_without_evaluation_is_named_with_the_command(page, runs):
    assert "sinusoid-10shot has not been evaluated yet" in page
    assert f"<code>headstart evaluate {runs[3].path}</code>" in page


def test_commands_and_environment_are_told(page, runs):
    assert f"headstart evaluate {runs[2].path} --num-tasks 20 --queries 2 --norm support" in page
    assert f"headstart train sinusoid-5shot --smoke --out {runs[0].path}" in page
    assert f"PyTorch {torch.__version__}, Python" in page


def test_nothing_in_the_page_is_not_a_number(page):
    assert not NO_NUMBER.search(text_of(page))


def test_results_without_checkpoints_give_tables_and_curves_but_no_examples(runs, tmp_path):
    kept = [Run(tmp_path / "results" / run.path.name) for run in runs]
    for run, copy in zip(runs, kept, strict=True):
        shutil.copytree(run.path, copy.path, ignore=shutil.ignore_patterns("checkpoints"))
    index = write_report(kept, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert "error-per-step.png" in names
    assert "learning-curve-sinusoid-5shot.png" in names
    assert not any(name.startswith(("sine-fits", "characters-")) for name in names)
    text = text_of(index.read_text())
    assert "No examples are drawn for glyphs-5way-1shot: no checkpoint is in the folder." in text
    assert "headstart evaluate runs/sinusoid-10shot" in text


def test_a_diverging_run_is_drawn_and_called_so(tmp_path):
    run = train(tmp_path, "sinusoid-5shot", inner_lr=0.02, iterations=2, select_by="median")
    config = (run.path / "config.json").read_text().replace('"inner_lr": 0.02', '"inner_lr": 1000000.0')
    (run.path / "config.json").write_text(config)
    work.keep_evaluation(run, work.evaluate_run(run, num_tasks=4))
    text = text_of(write_report([run], tmp_path / "out").read_text())
    assert "diverged" in text
    assert "4 of 4" in text
    assert not NO_NUMBER.search(text)


def test_missing_images_are_a_sentence(tmp_path, monkeypatch, runs):
    def without(*_, **__):
        raise DataNotFound("put it there")

    monkeypatch.setattr("headstart.recipes.CharacterRecipe.source", without)
    text = text_of(write_report([runs[2]], tmp_path).read_text())
    assert "No characters are shown for glyphs-5way-1shot, because the images are not here: put it there" in text
    assert "Accuracy after each gradient step" in text


def test_what_files_say_is_escaped(runs, tmp_path):
    run = Run(tmp_path / "<script>")
    shutil.copytree(runs[3].path, run.path, ignore=shutil.ignore_patterns("checkpoints"))
    config = (run.path / "config.json").read_text().replace('"sinusoid-10shot"', '"<script>../../x"')
    (run.path / "config.json").write_text(config)
    index = write_report([run], tmp_path / "out")
    assert not list(Tags(index.read_text()).named("script"))
    assert all(path.parent == tmp_path / "out" / "figures" for path in (tmp_path / "out").rglob("*.png"))


def test_two_folders_of_one_name_are_told_apart(runs, tmp_path):
    copy = Run(tmp_path / runs[3].path.name)
    shutil.copytree(runs[3].path, copy.path, ignore=shutil.ignore_patterns("checkpoints"))
    write_report([runs[3], copy], tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "figures").glob("learning-curve-*")}
    assert {"learning-curve-sinusoid-10shot.png", "learning-curve-sinusoid-10shot-2.png"} <= names


def test_a_run_that_has_only_begun_is_reported(tmp_path):
    run = Run(tmp_path / "sinusoid-5shot")
    run.start(work.config_of("sinusoid-5shot", experiment("sinusoid-5shot").recipe))
    text = write_report([run], tmp_path / "out").read_text()
    assert "nothing logged yet" in text
    assert "No examples are drawn for sinusoid-5shot" in text


def test_errors_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one run"):
        write_page([], tmp_path, None)
    with pytest.raises(FileError, match="not a run folder"):
        write_report([Run(tmp_path)], tmp_path)
    found = util.find_spec
    monkeypatch.setattr("headstart.report.find_spec", lambda name: None if name == "matplotlib" else found(name))
    with pytest.raises(MissingExtraError, match=r"pip install 'headstart\[report\]'"):
        write_report([Run(tmp_path)], tmp_path)


def test_tables_need_no_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = sys.modules['jinja2'] = None; "
        "import headstart.report.tables, headstart.report"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
