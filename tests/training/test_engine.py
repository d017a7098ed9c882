"""How the engine computes: chunks, accumulated gradients, random numbers, falling back to eager mode."""

import copy
import logging

import pytest
import torch
import torch._inductor
import torch.nn.functional as F
from reference import error, flat, gradient_descent, meta_gradient, meta_loss, network, normed, task_of, tasks_of
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.training.engine import Engine
from headstart.training.gradient import GradientUpdater
from headstart.vectorize import stack


def gradient_of(module: nn.Module) -> Tensor:
    """What lies in `.grad`, zero where nothing does, as one vector."""
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()])


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


class TestEager:
    @pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 99])
    def test_is_the_gradient_of_a_hand_written_loop(self, chunk_size):
        learner = MAML(network(), F.mse_loss, inner=SGD(0.1), steps=2)
        losses = Engine(learner, chunk_size=chunk_size).gradient(tasks_of(5))
        model = network()
        expected = meta_loss(model, F.mse_loss, tasks_of(5), gradient_descent(0.1), 2)
        assert losses.shape == (5,)
        assert not losses.requires_grad
        assert_close(losses.mean(), expected)
        assert error(gradient_of(learner), meta_gradient(expected, model)) < 1e-12

    @pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 99])
    def test_tasks_of_unequal_sizes(self, chunk_size):
        tasks = [task_of(0, shots=3), task_of(1, queries=2), task_of(2, shots=3), task_of(3), task_of(4)]
        learner, other = (MAML(network(), F.mse_loss, inner=SGD(0.1), steps=2) for _ in range(2))
        losses = Engine(learner, chunk_size=chunk_size).gradient(tasks)
        assert_close(losses, other.task_losses(tasks))
        other(tasks).backward()
        assert error(gradient_of(learner), gradient_of(other)) < 1e-12

    @pytest.mark.parametrize("chunk_size", [None, 1, 2, 99])
    def test_running_statistics_move_once_per_meta_batch(self, chunk_size):
        learner, other = (MAML(normed(), F.mse_loss, inner=SGD(0.1)) for _ in range(2))
        Engine(learner, chunk_size=chunk_size).gradient(tasks_of(5))
        other(tasks_of(5)).backward()
        assert buffers_of(learner)["model.0.1.num_batches_tracked"] == 1
        assert_close(buffers_of(learner), buffers_of(other))
        assert not torch.equal(buffers_of(learner)["model.0.1.running_mean"], torch.zeros(4, dtype=torch.float64))

    def test_computing_moves_nothing_and_neither_does_evaluation_mode(self):
        learner = MAML(normed(), F.mse_loss)
        before = buffers_of(learner)
        _, seen = Engine(learner, chunk_size=2).compute(tasks_of(5))
        assert_close(buffers_of(learner), before, rtol=0, atol=0)
        assert [len(t) for t in seen["0.1"]] == [5] * 4
        Engine(learner.eval()).gradient(tasks_of(5))
        assert_close(buffers_of(learner), before, rtol=0, atol=0)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("threads", "used"), [(None, 3), (2, 2)])
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_threads_are_its_own(threads, used, mode):
    """In computing and in the update; PyTorch has its own number of them again afterwards."""
    seen: list[int] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return F.mse_loss(outputs, targets)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        learner = MAML(network(), loss, inner=SGD(0.1))
        engine = Engine(learner, mode=mode, threads=threads)
        engine.gradient(tasks_of(2))
        GradientUpdater(learner, engine).update(tasks_of(2))
        assert set(seen) == {used}
        assert torch.get_num_threads() == 3
        with pytest.raises(TypeError):
            engine.gradient(object())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("mode", "steps", "chunk_size"),
    [("eager", 2, None), ("eager", 2, 2), ("compiled", 1, 2), ("compiled", 2, None), ("compiled", 2, 2)],
)
@pytest.mark.usefixtures("recorded")
class TestAccumulation:
    def test_adds_to_what_is_there(self, mode, steps, chunk_size):
        learner = MAML(network(), F.mse_loss, steps=steps)
        engine = Engine(learner, mode=mode, chunk_size=chunk_size)
        engine.gradient(tasks_of(5))
        first = gradient_of(learner)
        engine.gradient(tasks_of(5))
        assert_close(gradient_of(learner), 2 * first)
        for p in learner.parameters():
            p.grad = torch.ones_like(p)
        engine.gradient(tasks_of(5))
        assert_close(gradient_of(learner), first + 1)
        assert engine.mode == mode

    def test_leaves_frozen_and_unused_parameters_alone(self, mode, steps, chunk_size):
        torch.manual_seed(0)
        model = network()
        model[0].bias.requires_grad_(False)
        model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
        learner = MAML(model, F.mse_loss, inner=SGD(0.1), steps=steps, adapt_only=["*", "!unused"])
        engine = Engine(learner, mode=mode, chunk_size=chunk_size)
        engine.gradient(tasks_of(5))
        assert engine.mode == mode
        assert model[0].bias.grad is None
        assert model.unused.grad is None
        held = network()
        held[0].bias.requires_grad_(False)
        expected = meta_loss(held, F.mse_loss, tasks_of(5), gradient_descent(0.1), steps)
        given = flat([p.grad for p in model.parameters() if p.grad is not None])
        assert error(given, meta_gradient(expected, held)) < 1e-12


def with_dropout(p: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 1)).double()


class TestDropout:
    def test_is_one_graph_instead_of_a_sweep(self, recorded):
        learner = MAML(with_dropout(), F.mse_loss, steps=3)
        engine = Engine(learner, mode="compiled")
        assert engine.rolled
        for _ in range(3):
            engine.gradient(tasks_of())
        assert engine.mode == "compiled"
        assert not engine.rolled
        assert len(recorded) == 1

    @pytest.mark.usefixtures("recorded")
    def test_masks_are_drawn_anew(self):
        task = task_of(0)
        same = stack([task] * 4)
        learner = MAML(with_dropout(), F.mse_loss)
        engine = Engine(learner, mode="compiled")
        losses = torch.cat([engine.gradient(same) for _ in range(3)])
        assert len(set(losses.tolist())) == 12
        learner.eval()
        evaluated = engine.gradient(same)
        assert_close(evaluated, evaluated[:1].expand(4), rtol=1e-12, atol=0)

    @pytest.mark.usefixtures("recorded")
    def test_its_rate_is_that_of_eager_mode(self):
        """The mean over many draws of a loss that is linear in the mask, which is 1 wherever dropout is right."""
        model = nn.Sequential(nn.Linear(1, 1000, bias=False), nn.Dropout(0.8)).double()
        nn.init.ones_(model[0].weight)
        learner = MAML(model, lambda outputs, targets: outputs.mean(), steps=0)
        engine = Engine(learner, mode="compiled")
        ones = Batch(torch.ones(4, 20, 1, dtype=torch.float64), torch.ones(4, 20, 1, dtype=torch.float64))
        losses = torch.stack([engine.gradient(Task(ones, ones)) for _ in range(5)])
        deviation = (0.8 / 0.2 / (20 * 1000)) ** 0.5  # of one task's loss, from a binomial
        assert abs(losses.mean() - 1) < 4 * deviation / 20**0.5
        assert 0.5 < losses.std() / deviation < 2

    @pytest.mark.parametrize("steps", [1, 2])
    @pytest.mark.usefixtures("recorded")
    def test_recording_leaves_the_random_state_alone(self, steps):
        """A resumed run records at another iteration than the uninterrupted one."""
        learner = MAML(with_dropout(), F.mse_loss, steps=steps)
        begun, resumed = Engine(learner, mode="compiled"), Engine(learner, mode="compiled")
        begun.gradient(tasks_of())
        torch.manual_seed(1)
        expected = begun.gradient(tasks_of())
        after = torch.rand(1)
        torch.manual_seed(1)
        assert torch.equal(resumed.gradient(tasks_of()), expected)
        assert torch.equal(torch.rand(1), after)


class Branches(nn.Module):
    """Its path depends on its input."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(x)
        return out if x.sum() > 0 else 2 * out


class Scales(Branches):
    """A number computed from the input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * x.abs().max().item()


class Branched(Branches):
    """A path that depends on a parameter."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.layer.weight.sum() > 100 else 3 * self.layer(x)


class TestFallsBack:
    @pytest.mark.parametrize("steps", [1, 2])
    @pytest.mark.parametrize("make", [Branches, Scales, Branched])
    def test_where_the_path_depends_on_values(self, make, steps, caplog, recorded):
        torch.manual_seed(0)
        learner = MAML(make().double(), F.mse_loss, inner=SGD(0.1), steps=steps)
        engine, tasks = Engine(learner, mode="compiled"), tasks_of(4)
        model = copy.deepcopy(learner.model)
        with caplog.at_level(logging.WARNING, logger="headstart.training"):
            for _ in range(3):
                learner.zero_grad()
                losses = engine.gradient(tasks)
        expected = meta_loss(model, F.mse_loss, tasks, gradient_descent(0.1), steps)
        assert_close(losses.mean(), expected)
        assert error(gradient_of(learner), meta_gradient(expected, model)) < 1e-12
        (record,) = [r for r in caplog.records if r.name.startswith("headstart.training")]
        assert "cannot be compiled" in record.getMessage()
        assert any(word in record.getMessage() for word in ("data-dependent", "value out of a", "item()"))
        assert engine.mode == "eager"
        assert not recorded

    @pytest.mark.usefixtures("recorded")
    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    @pytest.mark.parametrize("steps", [1, 2])
    @pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
    def test_where_vmap_refuses(self, layer, steps, caplog):
        """Recurrent layers run in a loop over tasks, which cannot be recorded after the attempt without one."""

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cells, self.head = layer(2, 3, batch_first=True), nn.Linear(3, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.cells(x[:, None])[0][:, -1])

        torch.manual_seed(0)
        learner = MAML(Recurrent().double(), F.mse_loss, inner=SGD(0.1), steps=steps)
        model, engine = copy.deepcopy(learner.model), Engine(learner, mode="compiled")
        with caplog.at_level(logging.WARNING, logger="headstart.training"):
            for _ in range(2):
                learner.zero_grad()
                engine.gradient(tasks_of())
        expected = meta_gradient(meta_loss(model, F.mse_loss, tasks_of(), gradient_descent(0.1), steps), model)
        assert error(gradient_of(learner), expected) < 1e-10
        assert engine.mode == "eager"
        assert learner.vectorize == "loop"
        (warned,) = [r.getMessage() for r in caplog.records if r.name.startswith("headstart.training")]
        assert "cannot be compiled; going on in eager mode (RuntimeError: " in warned
        assert ("Batching rule not implemented" if steps > 1 else "doesn't match the broadcast shape") in warned

    def test_where_the_compiler_fails(self, monkeypatch, caplog):
        def broken(*_):
            raise NotImplementedError("no such kernel\nand much more")

        monkeypatch.setattr(torch._inductor, "compile", broken)
        learner, other = MAML(network(), F.mse_loss), MAML(network(), F.mse_loss)
        engine = Engine(learner, mode="compiled")
        with caplog.at_level(logging.WARNING, logger="headstart.training"):
            engine.gradient(tasks_of())
            engine.gradient(tasks_of())
        other(tasks_of()).backward()
        assert_close(gradient_of(learner), 2 * gradient_of(other))
        (record,) = caplog.records
        assert "NotImplementedError: no such kernel)" in record.getMessage()

    @pytest.mark.usefixtures("recorded")
    @pytest.mark.parametrize("steps", [1, 2])
    def test_or_learns_rates_that_are_not_registered(self, steps):
        """Rates that the caller holds get their gradient in eager mode; compiled, it must not be lost."""
        rates = {n: nn.Parameter(torch.tensor(0.1, dtype=torch.float64)) for n, _ in network().named_parameters()}
        learner = MAML(network(), F.mse_loss, inner=SGD(rates), steps=steps)
        Engine(learner).gradient(tasks_of())
        expected = flat([rate.grad for rate in rates.values()])
        for rate in rates.values():
            rate.grad = None
        Engine(learner, mode="compiled").gradient(tasks_of())
        assert all(rate.grad is not None for rate in rates.values())
        assert error(flat([rate.grad for rate in rates.values()]), expected) < 1e-10


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "fast"}, "mode must be one of eager, compiled, graphed, got 'fast'"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, got 'float16'"),
        ({"threads": 0}, "threads must be at least 1, or None for as many as PyTorch is set to, got 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, or None for all tasks at once, got 0"),
        ({"mode": "graphed"}, "the learner is on cpu: use 'compiled' or 'eager'"),
    ],
)
def test_settings_are_checked(settings, told):
    with pytest.raises(ValueError, match=told):
        Engine(MAML(network(), F.mse_loss), **settings)
