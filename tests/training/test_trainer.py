import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from headstart import MAML, SGD, Batch, Task, TaskSource
from headstart.tasks import Sinusoids
from headstart.training.checkpoint import load_parameters, load_state
from headstart.training.files import FileError
from headstart.training.gradient import GradientUpdater, NonFiniteError
from headstart.training.run import Run
from headstart.training.trainer import Trainer, TrainerSettings, TrainingStoppedError, Validation

SETTINGS = TrainerSettings(iterations=7, meta_batch=3, seed=0, validate_every=2, checkpoint_every=3, log_every=2)


def make(path, settings=SETTINGS, source=None, validate=None, loss=nn.functional.mse_loss, **options) -> Trainer:
    """A trainer of a small network with dropout and batch norm, whose random state and buffers must survive too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
    learner = MAML(model, loss, inner=SGD(0.05))
    updater = GradientUpdater(learner, schedule="cosine", iterations=7, clip_norm=1.0, **options)

    def mean_weight() -> Validation:
        score = float(next(learner.parameters()).detach().mean())
        return Validation(score, {"score": score})

    source = source or Sinusoids(shots=4, queries=4)
    return Trainer(updater, learner.state_dict, source, validate or mean_weight, Run(path), settings)


def everything(path):
    """All that a run left behind, but times."""
    state = load_state(path / "checkpoints")
    del state["seconds"]
    for record in (metrics := Run(path).metrics()):
        del record["seconds"]
    about = json.loads((path / "checkpoints" / "best.json").read_text())
    best, _ = load_parameters(path / "checkpoints", "best")
    last, _ = load_parameters(path / "checkpoints", "last")
    return [state, metrics, about["iteration"], best, last]


def assert_identical(a, b):
    leaves, structure = torch.utils._pytree.tree_flatten(a)
    others, other = torch.utils._pytree.tree_flatten(b)
    assert structure == other
    for x, y in zip(leaves, others, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_resumed_is_uninterrupted(tmp_path, stopped_after):
    make(tmp_path / "whole").train()
    seen = []
    stopped = make(tmp_path / "parts").train(
        observe=lambda i, _: seen.append(i), stop=lambda: len(seen) == stopped_after
    )
    assert not stopped
    torch.rand(3)  # whatever happened to the global random state in between
    resumed = make(tmp_path / "parts")
    resumed.resume()
    assert resumed.iteration == stopped_after
    assert resumed.train()
    assert_identical(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_killed_is_uninterrupted(tmp_path):
    """Nothing is saved at a kill: the run goes on from its last interval and drops what came after."""

    class Killed(BaseException):
        pass

    def kill(iteration, _):
        if iteration == 5:
            raise Killed

    make(tmp_path / "whole").train()
    with pytest.raises(Killed):
        make(tmp_path / "parts").train(observe=kill)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "tra')  # and the kill cut a line short
    resumed = make(tmp_path / "parts")
    resumed.resume()
    assert resumed.iteration == 3
    resumed.train()
    assert_identical(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_the_best_by_validation_is_kept(tmp_path):
    scores = iter([1.0, 3.0, 2.0, float("-inf")])
    make(tmp_path, validate=lambda: Validation(score := next(scores), {"score": str(score)})).train()
    _, about = load_parameters(tmp_path / "checkpoints", "best")
    assert about["iteration"] == 4
    assert load_state(tmp_path / "checkpoints")["best"] == 3.0


@dataclass(frozen=True)
class Poisoned(TaskSource):
    """Sinusoids; from the `after`-th meta-batch on, the targets of task 1 are `value`."""

    after: int
    value: float

    def sample(self, size, generator):
        task = Sinusoids(shots=4, queries=4).sample(size, generator)
        drawn.append(1)
        if len(drawn) > self.after:
            task.query.targets[1] = self.value
        return task


drawn: list[int] = []


def hidden_cliff(outputs, targets):
    """Finite at a target of 0, where its derivative is not."""
    return (outputs * targets).square().sum().sqrt()


@pytest.mark.parametrize(
    ("value", "loss", "told"),
    [
        (float("nan"), nn.functional.mse_loss, r"iteration 5: the meta-loss of task 1 \(of 3\) is nan"),
        (0.0, hidden_cliff, r"iteration 5: the meta-gradient of task 1 \(of 3\) is not finite"),
    ],
)
def test_a_nonfinite_task_stops_and_is_named(tmp_path, value, loss, told):
    drawn.clear()
    make(tmp_path / "good", replace(SETTINGS, iterations=3), source=Poisoned(99, value), loss=loss).train()
    drawn.clear()
    trainer = make(tmp_path / "bad", source=Poisoned(4, value), loss=loss)
    with pytest.raises(TrainingStoppedError, match=told):
        trainer.train()
    good, _ = load_parameters(tmp_path / "good" / "checkpoints", "last")
    kept, about = load_parameters(tmp_path / "bad" / "checkpoints", "last")
    assert about["iteration"] == 3
    assert_identical(good, kept)


@pytest.mark.parametrize("clipping", [{}, {"clip_value": 1.0}, {"clip_norm": 1.0}])
def test_clipping_does_not_hide_an_infinite_gradient(clipping):
    learner = MAML(nn.Linear(1, 1), hidden_cliff, steps=0)
    before = [p.clone() for p in learner.parameters()]
    batch = Batch(torch.ones(2, 3, 1), torch.zeros(2, 3, 1))
    with pytest.raises(NonFiniteError, match="task 0"):
        GradientUpdater(learner, **clipping).update(Task(batch, batch))
    assert_identical(before, [p.detach() for p in learner.parameters()])


def test_losses_whose_mean_overflows_are_refused():
    learner = MAML(nn.Linear(1, 1), lambda outputs, targets: outputs.sum() * 0 + targets.sum(), steps=0)
    batch = Batch(torch.ones(2, 1, 1), torch.tensor([[[3.0e38]], [[3.1e38]]]))
    with pytest.raises(NonFiniteError, match="task 1"):
        GradientUpdater(learner).update(Task(batch, batch))


def test_metrics_are_means_over_their_interval(tmp_path):
    losses = []
    make(tmp_path).train(observe=lambda _, metrics: losses.append(metrics["meta_loss"]))
    logged = [record["meta_loss"] for record in Run(tmp_path).metrics("train")]
    assert logged == [sum(losses[i : i + 2]) / len(losses[i : i + 2]) for i in (0, 2, 4, 6)]


@pytest.mark.parametrize(("option", "bound"), [("clip_value", 1e-3), ("clip_norm", 1e-3)])
def test_clipping_bounds_the_meta_gradient(option, bound):
    learner = MAML(nn.Linear(1, 1), nn.functional.mse_loss)
    updater = GradientUpdater(learner, **{option: bound})
    batch = Batch(torch.ones(2, 3, 1), torch.full((2, 3, 1), 5.0))
    updater.update(Task(batch, batch))
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters()])
    size = gradient.abs().max() if option == "clip_value" else gradient.norm()
    assert float(size) == pytest.approx(bound, rel=1e-4)


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedules(schedule, half):
    updater = GradientUpdater(
        MAML(nn.Linear(1, 1), nn.functional.mse_loss), meta_lr=1.0, schedule=schedule, iterations=4
    )
    batch = Batch(torch.ones(2, 3, 1), torch.zeros(2, 3, 1))
    rates = [updater.rate]
    for _ in range(4):
        updater.update(Task(batch, batch))
        rates.append(updater.rate)
    assert rates[0] == 1.0
    assert rates[2] == pytest.approx(half)
    assert rates[4] == pytest.approx(1.0 if schedule == "constant" else 0.0)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileError, match="not a run folder"):
        Run(tmp_path).config()
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"kind": "train"}\n')
    with pytest.raises(FileError, match="line 1"):
        Run(tmp_path).metrics()
