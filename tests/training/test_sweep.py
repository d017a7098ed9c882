import contextlib

import pytest
import torch
from reference import error
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import Batch, Task
from headstart.training.engine import Engine, StepwiseLearner
from headstart.training.sweep import Sweep

RATE, CURVATURE = 0.3, 0.5


class Parabola(nn.Module):
    """Descends `curvature / 2 * (w - support)**2`, with a learned rate and velocity, to be judged at `query`.

    Its state has a tensor that depends on a meta-parameter, and an integer that nothing depends on.
    """

    def __init__(self, steps: int, size: int = 2):
        super().__init__()
        self.steps = steps
        self.start_at = nn.Parameter(torch.linspace(1, 2, size, dtype=torch.float64))
        self.rate = nn.Parameter(torch.tensor(RATE, dtype=torch.float64))
        self.velocity = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))  # of the query loss only
        self.unused = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.recomputes = False
        self.register_buffer("curvature", torch.tensor(CURVATURE, dtype=torch.float64))

    def start(self, task):
        return {"w": self.start_at}, {"velocity": self.velocity.expand(2), "taken": torch.zeros((), dtype=torch.long)}

    def step(self, adapting, state, task):
        gradient = self.curvature * (adapting["w"] - task.support.inputs)
        velocity = 0.9 * state["velocity"] + gradient
        return {"w": adapting["w"] - self.rate * velocity}, {"velocity": velocity, "taken": state["taken"] + 1}

    def query_loss(self, adapting, task):
        return self.scale * (adapting["w"] - task.query.inputs).square().sum() / 2, {"end": adapting["w"]}

    def outcomes(self, tasks):
        def outcome(task):
            adapting, state = self.start(task)
            for _ in range(self.steps):
                adapting, state = self.step(adapting, state, task)
            return self.query_loss(adapting, task)

        return torch.vmap(outcome)(tasks)

    def keep_statistics(self, seen):
        self.seen_last = seen


def tasks_of(count: int) -> Task:
    support, query = torch.randn(2, count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Task(Batch(support, torch.zeros(count)), Batch(query, torch.zeros(count)))


def by_hand(learner: Parabola, tasks: Task) -> tuple[Tensor, Tensor]:
    """Losses, and the gradient of their sum in rate, start, velocity and scale, through the matrix of a step.

    `(w - c, v)` becomes `M (w - c, v)` with the same `M` at each step.
    """

    def losses(rate: Tensor, start: Tensor, velocity: Tensor, scale: Tensor) -> Tensor:
        a = torch.tensor(CURVATURE, dtype=torch.float64)
        one, decay = torch.ones_like(a), 0.9 * torch.ones_like(a)
        matrix = torch.stack([torch.stack([one - rate * a, -rate * decay]), torch.stack([a, decay])])
        power = torch.linalg.matrix_power(matrix, learner.steps)
        offset = start - tasks.support.inputs
        end = power[0, 0] * offset + power[0, 1] * velocity + tasks.support.inputs
        return scale * (end - tasks.query.inputs).square().sum(-1) / 2

    inputs = [learner.rate, learner.start_at, learner.velocity, learner.scale]
    inputs = [t.detach().requires_grad_() for t in inputs]
    value = losses(*inputs)
    return value, torch.cat([g.reshape(-1) for g in torch.autograd.grad(value.sum(), inputs)])


def swept(learner: Parabola) -> Sweep:
    return Sweep(learner, tuple, contextlib.nullcontext)


def assert_closed_form(sweep: Sweep, learner: Parabola, tasks: Task) -> None:
    meta = {name: p.detach() for name, p in learner.named_parameters()}
    losses, _, grads = sweep(meta, dict(learner.named_buffers()), tasks)
    expected, gradient = by_hand(learner, tasks)
    assert_close(losses, expected)
    given = torch.cat([grads[name].reshape(-1) for name in ("rate", "start_at", "velocity", "scale")])
    assert error(given, gradient) < 1e-12


@pytest.mark.usefixtures("recorded")
class TestSweep:
    @pytest.mark.parametrize("steps", [1, 2, 6])
    def test_is_the_closed_form(self, steps):
        learner, tasks = Parabola(steps), tasks_of(4)
        meta = {name: p.detach() for name, p in learner.named_parameters()}
        losses, seen, grads = swept(learner)(meta, dict(learner.named_buffers()), tasks)
        expected, gradient = by_hand(learner, tasks)
        assert_close(losses, expected)
        given = torch.cat([grads[name].reshape(-1) for name in ("rate", "start_at", "velocity", "scale")])
        assert error(given, gradient) < 1e-12
        assert "unused" not in grads
        assert seen["end"].shape == (4, 2)
        assert not losses.requires_grad

    def test_holds_what_it_is_given_and_not_the_learners_own(self):
        learner, tasks = Parabola(3), tasks_of(4)
        meta = {name: p.detach() for name, p in learner.named_parameters()} | {"rate": torch.tensor(0.2).double()}
        losses, _, _ = swept(learner)(meta, dict(learner.named_buffers()), tasks)
        learner.rate.data.fill_(0.2)
        assert_close(losses, by_hand(learner, tasks)[0])

    @pytest.mark.parametrize("chunk_size", [None, 3])
    def test_in_an_engine_learned_rates_get_their_gradient(self, chunk_size):
        learner, tasks = Parabola(5), tasks_of(4)
        assert isinstance(learner, StepwiseLearner)
        engine = Engine(learner, mode="compiled", chunk_size=chunk_size)
        assert engine.rolled
        losses = engine.gradient(tasks)
        expected, gradient = by_hand(learner, tasks)
        assert_close(losses, expected)
        given = torch.cat(
            [p.grad.reshape(-1) for p in (learner.rate, learner.start_at, learner.velocity, learner.scale)]
        )
        assert error(given, gradient / 4) < 1e-12
        assert learner.unused.grad is None
        assert engine.mode == "compiled"

    def test_each_piece_is_recorded_once_for_any_number_of_steps(self, recorded):
        learner, tasks = Parabola(2), tasks_of(4)
        sweep = swept(learner)
        meta, buffers = {name: p.detach() for name, p in learner.named_parameters()}, dict(learner.named_buffers())
        for steps in (2, 3, 8):
            learner.steps = steps
            losses, _, _ = sweep(meta, buffers, tasks)
            assert_close(losses, by_hand(learner, tasks)[0])
        assert len(recorded) == 3

    @pytest.mark.parametrize("recomputes", [False, True])
    def test_steps_are_kept_or_computed_again(self, recomputes):
        learner, tasks = Parabola(4), tasks_of(4)
        learner.recomputes = recomputes
        sweep = swept(learner)
        assert_closed_form(sweep, learner, tasks)
        made = [len(piece.compiled) for piece in (sweep.keeping, sweep.forwards, sweep.backwards)]
        assert made == ([0, 1, 1] if recomputes else [1, 0, 0])

    def test_steps_may_write_to_what_they_compute(self):
        class Writing(Parabola):
            def step(self, adapting, state, task):
                adapting, state = super().step(adapting, state, task)
                return {"w": adapting["w"].clone().mul_(1.0)}, state

        learner, tasks = Writing(4), tasks_of(4)
        sweep = swept(learner)
        assert_closed_form(sweep, learner, tasks)

    def test_what_every_step_is_given_is_copied_once(self):
        """Views of one tensor, as samplers make them, become dense ones; all steps share these."""
        learner = Parabola(6)
        tasks = torch.utils._pytree.tree_map(lambda t: t.repeat_interleave(2, -1)[..., ::2], tasks_of(4))
        sweep, places = swept(learner), set()
        called = sweep.keeping.found

        def found(*trees):
            compiled, leaves = called(*trees)
            places.add(leaves[-2].data_ptr())
            return compiled, leaves

        sweep.keeping.found = found
        meta = {name: p.detach() for name, p in learner.named_parameters()}
        losses, _, _ = sweep(meta, dict(learner.named_buffers()), tasks)
        assert_close(losses, by_hand(learner, tasks)[0])
        assert len(places) == 1

    def test_needs_only_the_last_piece_for_one_step(self, recorded):
        learner = Parabola(1)
        meta = {name: p.detach() for name, p in learner.named_parameters()}
        swept(learner)(meta, dict(learner.named_buffers()), tasks_of(2))
        assert len(recorded) == 1
