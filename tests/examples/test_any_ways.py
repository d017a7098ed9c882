"""The example of any number of classes runs, at its smallest, and adapts to as many classes as it says."""

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "any_ways.py"


def test_any_ways(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("any_ways", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    sizes = ["--iterations", "2", "--tasks", "2", "--classes", "6", "--filters", "4"]
    monkeypatch.setattr(sys, "argv", ["any_ways.py", *sizes])
    example.main()
    out = capsys.readouterr().out
    assert "   2  loss" in out
    assert all(f"{ways} ways, new characters:" in out for ways in (3, 5, 7))
    assert "Linear(in_features=4, out_features=7" in out
