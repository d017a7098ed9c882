import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headstart.report import comparison_figures, comparisons, tables, write_report
from headstart.report.picture import Look
from headstart.terminal import comparison_text
from headstart.training.files import FileError
from headstart.training.run import Run

BEGIN, END = "<!-- comparison:{}:begin -->", "<!-- comparison:{}:end -->"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr("headstart.report.picture._DPI", 50)


def measured(*means: float | None, ci95: float = 0.004, median: float = 0.5) -> dict[str, Any]:
    rows = [
        {"step": step, "mean": mean, "ci95": None if mean is None else ci95, "median": median, "diverged": 0}
        for step, mean in enumerate(means)
    ]
    return {"norm": "batch", "num_tasks": 600, "tasks_digest": "0" * 16, **rows[-1], "per_step": rows}


def entry(learner: str, results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "learner": learner,
        "run": learner,
        "steps": 1,
        "eval_steps": 2,
        "select_step": 1,
        "settings": {"mode": "compiled"},
        "iteration": 5000,
        "planned": 5000,
        "best_iteration": 4750,
        "seconds": 600.0,
        "ms_per_iteration": 120.0,
        "memory_mib": 345.6,
        "results": results,
        "error": None,
        **changes,
    }


def write(folder: Path, recipe: str, metric: str, entries: list[dict[str, Any]], curves: bool = True) -> Path:
    folder.mkdir(parents=True)
    content = {
        "recipe": recipe,
        "metric": metric,
        "iterations": 5000,
        "given": ["--iterations", "5000", "--mode", "compiled"],
        "num_tasks": 600,
        "device": "cpu",
        "environment": {"python": "3.11", "torch": "2.13", "platform": "Linux", "cores": 2, "threads": 2},
        "learners": entries,
    }
    (folder / "comparison.json").write_text(json.dumps(content))
    for member in entries if curves else ():
        for iteration, mean in ((2500, 0.5), (5000, 0.9)):
            line = {"kind": "validation", "iteration": iteration, "seconds": 1.0, "metric": metric, "mean": mean}
            Run(folder / member["learner"]).log(line)
    return folder


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    entries = [
        entry("maml", {"published": measured(0.2, 0.9, 0.95), "one_at_a_time": measured(0.2, 0.8, 0.912)}),
        entry("boil", {}, error="Stopped at iteration 31: the meta-loss of task 3 is not finite.", iteration=30),
        entry(
            "protonet",
            {"published": measured(0.98733), "one_at_a_time": measured(0.97)},
            steps=0,
            eval_steps=0,
            select_step=0,
            settings={"mode": "compiled", "steps": 0},
            ms_per_iteration=27.84,
        ),
        entry("reptile", {}, iteration=100, ms_per_iteration=None, memory_mib=None),
    ]
    return write(tmp_path / "results" / "compare-glyphs", "glyphs-5way-1shot", "accuracy", entries)


@pytest.fixture
def sines(tmp_path: Path) -> Path:
    entries = [
        entry("maml", {"published": measured(4.0, 0.67, 3e21, ci95=0.05, median=0.2)}),
        entry("meta-sgd", {"published": measured(4.0, 0.5, 0.4, ci95=0.05, median=0.1)}),
        entry("cavia", {"published": measured(4.0, 0.6, None, ci95=0.05, median=0.3)}),
    ]
    return write(tmp_path / "results" / "compare-sines", "sinusoid-5shot", "mse", entries, curves=False)


def test_the_best_comes_first_and_who_has_no_result_last(characters):
    lines = comparisons.markdown(comparisons.read(characters)).splitlines()
    assert "| protonet | 98.73 ± 0.40 % | 97.00 ± 0.40 % | 98.73 ± 0.40 % | 0, 0 | 27.8 | 346 | steps 0 |" in lines[2]
    assert "| maml | 95.00 ± 0.40 % | 91.20 ± 0.40 % | 90.00 ± 0.40 % | 1, 2 | 120 | 346 |  |" in lines[3]
    assert "| boil | – | – | – | 1, 2 | 120 | 346 | failed: Stopped at iteration 31" in lines[4]
    assert "| reptile | – | – | – | 1, 2 | – | – | not finished: 100 of 5,000 iterations |" in lines[5]
    assert "`headstart compare glyphs-5way-1shot --learners maml boil protonet reptile --iterations 5000" in lines[7]


def test_errors_stand_after_the_same_number_of_steps(tmp_path):
    """Whatever number each learner was trained with, chosen by, or is evaluated with."""
    entries = [
        entry("maml", {"published": measured(4.0, 0.67, 0.5, ci95=0.05, median=0.2)}),
        entry("imaml", {"published": measured(4.0, 0.9, 0.8, 0.1, ci95=0.05, median=0.2)}, eval_steps=3, select_step=3),
    ]
    compared = comparisons.read(write(tmp_path / "c", "sinusoid-10shot", "mse", entries, curves=False))
    assert [(view.name, view.step) for view in compared.views] == [("error after 2 steps", 2), ("after 1 step", 1)]
    given = {entry.learner: [view.of(entry).mean for view in compared.views] for entry in compared.entries}
    assert given == {"maml": [0.5, 0.67], "imaml": [0.8, 0.9]}


def test_errors_are_ranked_by_the_median(sines):
    rows = comparisons.table(comparisons.read(sines)).rows
    assert [row[:3] for row in rows] == [
        ("meta-sgd", "0.400 ± 0.050, median 0.100", "0.500 ± 0.050, median 0.100"),
        ("maml", "3.0e+21 ± 5.0e-02, median 0.200", "0.670 ± 0.050, median 0.200"),
        ("cavia", "diverged, median 0.300", "0.600 ± 0.050, median 0.300"),
    ]


def test_tasks_that_diverged_are_counted_where_the_rest_has_a_mean(tmp_path):
    results = measured(4.0, 0.6, ci95=0.05, median=0.3)
    results["per_step"][1]["diverged"] = 157
    compared = comparisons.read(
        write(
            tmp_path / "c",
            "sinusoid-10shot",
            "mse",
            [entry("meta-sgd", {"published": results}, eval_steps=1, select_step=1)],
            curves=False,
        )
    )
    assert comparisons.table(compared).rows[0][1] == "0.600 ± 0.050, median 0.300, 157 diverged"


def test_the_terminal_shows_the_same_numbers(characters):
    text = comparison_text(json.loads((characters / "comparison.json").read_text()))
    lines = text.splitlines()
    assert lines[0].startswith("glyphs-5way-1shot, 5,000 iterations, 600 test tasks")
    assert re.fullmatch(r"protonet +98\.73 ± 0\.40 % +97\.00 ± 0\.40 % +98\.73 ± 0\.40 % +0, 0 +27\.8 +346", lines[2])
    assert lines[-1] == "boil: Stopped at iteration 31: the meta-loss of task 3 is not finite."


def test_the_page_has_a_section_with_table_and_figures(characters, sines, tmp_path):
    page = write_report([Run(characters), Run(sines)], tmp_path / "page").read_text()
    names = {path.name for path in (tmp_path / "page" / "figures").iterdir()}
    # Of the sine waves no run folder is there, and so no curve.
    drawn = ("comparison-compare-glyphs", "comparison-validation-compare-glyphs", "comparison-compare-sines")
    assert names == {f"{name}{suffix}.png" for name in drawn for suffix in ("", "-dark")}
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert "2 comparisons of gradient-based" in text
    assert "<h2>Comparison: compare-glyphs</h2>" in text
    assert "98.73 ± 0.40 %" in text
    assert "failed: Stopped at iteration 31" in text
    assert 'id="runs"' not in text
    assert not re.search(r"\b([Nn]a[Nn]|inf|None)\b", text)


def test_dots_stand_at_the_numbers_and_what_towers_is_written(characters, sines):
    for folder, expected, written in (
        (characters, [0.98733, 0.95, 0.97, 0.912], {"failed", "not finished"}),
        (sines, [0.4, 0.5, 0.67, 0.6], {"3.0e+21 →", "diverged"}),
    ):
        picture = comparison_figures.pictures(comparisons.read(folder))[0]
        left, right = picture.draw(Look()).axes
        dots = {float(line.get_xdata()[0]) for line in left.lines if line.get_marker() in ("o", "D")}
        assert dots == set(expected)
        assert {text.get_text() for text in left.texts} == written
        assert right.get_title() == "ms per iteration"
        low, high = left.get_xlim()
        assert low < min(expected) < max(expected) < high


def test_names_at_the_ends_of_lines_do_not_touch():
    moved = comparison_figures.spread([0.5, 0.5, 0.51, 0.9], 0.1)
    assert all(after - before > 0.0999 for before, after in pairwise(moved))
    assert moved[3] == 0.9


def test_main_replaces_what_is_between_the_markers_and_nothing_else(characters, sines, tmp_path):
    file = tmp_path / "comparisons.md"
    pairs = [BEGIN.format(name) + "\nold\n" + END.format(name) for name in ("compare-sines", "compare-glyphs")]
    file.write_text("before\n" + "\nbetween\n".join(pairs) + "\nafter\n")
    for _ in range(2):
        comparisons.main([str(tmp_path / "results"), str(file)])
        text = file.read_text()
        assert text.startswith("before\n<!-- comparison:compare-sines:begin -->\n| learner |")
        assert text.endswith("<!-- comparison:compare-glyphs:end -->\nafter\n")
        assert "\nbetween\n" in text
        assert "old" not in text
        assert text.count("| protonet |") == 1


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        BEGIN.format("compare-sines"),
        END.format("compare-sines") + BEGIN.format("compare-sines"),
        2 * (BEGIN.format("compare-sines") + END.format("compare-sines")),
        BEGIN.format("elsewhere") + END.format("elsewhere"),
    ],
)
def test_wrong_markers_are_an_error_and_the_file_is_untouched(text, sines, tmp_path):
    file = tmp_path / "comparisons.md"
    file.write_text(text)
    with pytest.raises(SystemExit, match=r"markers|There is no file"):
        comparisons.main([str(tmp_path / "results"), str(file)])
    assert file.read_text() == text


def test_the_tables_of_results_are_not_disturbed(characters, tmp_path):
    """A comparison among the results is no run there, and neither are its runs."""
    (characters / "maml" / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="There is no run folder"):
        tables.main([str(tmp_path / "results"), str(tmp_path / "x.md")])


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "comparison.json").write_text('{"learners": []}')
    with pytest.raises(FileError, match=r"comparison\.json was not written by `headstart compare`"):
        comparisons.read(tmp_path)
