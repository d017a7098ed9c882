import json
import runpy
import sys
from pathlib import Path

import torch
from tasks.test_intents import small_banking77

EXAMPLE = Path(__file__).parents[2] / "examples" / "text_baseline.py"


def test_the_nearest_mean_weighs_what_it_counts():
    nearest = runpy.run_path(str(EXAMPLE))["NearestMean"](torch.tensor([0.0, 1.0, 2.0, 0.0]), ways=2)
    vectors = nearest.vectors(torch.tensor([[1, 2, 0], [2, 2, 3]]))  # bucket 0 pads, 3 is in every text
    torch.testing.assert_close(vectors, torch.tensor([[0, 5**-0.5, 2 * 5**-0.5, 0], [0, 0, 1.0, 0]]))


def test_intents_that_share_a_word_with_their_support_are_found(tmp_path, monkeypatch, capsys):
    data = small_banking77(tmp_path, tuple(f"{word} {{}}" for word in "abcdefghijklmno"))
    arguments = ["banking77-5way-1shot", "--data", str(data), "--num-tasks", "20"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    told = json.loads(capsys.readouterr().out)
    assert told["recipe"] == "banking77-5way-1shot"
    assert told["mean"] > 0.9  # all of an intent's sentences hold its number
