"""Every public learner, held to one contract; what its own idea is, `tests/algorithms/` compares with loops by hand."""

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import pytest
import torch
from contracts.learners import LEARNERS, build, made, steps_of, tasks_of
from reference import directional_derivatives, error, flat, meta_gradient, trained, unstack
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

import headstart
from headstart import MAML, Batch, Task, algorithms
from headstart.recipes.learners import LEARNERS as NAMES
from headstart.training.engine import Engine

EXACT = [name for name, entry in LEARNERS.items() if entry.exact]
ALL = pytest.mark.parametrize("name", LEARNERS)
MODELS = pytest.mark.parametrize("model", ["plain", "batch norm"])


class TestTheBattery:
    """Whoever adds a learner adds it here: a learner that is not in the table fails these tests."""

    def test_has_every_public_learner(self):
        public = {getattr(algorithms, name) for name in algorithms.__all__}
        public |= {value for name in headstart.__all__ if _is_learner(value := getattr(headstart, name))}
        assert public | set(_final_learners()) == {entry.cls for entry in LEARNERS.values()}

    def test_has_every_learner_of_the_command_line(self):
        named = [name for entry in LEARNERS.values() for name in entry.names]
        assert sorted(named) == sorted(NAMES)

    def test_would_notice_a_new_one(self):
        class Unheard(MAML):
            pass

        assert _is_learner(Unheard)
        assert Unheard not in {entry.cls for entry in LEARNERS.values()}

    def test_finds_learners_that_are_not_exported(self):
        assert {"MAML", "MAMLPlusPlus", "ProtoNet"} <= {cls.__name__ for cls in _final_learners()}
        assert "TaskHead" not in {cls.__name__ for cls in _final_learners()}

    @ALL
    def test_moves_every_meta_parameter(self, name):
        """From the value it begins with, where a term may be zero by chance."""
        moved = made(name)
        assert type(moved) is LEARNERS[name].cls
        assert not [n for n, p in moved.named_parameters() if p.unique().numel() < p.numel()]


def _is_learner(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, MAML)


def _final_learners() -> Iterator[type[MAML]]:
    """Those defined anywhere in `headstart.algorithms`, but for interfaces."""
    for module in pkgutil.iter_modules(algorithms.__path__, "headstart.algorithms."):
        for value in vars(importlib.import_module(module.name)).values():
            if _is_learner(value) and value.__module__ == module.name and not _is_interface(value):
                yield value


def _is_interface(cls: type[MAML]) -> bool:
    return any(getattr(member, "__isabstractmethod__", False) for _, member in inspect.getmembers(cls))


class TestMetaGradient:
    @pytest.mark.parametrize(
        ("model", "norm"), [("plain", "support"), *(("batch norm", norm) for norm in ("support", "batch", "running"))]
    )
    @pytest.mark.parametrize("name", EXACT)
    def test_is_that_of_the_meta_loss(self, name, model, norm):
        learner, tasks = made(name, model, norm=norm), tasks_of()
        gradient = meta_gradient(learner(tasks), learner)
        directions = torch.randn(3, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        slopes = directional_derivatives(lambda: learner(tasks), trained(learner), directions, step=1e-6)
        assert error(directions @ gradient, slopes) < 1e-6

    @pytest.mark.parametrize("name", [name for name in LEARNERS if name not in EXACT])
    def test_of_an_approximation_is_not(self, name):
        """So that the comparison above can fail; what these are instead, the tests of each learner say."""
        learner, tasks = made(name), tasks_of()
        gradient = meta_gradient(learner(tasks), learner)
        directions = torch.randn(3, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        slopes = directional_derivatives(lambda: learner(tasks), trained(learner), directions, step=1e-6)
        assert error(directions @ gradient, slopes) > 1e-2

    @ALL
    def test_reaches_every_meta_parameter_that_counts(self, name):
        learner = made(name)
        grads = torch.autograd.grad(learner(tasks_of()), list(learner.parameters()), allow_unused=True)
        largest = [0.0 if g is None else g.abs().max().item() for g in grads]
        missed = {n for (n, _), size in zip(learner.named_parameters(), largest, strict=True) if size < 1e-12}
        assert missed == WITHOUT_GRADIENT.get(name, set())

    @pytest.mark.parametrize(("how", "chunk_size"), [("vmap", 1), ("vmap", 2), ("loop", None)])
    @ALL
    def test_does_not_depend_on_how_tasks_are_computed_together(self, name, how, chunk_size):
        given, expected = made(name, chunk_size=chunk_size, vectorize=how), made(name, vectorize="vmap")
        assert_close(given.task_losses(tasks_of()), expected.task_losses(tasks_of()), rtol=1e-12, atol=1e-12)
        both = [meta_gradient(learner(tasks_of()), learner) for learner in (given, expected)]
        assert error(*both) < 1e-12
        assert_close(given.predict(tasks_of()), expected.predict(tasks_of()), rtol=1e-12, atol=1e-12)

    @ALL
    def test_of_tasks_of_unequal_sizes_is_the_mean_of_theirs(self, name):
        learner, tasks = made(name), [unstack(tasks_of(shots=shots))[shots] for shots in (1, 2)]
        apart = [meta_gradient(learner([task]), learner) for task in tasks]
        assert error(meta_gradient(learner(tasks), learner), torch.stack(apart).mean(0)) < 1e-12


HEAD, NORM = {"model.3.weight", "model.3.bias"}, {"model.1.weight", "model.1.bias"}
WITHOUT_GRADIENT: dict[str, set[str]] = {
    "MAML++": NORM,  # each step has its own, learned in place of the model's
    "MAML++, first order at first": NORM,
    "FiLM": {"model.0.film.beta"},  # the batch norm behind it takes a shift out again
    "CAVIA": {"model.0.modulation.context"},  # zero in every task, whatever its value
    "shared head": HEAD,  # its row is the same for every class, and cancels in a softmax
    "zero head": HEAD,  # made for each task, as are the following
    "ProtoNet": HEAD,
    "Proto-MAML": HEAD,
}


@ALL
def test_compiled_is_eager(name, recorded):
    """Over two meta-updates: MAML++ changes its weights and its order between them, and running statistics move."""
    learner = made(name).train()
    other = copy.deepcopy(learner)
    compiled, eager = Engine(learner, mode="compiled"), Engine(other)
    losses = []
    for _ in range(2):
        losses.append(compiled.gradient(tasks_of()))
        assert_close(losses[-1], eager.gradient(tasks_of()), rtol=1e-10, atol=1e-10)
        assert compiled.mode == "compiled"
        assert error(gradient_of(learner), gradient_of(other)) < 1e-10
        assert_close(dict(learner.named_buffers()), dict(other.named_buffers()), rtol=1e-10, atol=1e-10)
        for updated in (learner, other):
            torch.optim.SGD(updated.parameters(), lr=0.1).step()
            updated.zero_grad()
    assert recorded
    assert not torch.allclose(*losses)


def gradient_of(module: nn.Module) -> Tensor:
    """What lies in `.grad`, zero where nothing does, as one vector."""
    return flat([torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()])


class TestAdaptAndPredict:
    @ALL
    @pytest.mark.parametrize("norm", ["support", "batch", "running"])
    def test_the_adapted_module_predicts_what_predict_does(self, name, norm):
        learner, tasks = made(name), tasks_of()
        for steps in sorted({0, steps_of(name, 2), steps_of(name, 4)}):  # 4 are more than trained with
            predictions = learner.predict(tasks, steps, norm)
            assert predictions.shape == (3, steps + 1, 9, 3)
            for task, path in zip(unstack(tasks), predictions, strict=True):
                module = learner.adapt(task.support, steps, norm)
                assert_close(module(task.query.inputs).detach(), path[-1], rtol=1e-10, atol=1e-10)

    @ALL
    def test_the_steps_of_training_end_where_the_loss_is_taken(self, name):
        """The meta-loss is that of what `predict` gives; MAML++ is annealed first to the loss after the last step."""
        learner, tasks = made(name, **({"multi_step_loss": 0} if "++" in name else {})), tasks_of()
        given = learner.task_losses(tasks).detach()
        if name == "Reptile":  # learns from support and query alike
            every = Batch(*(torch.cat(pair, 1) for pair in zip(*tasks, strict=True)))
            tasks = Task(every, every)
        outputs = learner.predict(tasks)[:, -1]
        assert_close(given, torch.stack(list(map(nn.functional.cross_entropy, outputs, tasks.query.targets))))

    @ALL
    @MODELS
    def test_neither_leaves_a_trace(self, name, model):
        learner = made(name, model).train()
        learner.model[1].eval()
        for parameter in learner.parameters():
            parameter.grad = torch.full_like(parameter, 7.0)
        before, modes = copy.deepcopy(learner.state_dict()), [m.training for m in learner.modules()]
        held, random_state = [id(p) for p in learner.parameters()], torch.get_rng_state()
        module = learner.adapt(unstack(tasks_of())[0].support, steps=steps_of(name, 3))
        learner.predict(tasks_of(), steps=steps_of(name, 3))
        with torch.no_grad():  # what is adapted is its own, not the learner's
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.zero_()
        assert_close(learner.state_dict(), before, rtol=0, atol=0)
        assert [id(p) for p in learner.parameters()] == held
        assert all(p.grad.eq(7.0).all() for p in learner.parameters())
        assert [m.training for m in learner.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random_state)

    @ALL
    def test_the_adapted_module_is_an_ordinary_one(self, name):
        learner, (support, query) = made(name), unstack(tasks_of())[0]
        module = learner.adapt(support, steps=steps_of(name, 2))
        assert type(module) is type(learner.model)
        assert not any(part.training for part in module.modules())
        assert [n for n, _ in module.named_parameters()] == [n for n, _ in learner.model.named_parameters()]
        assert_close(copy.deepcopy(module)(query.inputs), module(query.inputs), rtol=0, atol=0)
        nn.functional.cross_entropy(module.train()(query.inputs), query.targets).backward()
        assert any(p.grad is not None and p.grad.any() for p in module.parameters())

    @ALL
    def test_only_what_is_said_to_adapt_adapts(self, name):
        learner = made(name, **({"step_norms": False} if "++" in name else {}))
        module = learner.adapt(unstack(tasks_of())[0].support, steps=steps_of(name, 2))
        changed = {n for n, p in module.named_parameters() if not p.equal(learner.model.get_parameter(n))}
        made_anew = {"3.weight", "3.bias"} if name == "ProtoNet" else set(learner.adapted_names)
        assert changed == made_anew - {"0.film.beta"}  # which batch norm takes out again


@ALL
@MODELS
def test_saved_and_loaded_it_is_the_same_learner(name, model, tmp_path):
    learner, loaded, tasks = made(name, model).train(), made(name, model, seed=1).train(), tasks_of()
    learner(tasks)  # MAML++ is then at the end of its first-order updates
    assert not torch.allclose(learner.predict(tasks), loaded.predict(tasks))
    save_file(learner.state_dict(), tmp_path / "learner.safetensors")
    loaded.load_state_dict(load_file(tmp_path / "learner.safetensors"), strict=True)
    for _ in range(2):
        more = steps_of(name, 3)
        assert_close(loaded.predict(tasks, more), learner.predict(tasks, more), rtol=0, atol=0)
        support = unstack(tasks)[0].support
        assert_close(loaded.adapt(support).state_dict(), learner.adapt(support).state_dict(), rtol=0, atol=0)
        assert loaded.first_order is learner.first_order
        losses = [each.task_losses(tasks) for each in (loaded, learner)]
        assert_close(*losses, rtol=0, atol=0)
        gradients = [meta_gradient(loss.mean(), each) for loss, each in zip(losses, (loaded, learner), strict=True)]
        assert torch.equal(*gradients)
        assert_close(loaded.state_dict(), learner.state_dict(), rtol=0, atol=0)


@ALL
def test_a_state_that_lacks_something_is_refused(name):
    learner = made(name)
    for key in learner.state_dict():
        state = learner.state_dict()
        del state[key]
        with pytest.raises(RuntimeError, match="Missing key"):
            made(name).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        made(name).load_state_dict(learner.state_dict() | {"inner.unheard": torch.zeros(1)})


@ALL
def test_a_copy_is_a_learner_of_its_own(name):
    learner, tasks = made(name).train(), tasks_of()
    twin, state = copy.deepcopy(learner), copy.deepcopy(made(name).train().state_dict())
    for _ in range(3):
        twin(tasks)
    twin.load_state_dict(state)
    assert_close(twin.task_losses(tasks), learner.task_losses(tasks), rtol=0, atol=0)
    assert_close(twin.state_dict(), learner.state_dict(), rtol=0, atol=0)
    assert twin.first_order is learner.first_order


@ALL
def test_training_learns(name):
    """Ten updates by Adam in single precision, as a user would do it."""
    torch.manual_seed(0)
    learner, tasks = build(name, nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))), tasks_of(6)
    tasks = torch.utils._pytree.tree_map(lambda t: t.float() if t.is_floating_point() else t, tasks)
    optimizer, losses = torch.optim.Adam(learner.parameters(), lr=0.05), []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(learner(tasks))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1].item() < 0.96 * losses[0].item()
