"""What the benchmark of memory makes of the processes that it started."""

import json

import pytest

from benchmarks.memory import against_goals, main, together


def test_medians_ranges_and_everything_behind_them():
    rounds = [{"peak_mib": p, "ms": t, "cpu_ms": 2 * t, "gradient_norm": 1} for p, t in ((9, 3.0), (5, 1.0), (6, 8.0))]
    point = together(rounds)
    assert (point["peak_mib"], point["ms"], point["cpu_ms"]) == (6, 3.0, 6.0)
    assert (point["peak_mib_range"], point["ms_range"], point["rounds"]) == ([5, 9], [1.0, 8.0], rounds)
    assert together([rounds[0], {"failed": "exit status -9"}]) == {"failed": "exit status -9"}


def test_ratios_are_of_most_steps_to_one_and_of_the_two_paths():
    def point(peak: int, ms: float, norm: float) -> dict[str, float]:
        return {"peak_mib": peak, "ms": ms, "gradient_norm": norm}

    one = {"plain": point(100, 1.0, 1.0), "recomputed": point(70, 2.0, 1.0)}
    fifty = {"plain": point(900, 10.0, 1.0), "recomputed": point(120, 13.0, 1.5)}
    assert against_goals({1: one, 50: fifty}) == {"memory": 1.2, "time": 1.3, "gradient": 1.5}
    assert against_goals({1: one, 50: fifty | {"plain": {"failed": "exit status -9"}}}) == {"memory": 1.2}


def test_a_measurement_says_that_both_paths_agree(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["memory", "--steps", "2", "--repeats", "1", "--out", str(tmp_path)])
    main()
    (written,) = tmp_path.glob("memory-*.json")
    assert json.loads(written.read_text())["ratios"]["gradient"] == pytest.approx(1, rel=1e-4)
    assert "| 2 | " in (tmp_path / "memory.md").read_text()
