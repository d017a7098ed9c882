import copy
import logging

import pytest
import torch
import torch._inductor
import torch.nn.functional as F
from reference import (
    cast,
    error,
    flat,
    gradient_descent,
    meta_gradient,
    meta_loss,
    native,
    network,
    normed,
    task_of,
    tasks_of,
    unstack,
)
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Adam, Batch, Momentum, Task
from headstart.models import Conv4
from headstart.training.engine import Engine
from headstart.vectorize import stack

TASKS, WAYS = 3, 3


def images_of(dtype: torch.dtype = torch.float64) -> Task:
    """Support and query set are views of one tensor, as samplers make them."""
    images = torch.randn(TASKS, 12, 1, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12).remainder(WAYS).expand(TASKS, 12)
    return Task(Batch(images[:, :6], labels[:, :6]), Batch(images[:, 6:], labels[:, 6:]))


def convolutional(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """The first half of a Conv-4; its batch norms' running statistics are not what they begin with."""
    torch.manual_seed(0)
    whole = Conv4(WAYS, filters=4)
    model = nn.Sequential(*whole.body[:2], nn.Flatten(), nn.Linear(16, WAYS))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.3)
    return model.to(dtype)


def gradient_of(module: nn.Module) -> Tensor:
    """What lies in `.grad`, zero where nothing does, as one vector."""
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()])


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_as_eager(learner: MAML, tasks: Task, tolerance: float = 1e-10, calls: int = 1, **settings) -> Engine:
    """Losses, gradients and running statistics of `calls` calls; gives the compiled engine."""
    other = copy.deepcopy(learner)
    compiled, eager = Engine(learner, mode="compiled", **settings), Engine(other, **settings)
    for _ in range(calls):
        learner.zero_grad(), other.zero_grad()
        assert_close(compiled.gradient(tasks), eager.gradient(tasks), rtol=tolerance, atol=tolerance)
        assert compiled.mode == "compiled"
        assert error(gradient_of(learner), gradient_of(other)) < tolerance
        assert_close(buffers_of(learner), buffers_of(other), rtol=tolerance, atol=tolerance)
    return compiled


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
        assert [len(t) for t in seen["0.1"]] == [5, 5, 5]
        Engine(learner.eval()).gradient(tasks_of(5))
        assert_close(buffers_of(learner), before, rtol=0, atol=0)


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


INNER = {"SGD": SGD(0.1), "Momentum": Momentum(0.1), "Nesterov": Momentum(0.1, nesterov=True), "Adam": Adam(0.05)}


@pytest.mark.usefixtures("recorded")
class TestRecordedIsEager:
    @pytest.mark.parametrize("steps", [1, 3])
    @pytest.mark.parametrize("inner", INNER.values(), ids=INNER)
    def test_inner_optimizers(self, inner, steps):
        assert_as_eager(MAML(network(), F.mse_loss, inner=inner, steps=steps), tasks_of(), calls=2)

    @pytest.mark.parametrize("steps", [0, 1, 3])
    @pytest.mark.parametrize("options", [{"first_order": True}, {"adapt_only": "2.*"}], ids=str)
    def test_options(self, options, steps):
        learner = MAML(network(), F.mse_loss, inner=Momentum(0.1), steps=steps, **options)
        assert_as_eager(learner, tasks_of(), calls=2)

    @pytest.mark.parametrize(
        ("steps", "norm", "training"),
        [(1, "support", True), (2, "support", True), (2, "batch", False), (2, "running", True), (1, "running", False)],
    )
    def test_batch_norm(self, steps, norm, training):
        learner = MAML(normed(), F.mse_loss, inner=SGD(0.1), steps=steps, norm=norm).train(training)
        assert_as_eager(learner, tasks_of(), calls=2)

    @pytest.mark.parametrize("steps", [1, 3])
    def test_convolutions_against_a_hand_written_loop(self, steps):
        learner = MAML(convolutional(), F.cross_entropy, inner=SGD(0.1), steps=steps, norm="batch")
        model = native(convolutional())
        Engine(learner, mode="compiled").gradient(images_of())
        expected = meta_loss(model, F.cross_entropy, images_of(), gradient_descent(0.1), steps)
        assert error(gradient_of(learner), meta_gradient(expected, model)) < 1e-10

    @pytest.mark.parametrize("steps", [1, 2])
    def test_single_precision(self, steps):
        learner = MAML(network(torch.float32), F.mse_loss, inner=SGD(0.1), steps=steps)
        assert_as_eager(learner, tasks_of(dtype=torch.float32), tolerance=1e-4)

    @pytest.mark.parametrize("steps", [1, 2])
    def test_buffers_are_read_at_every_call(self, steps):
        learner = MAML(normed(), F.mse_loss, inner=SGD(0.1), steps=steps, norm="running").eval()
        engine = assert_as_eager(learner, tasks_of())
        with torch.no_grad():
            for name, buffer in learner.named_buffers():
                if name.endswith("running_var"):
                    buffer.mul_(4)
        other = copy.deepcopy(learner)
        losses = engine.gradient(tasks_of())
        assert_close(losses, Engine(other).gradient(tasks_of()))
        assert engine.mode == "compiled"

    def test_chunks_that_do_not_divide_the_tasks(self):
        engine = assert_as_eager(MAML(network(), F.mse_loss, steps=3), tasks_of(5), chunk_size=2)
        assert [len(t.compiled) for t in pieces(engine)] == [2, 2, 2]  # of two tasks, and of one

    def test_unequal_sizes_are_computed_eagerly(self, recorded):
        tasks = [task_of(0, shots=3), task_of(1)]
        learner, other = (MAML(network(), F.mse_loss) for _ in range(2))
        Engine(learner, mode="compiled").gradient(tasks)
        other(tasks).backward()
        assert error(gradient_of(learner), gradient_of(other)) < 1e-12
        assert not recorded

    def test_parameters_are_left_alone(self):
        learner = MAML(normed(), F.mse_loss, steps=2)
        before = {name: value.clone() for name, value in learner.state_dict().items()}
        Engine(learner, mode="compiled").compute(tasks_of())
        assert_close(learner.state_dict(), before, rtol=0, atol=0)


COMPILER_WARNS = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")


@COMPILER_WARNS
class TestCompiledIsEager:
    """With the compiler in it."""

    def test_a_sweep_over_convolutions(self):
        """Three graphs, whatever the number of steps: tensors that one gives another always have the same layout."""
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Tanh())
        model = nn.Sequential(body, nn.Flatten(), nn.Linear(32, WAYS)).double()
        learner = MAML(model, F.cross_entropy, inner=Momentum(0.1), steps=4)
        engine = assert_as_eager(learner, contiguous(images_of()), calls=2)
        assert [len(piece.compiled) for piece in pieces(engine)] == [1, 1, 1]

    def test_one_graph_with_dropout_in_half_precision(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Dropout(0.2), nn.Linear(64, 1))
        learner = MAML(model, F.mse_loss, inner=SGD(0.1), steps=2)
        other = copy.deepcopy(learner)
        engine, eager = Engine(learner, mode="compiled", precision="bfloat16"), Engine(other)
        tasks = stack([task_of(0, dtype=torch.float32)] * 200)
        losses = torch.stack([engine.gradient(tasks), engine.gradient(tasks)])
        expected = eager.gradient(tasks)
        assert engine.mode == "compiled"
        assert len(set(losses.flatten().tolist())) > 300  # not 400: there are few numbers in bfloat16
        assert_close(losses.mean(), expected.mean(), rtol=0.1, atol=0)
        assert F.cosine_similarity(gradient_of(learner), gradient_of(other), dim=0) > 0.99
        assert gradient_of(learner).dtype == torch.float32


def contiguous(tasks: Task) -> Task:
    return torch.utils._pytree.tree_map(torch.Tensor.contiguous, tasks)


def pieces(engine: Engine) -> list:
    return [engine._sweep.forwards, engine._sweep.last, engine._sweep.backwards]


class TestRecordedAnew:
    """Each recording is counted."""

    def test_not_for_another_number_of_steps(self, recorded):
        learner = MAML(network(), F.mse_loss, inner=SGD(0.1), steps=2)
        engine = assert_as_eager(learner, tasks_of())
        assert len(recorded) == 3
        for steps in (3, 7):
            learner.steps = steps
            other = copy.deepcopy(learner)
            learner.zero_grad(), other.zero_grad()
            assert_close(engine.gradient(tasks_of()), Engine(other).gradient(tasks_of()))
            assert error(gradient_of(learner), gradient_of(other)) < 1e-10
        assert len(recorded) == 3

    @pytest.mark.parametrize(
        ("steps", "change"),
        [
            (1, lambda learner: setattr(learner, "inner", SGD(0.2))),
            (2, lambda learner: setattr(learner, "inner", SGD(0.2))),
            (1, lambda learner: learner.eval()),
            (2, lambda learner: setattr(learner, "first_order", True)),
            (1, lambda learner: setattr(learner, "norm", "batch")),
            (1, lambda learner: setattr(learner, "loss", lambda outputs, targets, params: outputs.square().mean())),
            (1, lambda learner: learner.model[1].bias.requires_grad_(False)),
            (1, lambda learner: learner.model[0][1].eval()),
            (2, lambda learner: setattr(learner.model[0][1], "eps", 0.1)),
        ],
        ids=[
            "inner",
            "inner, swept",
            "mode",
            "order",
            "norm",
            "loss",
            "frozen",
            "mode of a layer",
            "setting of a layer",
        ],
    )
    def test_for_another_setting(self, steps, change, recorded):
        learner = MAML(normed(), F.mse_loss, inner=SGD(0.1), steps=steps, norm="running")
        engine = assert_as_eager(learner, tasks_of(), calls=2)
        once = len(recorded)
        change(learner)
        other = copy.deepcopy(learner)
        learner.zero_grad(), other.zero_grad()
        assert_close(engine.gradient(tasks_of()), Engine(other).gradient(tasks_of()))
        assert error(gradient_of(learner), gradient_of(other)) < 1e-10
        assert len(recorded) == 2 * once

    @pytest.mark.parametrize("steps", [1, 2])
    def test_for_another_shape_or_type(self, steps, recorded):
        learner = MAML(network(), F.mse_loss, inner=SGD(0.1), steps=steps)
        engine = assert_as_eager(learner, tasks_of(2))
        once, other = len(recorded), copy.deepcopy(learner)
        assert_close(engine.gradient(tasks_of(4)), Engine(other).gradient(tasks_of(4)))
        assert len(recorded) == 2 * once
        learner.float(), other.float()
        tasks = cast(tasks_of(4), torch.float32)
        assert_close(engine.gradient(tasks), Engine(other).gradient(tasks))
        assert len(recorded) == 3 * once
        engine.gradient(tasks)
        assert len(recorded) == 3 * once


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
    def test_or_gives_right_numbers_where_vmap_refuses(self, steps, caplog):
        """An LSTM runs in a loop over tasks; compiled or not, the numbers are right."""

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cells, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 1)

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
        warned = [r.getMessage() for r in caplog.records if r.name.startswith("headstart.training")]
        assert len(warned) == (engine.mode == "eager")

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


class TestBfloat16:
    @pytest.mark.parametrize(("mode", "steps"), [("eager", 1), ("eager", 2), ("compiled", 1), ("compiled", 2)])
    @pytest.mark.usefixtures("recorded")
    def test_is_close_and_leaves_types_alone(self, mode, steps):
        torch.manual_seed(0)
        mlp = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
        smooth = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 16, WAYS)
        )
        for model, loss, tasks in (
            (mlp, F.mse_loss, tasks_of(dtype=torch.float32)),
            (smooth, F.cross_entropy, images_of(torch.float32)),
        ):
            learner, other = (MAML(copy.deepcopy(model), loss, inner=SGD(0.1), steps=steps) for _ in range(2))
            engine = Engine(learner, mode=mode, precision="bfloat16")
            losses = engine.gradient(tasks)
            exact = Engine(other).gradient(tasks)
            assert engine.mode == mode
            assert losses.dtype == torch.float32
            assert {p.dtype for p in learner.parameters()} == {p.grad.dtype for p in learner.parameters()}
            assert gradient_of(learner).dtype == torch.float32
            assert_close(losses, exact, rtol=0.05, atol=0.02)
            assert F.cosine_similarity(gradient_of(learner), gradient_of(other), dim=0) > 0.99
            assert error(gradient_of(learner), gradient_of(other)) > 1e-5  # it was not computed in float32


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"mode": "fast"}, "mode must be one of eager, compiled, graphed, got 'fast'"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16, got 'float16'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, or None for all tasks at once, got 0"),
        ({"mode": "graphed"}, "there is no GPU here"),
    ],
)
def test_settings_are_checked(settings, told, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=told):
        Engine(MAML(network(), F.mse_loss), **settings)


def test_references_differ_where_they_should():
    """A second-order gradient is not a first-order one, and one task is not another: the comparisons above can fail."""
    first, second = (MAML(network(), F.mse_loss, inner=SGD(0.1), steps=2, first_order=f) for f in (True, False))
    Engine(first).gradient(tasks_of())
    Engine(second).gradient(tasks_of())
    assert error(gradient_of(first), gradient_of(second)) > 0.01
    assert len(unstack(tasks_of())) == TASKS
