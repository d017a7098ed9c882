import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from reference import network, normed, task_of, tasks_of
from torch import nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.training.checkpoint import load_state, save_state
from headstart.training.engine import Engine
from headstart.training.gradient import GradientUpdater, NonFiniteError
from headstart.vectorize import stack

UPDATES = 5


def updater_of(
    mode: str = "compiled", model: nn.Module | None = None, steps: int = 1, adapt_only: str = "*", **settings
) -> GradientUpdater:
    model = network() if model is None else model
    learner = MAML(model, F.mse_loss, inner=SGD(0.1), steps=steps, adapt_only=adapt_only)
    return GradientUpdater(learner, Engine(learner, mode=mode), **{"meta_lr": 0.05} | settings)


def state_of(updater: GradientUpdater) -> dict:
    """Parameters, buffers, Adam's means and squares, and its count for each parameter."""
    return copy.deepcopy(updater.state_dict())


def passed_on(updater: GradientUpdater, other: GradientUpdater, folder) -> GradientUpdater:
    """`other`, going on from what `updater` left in a file."""
    save_state(folder, updater.state_dict())
    other.load_state_dict(load_state(folder))
    return other


@pytest.mark.usefixtures("recorded")
class TestIsAdam:
    """Of PyTorch, after a backward pass of the learner."""

    @pytest.mark.parametrize(
        ("clipping", "schedule"),
        [
            ({}, "constant"),
            ({}, "cosine"),
            ({"clip_value": 0.01}, "cosine"),
            ({"clip_norm": 0.05}, "constant"),
            ({"clip_value": 0.02, "clip_norm": 0.05}, "constant"),
        ],
        ids=str,
    )
    def test_over_several_updates(self, clipping, schedule):
        settings = {**clipping, "schedule": schedule, "iterations": UPDATES}
        fused, learner = updater_of(**settings), MAML(network(), F.mse_loss, inner=SGD(0.1))
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.05)
        rates = {"constant": lambda _: 1.0, "cosine": lambda i: 0.5 * (1 + math.cos(math.pi * i / UPDATES))}
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rates[schedule])
        for seed in range(UPDATES):
            tasks = stack([task_of(seed), task_of(seed + 1)])
            optimizer.zero_grad()
            loss = learner(tasks)
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in learner.parameters()])
            if "clip_value" in clipping:
                nn.utils.clip_grad_value_(learner.parameters(), clipping["clip_value"])
            if "clip_norm" in clipping:
                nn.utils.clip_grad_norm_(learner.parameters(), clipping["clip_norm"])
            optimizer.step()
            scheduler.step()
            metrics = fused.update(tasks)
            assert metrics == pytest.approx({"meta_loss": loss.item(), "meta_gradient_norm": norm.item()}, rel=1e-6)
            assert norm > 0.06  # so that the bounds are at work
        assert fused.engine.mode == "compiled"
        assert all(p.grad is None for p in fused.parameters)  # it was done in the graph
        assert_close(dict(fused.learner.named_parameters()), dict(learner.named_parameters()), rtol=1e-6, atol=1e-7)
        for given, expected in zip(fused.parameters, learner.parameters(), strict=True):
            assert_close(fused.optimizer.state[given], optimizer.state[expected], rtol=1e-6, atol=1e-7)

    def test_in_single_precision(self):
        fused, eager = (updater_of(mode, network(torch.float32)) for mode in ("compiled", "eager"))
        for _ in range(UPDATES):
            for updater in (fused, eager):
                updater.update(tasks_of(dtype=torch.float32))
        assert_close(state_of(fused), state_of(eager), rtol=1e-4, atol=1e-6)

    def test_parameters_without_gradients_stay(self):
        def model() -> nn.Module:
            made = network()
            made[0].bias.requires_grad_(False)
            made.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
            return made

        fused, eager = updater_of("compiled", model()), updater_of("eager", model())
        for _ in range(UPDATES):
            for updater in (fused, eager):
                updater.update(tasks_of())
        assert_close(fused.learner.state_dict(), eager.learner.state_dict(), rtol=1e-6, atol=1e-7)
        assert torch.equal(fused.learner.model.unused, torch.ones(2, dtype=torch.float64))
        assert fused.engine.mode == "compiled"

    @pytest.mark.parametrize("change", ["replaced", "in place", "frozen replaced", "frozen data"])
    def test_what_is_not_learned_is_read_anew(self, change):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = network()
                self.register_buffer("scale", torch.ones((), dtype=torch.float64))
                self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64), requires_grad=False)

            def forward(self, x):
                return self.scale * self.body(x) + self.shift

        found = []
        for mode in ("compiled", "eager"):
            torch.manual_seed(0)
            updater = updater_of(mode, Scaled(), adapt_only="body.*")
            model, told = updater.learner.model, []
            for _ in range(2):
                told.append(updater.update(stack([task_of(0), task_of(1)])))
                match change:
                    case "replaced":
                        model.scale = torch.tensor(3.0, dtype=torch.float64)
                    case "in place":
                        model.scale.mul_(3)
                    case "frozen replaced":
                        model.shift = nn.Parameter(torch.tensor(3.0, dtype=torch.float64), requires_grad=False)
                    case "frozen data":
                        model.shift.data = torch.tensor(3.0, dtype=torch.float64)
            found.append(told)
            assert updater.engine.mode == mode
        for compiled, eager in zip(*found, strict=True):
            assert compiled == pytest.approx(eager, rel=1e-6)
        assert found[0][1]["meta_loss"] > 1.5 * found[0][0]["meta_loss"]  # so that the change is seen

    def test_buffers_that_are_not_dense(self):
        class Weighed(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = network()
                self.register_buffer("weights", torch.tensor([1.0, 5.0, 2.0, 7.0], dtype=torch.float64)[::2])

            def forward(self, x):
                return self.body(x * self.weights)

        found = []
        for mode in ("compiled", "eager"):
            updater, told = updater_of(mode, Weighed(), adapt_only="body.*"), []
            for _ in range(2):
                told.append(updater.update(stack([task_of(0), task_of(1)])))
                updater.learner.model.weights.add_(1)
            found.append(told)
            assert updater.engine.mode == mode
        for compiled, eager in zip(*found, strict=True):
            assert compiled == pytest.approx(eager, rel=1e-6)

    def test_parameters_that_are_not_dense_are_not_compiled(self, caplog):
        model = nn.Linear(2, 1, dtype=torch.float64)
        model.weight = nn.Parameter(torch.ones(1, 4, dtype=torch.float64)[:, ::2])
        updater = updater_of("compiled", model)
        with caplog.at_level("WARNING", logger="headstart"):
            updater.update(stack([task_of(0), task_of(1)]))
        assert updater.engine.mode == "eager"
        assert "memory of its own" in caplog.text

    def test_running_statistics_move_once(self):
        fused, eager = updater_of("compiled", normed()), updater_of("eager", normed())
        for _ in range(3):
            for updater in (fused, eager):
                updater.update(tasks_of())
        assert_close(fused.learner.state_dict(), eager.learner.state_dict(), rtol=1e-6, atol=1e-7)
        assert fused.learner.model[0][1].num_batches_tracked == 3


@pytest.mark.usefixtures("recorded")
class TestOneRunInSeveralModes:
    @pytest.mark.parametrize("modes", [["eager", "compiled", "eager"], ["compiled", "eager", "compiled"]], ids=str)
    def test_passed_on_in_a_file(self, modes, tmp_path):
        whole, part = updater_of("eager", normed()), None
        for i, mode in enumerate(modes):
            updater = updater_of(mode, normed())
            part = updater if part is None else passed_on(part, updater, tmp_path / str(i))
            for _ in range(2):
                part.update(tasks_of())
                whole.update(tasks_of())
        assert_close(state_of(part), state_of(whole), rtol=1e-6, atol=1e-7)

    def test_tasks_of_unequal_sizes_in_between(self):
        """These are computed eagerly, and updated by PyTorch's Adam: its counts must be right."""
        fused, eager = updater_of("compiled"), updater_of("eager")
        unequal = [task_of(0, shots=3), task_of(1)]
        for tasks in (tasks_of(), unequal, unequal, tasks_of()):
            for updater in (fused, eager):
                updater.update(tasks)
        assert_close(state_of(fused), state_of(eager), rtol=1e-6, atol=1e-7)

    @pytest.mark.parametrize("steps", [1, 2])
    def test_resumed_is_uninterrupted(self, steps, tmp_path):
        def model() -> nn.Module:
            # Without the bias that batch norm removes: its gradient is rounding noise, which Adam blows up.
            body = nn.Sequential(nn.Linear(2, 4, bias=False), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
            return body.double()

        def made() -> GradientUpdater:
            torch.manual_seed(0)
            return updater_of("compiled", model(), steps=steps)

        torch.manual_seed(0)
        whole, stopped = made(), made()
        torch.manual_seed(1)
        for _ in range(4):
            whole.update(tasks_of())
        torch.manual_seed(1)
        for _ in range(2):
            stopped.update(tasks_of())
        random_state = torch.get_rng_state()
        resumed = passed_on(stopped, made(), tmp_path)
        torch.set_rng_state(random_state)
        for _ in range(2):
            resumed.update(tasks_of())
        assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)


def cliff(outputs, targets):
    """Finite at a target of 0, where its derivative is not."""
    return (outputs * targets).square().sum().sqrt()


def poisoned(value: float) -> Task:
    batch = Batch(torch.ones(3, 4, 1), torch.ones(3, 4, 1))
    targets = torch.ones(3, 4, 1)
    targets[1] = value
    return Task(batch, Batch(torch.ones(3, 4, 1), targets))


@pytest.mark.usefixtures("recorded")
class TestNonFinite:
    @pytest.mark.parametrize("clipping", [{}, {"clip_value": 1.0, "clip_norm": 1.0}], ids=str)
    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (float("nan"), "the meta-loss of task 1 (of 3) is nan"),
            (float("inf"), "the meta-loss of task 1 (of 3) is inf"),
            (0.0, "the meta-gradient of task 1 (of 3) is not finite"),
        ],
    )
    @pytest.mark.parametrize("mode", ["compiled", "eager"])
    def test_stops_before_anything_is_updated(self, mode, value, told, clipping):
        torch.manual_seed(0)
        learner = MAML(nn.Linear(1, 1), cliff, inner=SGD(0.01))
        updater = GradientUpdater(learner, Engine(learner, mode=mode), **clipping)
        updater.update(poisoned(2.0))
        before = state_of(updater)
        with pytest.raises(NonFiniteError, match=re.escape(told)):
            updater.update(poisoned(value))
        assert updater.engine.mode == mode
        assert_close(state_of(updater), before, rtol=0, atol=0)
        updater.update(poisoned(2.0))
        assert all(torch.isfinite(p).all() for p in updater.parameters)

    @pytest.mark.parametrize("mode", ["compiled", "eager"])
    def test_stops_before_running_statistics_are_spoilt(self, mode):
        updater, tasks = updater_of(mode, normed()), tasks_of()
        tasks.query.inputs[1] = float("nan")
        before = state_of(updater)
        with pytest.raises(NonFiniteError, match="task 1"):
            updater.update(tasks)
        assert_close(state_of(updater)["learner"], before["learner"], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_compiled_is_eager_and_resumed_is_uninterrupted(tmp_path):
    """With the compiler in it."""
    whole, stopped, eager = (updater_of(m, network(), clip_norm=0.1) for m in ("compiled", "compiled", "eager"))
    for updater, updates in ((whole, 4), (eager, 4), (stopped, 2)):
        for _ in range(updates):
            updater.update(tasks_of())
    assert whole.engine.mode == "compiled"
    assert all(p.grad is None for p in whole.parameters)
    resumed = passed_on(stopped, updater_of("compiled", network(), clip_norm=0.1), tmp_path)
    for _ in range(2):
        resumed.update(tasks_of())
    assert_close(state_of(whole), state_of(eager), rtol=1e-6, atol=1e-7)
    assert_close(state_of(resumed), state_of(whole), rtol=0, atol=0)
    poison = tasks_of()
    poison.query.targets[1] = float("nan")
    with pytest.raises(NonFiniteError, match="task 1"):
        whole.update(poison)
    assert_close(state_of(whole)["optimizer"], state_of(resumed)["optimizer"], rtol=0, atol=0)
