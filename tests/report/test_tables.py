import json
from pathlib import Path

import pytest

from headstart.recipes import experiments, work
from headstart.report import tables
from headstart.report.records import read_records
from headstart.training.run import Run

BEGIN, END = "<!-- results:{}:begin -->", "<!-- results:{}:end -->"


def write_run(folder: Path, recipe: str, per_step: list[dict], published: list[dict], **told) -> Run:
    """A folder of results only, as `docs/results/` holds them."""
    known = experiments()[recipe].recipe
    run = Run(folder)
    run.start(work.config_of(recipe, known))
    result = {
        "recipe": recipe,
        "checkpoint": "best",
        "iteration": 63_000,
        "metric": known.metric_name,
        "num_tasks": 600,
        "shots": known.shots,
        "queries": known.eval_queries,
        "norm": known.norm,
        "seed": 0,
        "tasks_digest": "0" * 16,
        "inner_lr": known.inner_lr,
        "protocol": "sampled",
        "per_step": per_step,
        "published": published,
        **told,
    }
    (folder / "evaluations").mkdir(exist_ok=True)
    file = folder / "evaluations" / f"{result['queries']}-{result['norm']}-{result['num_tasks']}.json"
    file.write_text(json.dumps(result))
    return run


def steps(*means: float | None, ci95: float = 0.05, median: float = 0.2, diverged: int = 0) -> list[dict]:
    rows = [{"step": s, "mean": m, "ci95": ci95, "median": median, "diverged": diverged} for s, m in enumerate(means)]
    return [row | {"ci95": None} if row["mean"] is None else row for row in rows]


def source(step: int, value: float) -> dict:
    return {"step": step, "value": value, "source": "Table 2"}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    root = tmp_path / "results"
    write_run(root / "sinusoid-5shot", "sinusoid-5shot", steps(3.0, 0.556), [source(1, 0.67)])
    omniglot = "omniglot-5way-1shot"
    accuracies = steps(0.2, 0.9, 0.95, 0.98733, ci95=0.0041)
    write_run(root / omniglot, omniglot, accuracies, [source(3, 0.987)])
    write_run(root / omniglot, omniglot, accuracies, [source(3, 0.987)], norm="support")
    return root


def records_of(root: Path):
    return read_records([Run(path) for path in sorted(root.iterdir())])


def test_the_numbers_are_those_of_the_files(results):
    table = tables.full_table(records_of(results))
    assert "| 1 | 0.556 ± 0.050 | 0.200 | 0 of 600 | 0.67 (Table 2) | −0.114 (−17 %), better |" in table
    assert "| 3 | 98.73 ± 0.41 % |  |  | 98.7 % (Table 2) | +0.03 points, within ± |" in table


def test_a_published_number_stands_only_beside_its_own_conditions(results):
    (line,) = [line for line in tables.full_table(records_of(results)).splitlines() if "support set" in line]
    assert "98.73 ± 0.41 %" in line
    assert "98.7 %" not in line


def test_the_short_table_has_one_row_per_recipe(results):
    lines = tables.short_table(records_of(results)).splitlines()
    assert len(lines) == 2 + 2
    assert "norm from the queries, 600 tasks | 3 | 98.73 ± 0.41 % | 98.7 % (Table 2) |" in lines[2]
    assert "| 63,000 |" in lines[3]
    assert "| 1 | 0.556 ± 0.050, median 0.200 | 0.67 (Table 2) |" in lines[3]


def test_an_interval_wider_than_the_mean_decides_nothing(tmp_path):
    write_run(tmp_path / "a", "sinusoid-5shot", steps(3.0, 27.1, ci95=47.6), [source(1, 0.38)])
    assert "| 71 times, undecided |" in tables.full_table(records_of(tmp_path))


def test_a_mean_that_does_not_exist_is_called_diverged(tmp_path):
    write_run(tmp_path / "a", "sinusoid-5shot", steps(3.0, None, diverged=600), [source(1, 0.38)])
    assert "| diverged | 0.200 | 600 of 600 | 0.38 (Table 2) |  |" in tables.full_table(records_of(tmp_path))


def test_the_oracle_is_shown_without_adaptation(tmp_path):
    write_run(tmp_path / "a", "sinusoid-5shot-oracle", steps(0.0106, 0.4, 88.0), [])
    (row,) = tables.full_table(records_of(tmp_path)).splitlines()[2:]
    assert "| 0 | 0.0106 ± 0.0500 |" in row


def test_changed_settings_are_told(tmp_path):
    run = write_run(tmp_path / "mine", "sinusoid-5shot", steps(3.0, 0.5), [])
    config = run.config()
    config["settings"] |= {"iterations": 8000, "log_every": 7}
    (run.path / "config.json").write_text(json.dumps(config))
    assert "| sinusoid-5shot (mine, iterations 8,000) |" in tables.full_table(records_of(tmp_path))


def test_main_replaces_what_is_between_the_markers_and_nothing_else(results, tmp_path):
    readme, full = tmp_path / "README.md", tmp_path / "results.md"
    readme.write_text(f"before\n{BEGIN.format('short')}\nold\n{END.format('short')}\nafter\n")
    full.write_text(f"{BEGIN.format('full')}{END.format('full')}")
    for _ in range(2):
        tables.main([str(results), str(readme), str(full)])
        short = readme.read_text()
        assert short.startswith(f"before\n{BEGIN.format('short')}\n| recipe | iterations |")
        assert short.endswith(f"|\n{END.format('short')}\nafter\n")
        assert "old" not in short
        assert full.read_text().count("| sinusoid-5shot |") == 1
    assert short.index("sinusoid-5shot") < short.index("omniglot-5way-1shot")  # the order of the recipes


@pytest.mark.parametrize(
    "text",
    [
        "no markers",
        BEGIN.format("short"),
        END.format("full") + BEGIN.format("full"),
        BEGIN.format("other") + END.format("other"),
        2 * (BEGIN.format("short") + END.format("short")),
    ],
)
def test_markers_that_are_missing_or_wrong_are_an_error_and_the_file_is_untouched(text, results, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(SystemExit, match="needs the markers"):
        tables.main([str(results), str(file)])
    assert file.read_text() == text


def test_main_tells_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="Usage"):
        tables.main([])
    with pytest.raises(SystemExit, match="no run folder"):
        tables.main([str(tmp_path), str(tmp_path / "README.md")])


def test_a_file_of_another_kind_is_named(results):
    file = results / "sinusoid-5shot" / "evaluations" / "other.json"
    file.write_text("{}")
    with pytest.raises(RuntimeError, match=r"other\.json was not written by `headstart evaluate`"):
        records_of(results)
