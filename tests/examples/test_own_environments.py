"""The example of one's own environments runs, at its smallest, and its family is what it says."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_environments.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("gymnasium", reason="Gymnasium is in the extra rl")
    spec = importlib.util.spec_from_file_location("own_environments", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_environments(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_environments.py", "--iterations", "2", "--tasks", "2", "--rollouts", "2"])
    example.main()
    out = capsys.readouterr().out
    assert "   2  return before" in out
    assert "A cart wired backwards balances for" in out
    assert "to push left and right: [0." in out


def test_a_backwards_cart_does_the_opposite(example):
    forwards, backwards = (example.make([kind]) for kind in (example.FORWARDS, example.BACKWARDS))
    forwards.reset(seed=3)
    backwards.reset(seed=3)
    pushed_left, *_ = forwards.step(0)
    asked_right, *_ = backwards.step(1)
    assert torch.equal(torch.as_tensor(pushed_left), torch.as_tensor(asked_right))
    assert set(example.draw(50, torch.Generator().manual_seed(0)).flatten().tolist()) == {1.0, -1.0}
