import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from reference import (
    Update,
    cast,
    directional_derivatives,
    error,
    flat,
    gradient_descent,
    meta_gradient,
    meta_loss,
    network,
    normed,
    task_loss,
    task_of,
    tasks_of,
    trained,
    unstack,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Adam, Momentum, Task
from headstart.algorithms.names import matching
from headstart.vectorize import stack


def momentum(lr: float, keep: float) -> Update:
    def update(params, grads, state):
        for name, g in grads.items():
            state[name] = g + keep * state.get(name, 0.0)
        return {name: p - lr * state[name] for name, p in params.items()}

    return update


def adam(lr: float, eps_root: float) -> Update:
    def update(params, grads, state):
        taken = state["taken"] = state.get("taken", 0) + 1
        moved = {}
        for name, g in grads.items():
            mean, square = state.get(name, (0.0, 0.0))
            mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g.square()
            state[name] = mean, square
            root = (square / (1 - 0.999**taken) + eps_root).sqrt()
            moved[name] = params[name] - lr * mean / (1 - 0.9**taken) / root
        return moved

    return update


OPTIMIZERS = {
    "SGD": (SGD(0.1), gradient_descent(0.1)),
    "Momentum": (Momentum(0.1, momentum=0.8), momentum(0.1, 0.8)),
    "Adam": (Adam(0.05, eps_root=1e-6), adam(0.05, 1e-6)),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}
HOW = pytest.mark.parametrize("how", ["vmap", "loop"])


class TestMetaGradient:
    @pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
    @pytest.mark.parametrize("steps", [1, 5])
    @pytest.mark.parametrize("name", OPTIMIZERS)
    @HOW
    def test_backward_gives_that_of_a_hand_written_loop(self, how, name, steps, dtype):
        inner, update = OPTIMIZERS[name]
        learner = MAML(network(dtype), F.mse_loss, inner=inner, steps=steps, vectorize=how)
        loss, model = learner(tasks_of(dtype=dtype)), network()
        expected = meta_loss(model, F.mse_loss, tasks_of(), update, steps)
        loss.backward()
        assert_close(loss.double(), expected, rtol=TOLERANCES[dtype], atol=0)
        given = flat([p.grad for p in learner.parameters()])
        assert error(given, meta_gradient(expected, model)) < TOLERANCES[dtype]

    @pytest.mark.parametrize("name", OPTIMIZERS)
    @HOW
    def test_first_order_detaches_the_inner_gradient(self, how, name):
        inner, update = OPTIMIZERS[name]
        learner, model = MAML(network(), F.mse_loss, inner=inner, steps=3, first_order=True, vectorize=how), network()
        given = meta_gradient(learner(tasks_of()), learner)
        first, second = (
            meta_gradient(meta_loss(model, F.mse_loss, tasks_of(), update, 3, first_order), model)
            for first_order in (True, False)
        )
        assert error(given, first) < 1e-10
        assert error(given, second) > 0.05

    @HOW
    def test_rates_are_meta_learned_where_they_require_gradients(self, how):
        rates = nn.ParameterDict(
            {n.replace(".", "_"): torch.full_like(p, 0.1) for n, p in network().named_parameters()}
        )
        by_name = {n: rates[n.replace(".", "_")] for n, _ in network().named_parameters()}
        learner = MAML(network(), F.mse_loss, inner=SGD(by_name), steps=2, vectorize=how)
        given = meta_gradient(learner(tasks_of()), rates)
        directions = torch.randn(2, len(given), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        slopes = directional_derivatives(lambda: learner(tasks_of()), trained(rates), directions)
        assert error(directions @ given, slopes) < 1e-6

    @HOW
    def test_no_steps_is_joint_training(self, how):
        learner, model, query = MAML(network(), F.mse_loss, steps=0, vectorize=how), network(), tasks_of().query
        given = meta_gradient(learner(tasks_of()), learner)
        expected = meta_gradient(F.mse_loss(model(query.inputs), query.targets), model)  # all queries in one batch
        assert error(given, expected) < 1e-10

    @pytest.mark.parametrize(
        ("patterns", "adapted"),
        [("2.*", ["2.weight", "2.bias"]), (["*", "!*.weight"], ["0.bias", "2.bias"]), ("0.weight", ["0.weight"])],
        ids=["the head", "biases", "one tensor"],
    )
    @HOW
    def test_a_subset_adapts_and_all_is_meta_learned(self, how, patterns, adapted):
        model, held = network(), network()
        for name, p in held.named_parameters():
            p.requires_grad_(name in adapted)
        learner = MAML(model, F.mse_loss, inner=SGD(0.3), steps=2, adapt_only=patterns, vectorize=how)
        gradient = meta_gradient(learner(tasks_of()), learner)
        hand_loop = functools.partial(meta_loss, held, F.mse_loss, tasks_of(), gradient_descent(0.3), 2)
        rows = torch.cat([torch.full((p.numel(),), name in adapted) for name, p in held.named_parameters()])
        assert error(gradient[rows], meta_gradient(hand_loop(), held)) < 1e-10

        def moved() -> Tensor:  # all parameters move, those that are held fixed within a task as well
            return hand_loop(first_order=True)

        directions = torch.randn(2, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        slopes = directional_derivatives(moved, list(held.parameters()), directions)
        assert error(directions @ gradient, slopes) < 1e-6
        changed = [
            n for n, p in learner.adapt(task_of(0).support).named_parameters() if not p.equal(model.get_parameter(n))
        ]
        assert changed == adapted

    @HOW
    def test_tasks_of_unequal_sizes(self, how):
        tasks = [task_of(i, *size) for i, size in enumerate([(5, 3), (2, 3), (5, 3), (5, 1), (2, 3)])]
        learner, model = MAML(normed(), F.mse_loss, inner=SGD(0.1), steps=2, norm="batch", vectorize=how), normed()
        tasks[3] = task_of(3, 5, 2)
        expected = [task_loss(model, F.mse_loss, task, gradient_descent(0.1), 2) for task in tasks]
        assert_close(learner.task_losses(tasks), torch.stack(expected))
        assert error(meta_gradient(learner(tasks), learner), meta_gradient(torch.stack(expected).mean(), model)) < 1e-10

    @HOW
    def test_a_loss_that_is_given_the_parameters(self, how):
        def decayed(outputs: Tensor, targets: Tensor, params: dict[str, Tensor]) -> Tensor:
            return F.mse_loss(outputs, targets) + sum(p.pow(4).sum() for p in params.values())

        learner, model, lr = MAML(network(), decayed, inner=SGD(0.1), vectorize=how), network(), 0.1
        losses = []
        for task in unstack(tasks_of()):
            params = dict(model.named_parameters())
            first = decayed(
                torch.func.functional_call(model, params, task.support.inputs), task.support.targets, params
            )
            grads = torch.autograd.grad(first, list(params.values()), create_graph=True)
            params = {n: p - lr * g for (n, p), g in zip(params.items(), grads, strict=True)}
            losses.append(
                decayed(torch.func.functional_call(model, params, task.query.inputs), task.query.targets, params)
            )
        expected = torch.stack(losses).mean()
        given = learner(tasks_of())
        assert_close(given, expected)
        assert error(meta_gradient(given, learner), meta_gradient(expected, model)) < 1e-10

    def test_the_loss_is_given_the_held_parameters_too(self):
        def penalised(outputs: Tensor, targets: Tensor, params: dict[str, Tensor]) -> Tensor:
            return F.mse_loss(outputs, targets) + params["0.weight"].square().sum()

        plain, learner = (MAML(network(), loss, adapt_only="2.*") for loss in (F.mse_loss, penalised))
        assert_close(learner(tasks_of()), plain(tasks_of()) + network()[0].weight.square().sum())

    @pytest.mark.parametrize("chunk_size", [1, 2, 3, 4, 5, 8])
    def test_chunks_change_nothing(self, chunk_size):
        whole, chunked = (MAML(normed(), F.mse_loss, vectorize="vmap", chunk_size=size) for size in (None, chunk_size))
        assert error(*(meta_gradient(learner(tasks_of(5)), learner) for learner in (chunked, whole))) < 1e-12
        assert torch.equal(whole.model[0][1].num_batches_tracked, chunked.model[0][1].num_batches_tracked)
        assert_close(whole.state_dict(), chunked.state_dict())

    def test_without_gradients_it_is_an_evaluation(self):
        learner = MAML(network(), F.mse_loss, steps=2)
        expected = learner(tasks_of())
        with torch.no_grad():
            given = learner(tasks_of())
        assert not given.requires_grad
        assert_close(given, expected.detach())


class TestAdaptAndPredict:
    @pytest.mark.parametrize("steps", [0, 1, 4])
    @HOW
    def test_predictions_per_step_are_those_of_repeated_adapt(self, how, steps):
        learner, tasks = MAML(normed(), F.mse_loss, inner=Momentum(0.1), steps=2, vectorize=how), tasks_of()
        predictions = learner.predict(tasks, steps)
        assert predictions.shape == (3, steps + 1, 7, 1)
        for task, path in zip(unstack(tasks), predictions, strict=True):
            adapted = [learner.adapt(task.support, step)(task.query.inputs) for step in range(steps + 1)]
            assert_close(path, torch.stack(adapted).detach())

    def test_without_a_number_it_takes_the_steps_of_training(self):
        learner = MAML(network(), F.mse_loss, inner=SGD(0.1), steps=3)
        support = task_of(0).support
        assert_close(learner.adapt(support).state_dict(), learner.adapt(support, steps=3).state_dict(), rtol=0, atol=0)
        assert learner.predict(tasks_of()).shape[1] == 4

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_more_steps_learn_more(self, name):
        learner, task = MAML(network(), F.mse_loss, inner=OPTIMIZERS[name][0]), task_of(0)
        losses = [
            F.mse_loss(learner.adapt(task.support, n)(task.support.inputs), task.support.targets) for n in (0, 5, 50)
        ]
        assert losses[0] > 2 * losses[1] > 4 * losses[2]

    def test_modes_and_meta_parameters_stay_as_they_were(self):
        learner = MAML(normed(), F.mse_loss)
        learner.model[0][1].eval()
        before, modes = copy.deepcopy(learner.state_dict()), [m.training for m in learner.modules()]
        adapted = learner.adapt(task_of(0).support, steps=3)
        learner.predict(tasks_of(), steps=3)
        assert [m.training for m in learner.modules()] == modes
        assert not any(m.training for m in adapted.modules())
        assert_close(learner.state_dict(), before, rtol=0, atol=0)
        assert type(adapted) is type(learner.model)
        with torch.no_grad():
            adapted[1].weight.zero_()  # its own, not the learner's
        assert_close(learner.state_dict(), before, rtol=0, atol=0)

    def test_the_adapted_module_is_an_ordinary_module(self, tmp_path):
        learner, task = MAML(normed(torch.float32), F.mse_loss), cast(task_of(0), torch.float32)
        adapted = learner.adapt(task.support, steps=3)
        expected = adapted(task.query.inputs)
        assert_close(copy.deepcopy(adapted)(task.query.inputs), expected)
        save_file(adapted.state_dict(), tmp_path / "adapted.safetensors")
        loaded = normed(torch.float32).eval()
        loaded.load_state_dict(load_file(tmp_path / "adapted.safetensors"))
        assert_close(loaded(task.query.inputs), expected)
        exported = torch.export.export(adapted, (task.query.inputs,))
        assert_close(exported.module()(task.query.inputs), expected)
        F.mse_loss(adapted.train()(task.query.inputs), task.query.targets).backward()  # it can be trained on
        assert all(p.grad is not None for p in adapted.parameters())

    def test_an_exported_module_can_be_meta_learned(self):
        """Its graph calls the operators themselves, layer norm among them, whose vectorised form is wrong."""
        torch.manual_seed(0)
        plain = nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
        exported = torch.export.export(plain, (task_of(0).support.inputs,)).module()
        learner = MAML(exported, F.mse_loss, inner=SGD(0.5), vectorize="vmap")
        tasks = stack([task_of(seed, shots=5, queries=5) for seed in range(3)])
        expected = meta_loss(plain, F.mse_loss, tasks, gradient_descent(0.5), 1)
        given = torch.autograd.grad(learner(tasks), [exported.get_parameter(n) for n, _ in plain.named_parameters()])
        assert error(flat(given), meta_gradient(expected, plain)) < 1e-10


def test_the_learner_is_a_module_with_the_models_state():
    learner, other = MAML(normed(), F.mse_loss), MAML(normed(), F.mse_loss)
    assert [n for n, _ in learner.named_parameters()] == [f"model.{n}" for n, _ in learner.model.named_parameters()]
    optimizer, losses = torch.optim.Adam(learner.parameters(), lr=0.05), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = learner(tasks_of())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    other.load_state_dict(learner.state_dict())
    assert_close(other.eval()(tasks_of()), learner.eval()(tasks_of()), rtol=0, atol=0)
    assert_close(copy.deepcopy(learner)(tasks_of()), learner(tasks_of()), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("*", ["0.weight", "0.bias", "10.weight"]),
        ("*.weight", ["0.weight", "10.weight"]),
        ("?.weight", ["0.weight"]),
        (["10.*", "0.bias"], ["0.bias", "10.weight"]),  # in the order of the names
        (["*", "!10.*"], ["0.weight", "0.bias"]),
        (["*", "!*.weight", "10.weight"], ["0.bias", "10.weight"]),  # the last word counts
    ],
)
def test_matching(patterns, expected):
    assert matching(["0.weight", "0.bias", "10.weight"], patterns) == tuple(expected)


@pytest.mark.parametrize(
    ("patterns", "match"),
    [
        ("head.*", r"'head.\*' matches no trainable parameter; there are: 0.weight, 0.bias"),
        (["*", "!head.*"], r"'!head.\*' matches no trainable parameter"),
        (["*", "!*"], r"\['\*', '!\*'\] leave nothing to adapt; there are: 0.weight"),
        ([], r"\[\] leave nothing to adapt"),
        ("2.*", "'2.*' matches no trainable parameter; there are: 0.weight, 0.bias$"),  # frozen
    ],
)
def test_patterns_that_match_nothing(patterns, match):
    model = network()
    model[2].requires_grad_(requires_grad=False)
    with pytest.raises(ValueError, match=match.rstrip("$")):
        MAML(model, F.mse_loss, adapt_only=patterns)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MAML(network(), F.mse_loss, norm="layer"), "norm must be one of batch, support, .*, got 'layer'"),
        (
            lambda: MAML(network(), F.mse_loss, vectorize="pmap"),
            "vectorize must be one of auto, vmap, loop, got 'pmap'",
        ),
        (lambda: MAML(network(), F.mse_loss, steps=-1), "steps must be 0 or more, got -1"),
        (lambda: MAML(network(), F.mse_loss).adapt(task_of(0).support, steps=-2), "steps must be 0 or more, got -2"),
        (lambda: MAML(network(), F.mse_loss).predict(tasks_of(), norm="none"), "norm must be one of"),
        (lambda: MAML(network(), F.mse_loss)([]), "meta-batch is empty"),
        (lambda: MAML(network(), F.mse_loss)(Task(tasks_of(2).support, tasks_of(3).query)), r"got lengths \[2, 3\]"),
        (lambda: MAML(normed(), F.mse_loss)([task_of(0, shots=1)]), r"more than one value per channel.* \(1, 4\)"),
    ],
)
def test_what_a_user_can_get_wrong(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_loss_of_the_paper_is_its_mean_over_tasks():
    learner = MAML(network(), F.mse_loss)
    losses = learner.task_losses(tasks_of())
    assert losses.shape == (3,)
    assert math.isclose(learner(tasks_of()).item(), losses.mean().item())
