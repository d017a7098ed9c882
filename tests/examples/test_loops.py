"""The examples of training loops run, at their smallest, and say what they promise."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import headstart

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sinusoid(capsys):
    example("sinusoid").main(iterations=300)
    errors = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 3
    assert errors[2] < errors[1] < errors[0]


def test_resuming(capsys):
    example("resuming").main(iterations=6)
    assert "to the last bit" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::Warning:pytorch_lightning")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
def test_lightning_loop(tmp_path, capsys):
    pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    module = example("lightning_loop").main(iterations=3, folder=str(tmp_path))
    assert module.trainer.global_step == 3
    assert "Error on new waves" in capsys.readouterr().out

    torch.manual_seed(0)  # the same by hand
    model = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    learner = headstart.MAML(model, nn.functional.mse_loss, inner=headstart.SGD(lr=0.01), steps=1)
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-3)
    for _, tasks in zip(range(3), headstart.tasks.Sinusoids(shots=10).batches(25, seed=0), strict=False):
        optimizer.zero_grad()
        learner(tasks).backward()
        optimizer.step()
    torch.testing.assert_close(module.learner.state_dict(), learner.state_dict())
