"""Compiled mode and half precision give what eager mode gives, and what is compiled is compiled once."""

import collections
import copy

import pytest
import torch
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
from torch.utils._python_dispatch import TorchDispatchMode

from headstart import MAML, SGD, Adam, Batch, Momentum, Task, once
from headstart.models import Conv4
from headstart.training.engine import Engine
from headstart.training.gradient import GradientUpdater
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


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Linear(32, WAYS)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).view(len(images), -1))


class Writing(Viewing):
    """Writes to images after a view was taken of them, and reads the view; or the other way round."""

    def __init__(self, written: str):
        super().__init__()
        self.written = written

    def forward(self, images: Tensor) -> Tensor:
        images = self.body(images) + 1
        view = images.view(len(images), -1)
        if self.written == "images":
            images.mul_(2)
            return self.head(view)
        view.mul_(2)
        return self.head(images.flatten(1))


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
        assert [len(t.compiled) for t in pieces(engine)] == [2, 2]  # of two tasks, and of one

    def test_unequal_sizes_are_computed_eagerly(self, recorded):
        tasks = [task_of(0, shots=3), task_of(1)]
        learner, other = (MAML(network(), F.mse_loss) for _ in range(2))
        Engine(learner, mode="compiled").gradient(tasks)
        other(tasks).backward()
        assert error(gradient_of(learner), gradient_of(other)) < 1e-12
        assert not recorded

    def test_updates_whatever_the_layout_in_which_a_graph_gives_gradients(self, monkeypatch):
        """Fused Adam reads a gradient as it lies in memory, which a compiler may choose."""
        plain = Engine._of_chunk

        def transposed(*args):
            losses, seen, grads = plain(*args)
            channels_last = {
                n: g.to(memory_format=torch.channels_last) if g.dim() == 4 else g for n, g in grads.items()
            }
            assert any(g.stride() != grads[n].stride() for n, g in channels_last.items())
            return losses, seen, channels_last

        monkeypatch.setattr(Engine, "_of_chunk", transposed)
        learner = MAML(convolutional(), F.cross_entropy)
        other = copy.deepcopy(learner)
        updaters = [
            GradientUpdater(one, Engine(one, mode=mode, chunk_size=2))
            for one, mode in ((learner, "compiled"), (other, "eager"))
        ]
        for updater in updaters:
            for _ in range(2):
                updater.update(images_of())
        assert updaters[0].engine.mode == "compiled"
        for p, q in zip(learner.parameters(), other.parameters(), strict=True):
            assert_close(p, q, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize(
        ("steps", "norm", "large"),
        [
            (1, "batch", False),
            *((2, norm, large) for norm in ("batch", "support", "support+query") for large in (False, True)),
        ],
    )
    def test_images_flattened_by_view(self, monkeypatch, steps, norm, large):
        """As most networks do. Inside, images have their channels last, which such a view cannot be taken of."""
        monkeypatch.setattr(once, "LARGE_IMAGE", 0 if large else 10**9)
        torch.manual_seed(0)
        learner = MAML(Viewing().double(), F.cross_entropy, inner=SGD(0.1), steps=steps, norm=norm)
        assert_as_eager(learner, images_of(), calls=2)

    @pytest.mark.parametrize("steps", [1, 2])
    @pytest.mark.parametrize("written", ["images", "view"])
    def test_writes_that_a_view_would_show(self, steps, written, caplog):
        """A copy would hide them: better slowly than wrong."""
        torch.manual_seed(0)
        learner = MAML(Writing(written).double(), F.cross_entropy, inner=SGD(0.1), steps=steps)
        other = copy.deepcopy(learner)
        engine = Engine(learner, mode="compiled")
        assert_close(engine.gradient(images_of()), Engine(other).gradient(images_of()))
        assert error(gradient_of(learner), gradient_of(other)) < 1e-10
        assert engine.mode == "eager"
        assert "writes to images of which it has taken a view" in caplog.text

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
        assert [len(piece.compiled) for piece in pieces(engine)] == [1, 1]

    @pytest.mark.parametrize("chunk_size", [1, None])
    def test_a_sweep_over_native_convolutions_and_pooling(self, monkeypatch, chunk_size):
        """What a step hands to its derivative in layouts that native operations choose, queries with channels last."""
        monkeypatch.setattr(once, "LARGE_IMAGE", 0)
        torch.manual_seed(0)
        body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        model = nn.Sequential(body, nn.Flatten(), nn.Linear(32, WAYS)).double()
        learner = MAML(model, F.cross_entropy, inner=SGD(0.1), steps=3)
        engine = assert_as_eager(learner, contiguous(images_of()), calls=2, chunk_size=chunk_size)
        assert [len(piece.compiled) for piece in pieces(engine)] == [1, 1]

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
    """The step with its derivative, two graphs, and the last step."""
    return [engine._sweep.keeping, engine._sweep.last]


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


class TestBfloat16:
    @pytest.mark.parametrize("large", [False, True])
    @pytest.mark.parametrize(("mode", "steps"), [("eager", 1), ("eager", 2), ("compiled", 1), ("compiled", 2)])
    @pytest.mark.usefixtures("recorded")
    def test_is_close_and_leaves_types_alone(self, monkeypatch, mode, steps, large):
        monkeypatch.setattr(once, "LARGE_IMAGE", 0 if large else 10**9)
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

    @pytest.mark.parametrize("how", ["vmap", "loop"])
    @pytest.mark.parametrize("mode", ["eager", "compiled"])
    @pytest.mark.usefixtures("recorded")
    def test_every_convolution_is_in_half_precision(self, monkeypatch, mode, how):
        """Those of the queries too, which only `vmap` surrounds: PyTorch's autocast does not see them."""
        monkeypatch.setattr(once, "LARGE_IMAGE", 0)  # native in compiled mode too
        seen = collections.Counter()

        class Types(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
                    seen[args[0].dtype, args[1].dtype] += 1
                return func(*args, **(kwargs or {}))

        learner = MAML(convolutional(torch.float32), F.cross_entropy, inner=SGD(0.1), steps=2, vectorize=how)
        engine = Engine(learner, mode=mode, precision="bfloat16")
        engine.gradient(images_of(torch.float32))
        with Types():
            engine.gradient(images_of(torch.float32))
        assert engine.mode == mode
        assert set(seen) == {(torch.bfloat16, torch.bfloat16)}


def test_references_differ_where_they_should():
    """A second-order gradient is not a first-order one, and one task is not another: the comparisons above can fail."""
    first, second = (MAML(network(), F.mse_loss, inner=SGD(0.1), steps=2, first_order=f) for f in (True, False))
    Engine(first).gradient(tasks_of())
    Engine(second).gradient(tasks_of())
    assert error(gradient_of(first), gradient_of(second)) > 0.01
    assert len(unstack(tasks_of())) == TASKS
