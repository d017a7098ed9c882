import json

import pytest

from benchmarks import report
from benchmarks.report import BEGIN, END

FACTS = {
    "date": "2026-01-02",
    "environment": {"processor": "A CPU", "threads": 2, "platform": "Linux", "python": "3.11", "torch": "2.13.0"},
    "versions": {"higher": "0.2.1"},
}


def measured(ms, error):
    return {
        "ms": ms,
        "ms_range": [0.9 * ms, 1.2 * ms],
        "tasks_per_s": 25e3 / ms,
        "peak_mib": 1234.0,
        "prepare_s": 20.0,
        "first_call_s": 0.51,
        "error": error,
    }


SPEED = FACTS | {
    "works": {
        "sinusoid": {
            "description": "25 tasks",
            "systems": {
                "Headstart compiled": measured(0.4, 1e-7),
                "plain loop float32": measured(20.0, 1e-7),
                "TorchOpt vmap": measured(15.34, 2e-3),
                "JAX": {"failed": "first took over 4 s | gone"},
                "higher": measured(1234.5, None),
            },
        }
    }
}
GROWTH = FACTS | {
    "works": {
        "tasks": {
            "work": "sinusoid",
            "description": "25 tasks",
            "points": {
                "1": {"TorchOpt": measured(1.0, None), "JAX": measured(2.0, None)},
                "8": {"TorchOpt": measured(8.0, None), "JAX": {"failed": "first took over 4 s"}},
            },
        }
    }
}


def test_the_table_names_machine_versions_failures_and_wrong_gradients():
    table = report.speed_table(SPEED)
    assert "2026-01-02 on A CPU, 2 threads" in table
    assert "higher 0.2.1" in table
    assert "| Headstart compiled | 0.40 | 0.36 to 0.48 | 62,500 | 1,234 | 20.5 | 1.0e-07 |" in table
    assert "| TorchOpt vmap | 15.3 | 13.8 to 18.4 | 1,630 | 1,234 | 20.5 | 2.0e-03 † |" in table
    assert "| JAX | first took over 4 s / gone | | | | | |" in table
    assert "| not finite † |" in table


def test_the_summary_has_a_column_per_system_and_the_fastest_in_bold():
    lines = report.summary(SPEED).splitlines()
    assert lines[2] == "| work | Headstart compiled | TorchOpt vmap | higher | JAX |"
    assert lines[4] == "| sinusoid | **0.40** | 15.3 † | 1,234 † | failed |"
    assert lines[-1] == report.NOTE


def test_growth_has_a_row_per_point():
    table = report.growth_table(GROWTH)
    assert "| 1 | 1.00 ms, 1,234 MiB | 2.00 ms, 1,234 MiB |" in table
    assert "| 8 | 8.00 ms, 1,234 MiB | first took over 4 s |" in table


def test_everything_is_written_from_the_newest_full_results(tmp_path):
    for name, content in (
        ("speed-2025-12-01", SPEED | {"date": "2025-12-01"}),
        ("speed-2026-01-02", SPEED),
        ("speed-2026-02-02-quick", SPEED | {"date": "2026-02-02"}),
        ("growth-2026-01-02", GROWTH),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = tmp_path / "README.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    report.main([str(page)], tmp_path)
    assert page.read_text() == f"before\n{BEGIN}\n{report.summary(SPEED)}{END}\nafter\n"
    assert (tmp_path / "summary.md").read_text() == report.summary(SPEED)
    for plot in ("speed.png", "growth.png"):
        assert (tmp_path / plot).read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(SystemExit, match="run `make bench` first"):
        report.main([], tmp_path)
    with pytest.raises(ValueError, match="needs the markers"):
        report.replace_summary("no markers", "table")
