"""The example on a folder of images runs, at its smallest, and tells the new classes' names."""

import importlib.util
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "your_images.py"


def test_your_images(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("your_images", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["your_images.py", "--iterations", "2", "--out", str(tmp_path)])
    example.main()
    out = capsys.readouterr().out
    assert "14 examples of 7 classes" in out
    assert "of 7 right" in out
    assert (tmp_path / "adapted" / "adapted.json").exists()
