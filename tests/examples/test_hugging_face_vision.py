"""A Hugging Face transformer made from its configuration trains and adapts in part, through the command line."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "hugging_face_vision.py"


@pytest.mark.parametrize("learner", ["bias-only", "lora", "anil"])
def test_hugging_face_vision(learner, monkeypatch, capsys, tmp_path):
    pytest.importorskip("transformers", reason="Hugging Face's models are in the extra hf")
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    spec = importlib.util.spec_from_file_location("hugging_face_vision", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(sys, "argv", ["hugging_face_vision.py", "--iterations", "2", "--learner", learner])
    example.main()
    out = capsys.readouterr().out
    assert "parameter tensors adapt" in out
    assert "of 5 drawings named rightly" in out
