"""The demo runs, at its smallest, where there is no Omniglot."""

import importlib.util
import sys
from pathlib import Path

import pytest

from headstart.tasks import omniglot
from headstart.tasks.archives import DataNotFound

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_demo(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")

    def offline(*_):
        raise DataNotFound("no network here")

    monkeypatch.setattr(omniglot, "load", offline)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--smoke", "--out", str(tmp_path)])
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    demo.main()
    demo.main()  # a second time, everything is there already
    out = capsys.readouterr().out
    assert "generated characters instead" in out
    assert str(tmp_path / "report" / "index.html") in out
    page = (tmp_path / "report" / "index.html").read_text()
    assert "sinusoid-5shot" in page
    assert "glyphs-5way-1shot" in page
