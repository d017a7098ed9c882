"""Any module, unchanged: every architecture in `modules.py`, and every layer in `layers.py`, held to one contract.

The meta-gradient of two inner steps is compared, as one vector in norm, with a plain loop through PyTorch's own
layers and with finite differences, neither of which knows `vmap` or the library's substitutions.
"""

import collections
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts.layers import FEATURES, LOOP, LOSSES, REFUSED, VMAP
from contracts.modules import CASES, WAYS
from reference import (
    adapted,
    cast,
    directional_derivatives,
    error,
    evaluated,
    gradient_descent,
    meta_gradient,
    meta_loss,
    native,
    trained,
    unstack,
)
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from headstart import MAML, SGD, Adam, Batch, Task, exact
from headstart.vectorize import stack

STEPS, TASKS, EXAMPLES = 2, 3, 7
EXACT = 1e-10
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
RUNS = [(name, how) for name, case in CASES.items() for how in ("vmap", "loop") if how in (case.runs, "loop")]


def model_for(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name].make().to(dtype).train(CASES[name].training)


def tasks_for(name: str, dtype: torch.dtype = torch.float64) -> Task:
    case, rng = CASES[name], torch.Generator().manual_seed(0)
    labels = torch.arange(case.examples) % WAYS
    tasks = [Task(*(Batch(case.inputs(case.examples, rng), labels) for _ in range(2))) for _ in range(TASKS)]
    return cast(stack(tasks), dtype)


def learner_for(name: str, how: str = "auto", dtype: torch.dtype = torch.float64, **settings) -> MAML:
    settings = {"norm": "batch", "steps": STEPS, "inner": SGD(CASES[name].lr), **settings}
    return MAML(model_for(name, dtype), F.cross_entropy, vectorize=how, **settings)


def reference_loss(name: str, model: nn.Module, tasks: Task, first_order: bool = False) -> Tensor:
    return meta_loss(model, F.cross_entropy, tasks, gradient_descent(CASES[name].lr), STEPS, first_order)


@functools.cache
def reference_gradient(name: str, first_order: bool = False) -> Tensor:
    """The plain loop's, in float64."""
    model = native(model_for(name))
    return meta_gradient(reference_loss(name, model, tasks_for(name), first_order), model)


def outputs_of(module: nn.Module, inputs: Any) -> Tensor:
    """The module called as its user would."""
    if isinstance(inputs, dict):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def half_precision() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False)


@pytest.mark.parametrize("first_order", [False, True], ids=["second order", "first order"])
@pytest.mark.parametrize(("name", "how"), RUNS)
def test_equals_a_plain_loop(name, how, first_order):
    learner = learner_for(name, how, first_order=first_order)
    given = meta_gradient(learner(tasks_for(name)), learner)
    assert error(given, reference_gradient(name, first_order)) < EXACT


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("name", "how"), RUNS)
def test_recomputed_it_equals_a_plain_loop(name, how):
    """Its backward pass runs the module under `vmap` too."""
    learner = learner_for(name, how, recompute=True)
    assert error(meta_gradient(learner(tasks_for(name)), learner), reference_gradient(name)) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_the_orders_differ(name):
    assert error(reference_gradient(name, first_order=True), reference_gradient(name)) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_equals_finite_differences(name):
    learner, model, tasks = learner_for(name, CASES[name].runs), native(model_for(name)), tasks_for(name)
    gradient = meta_gradient(learner(tasks), learner)
    directions = torch.randn(4, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    slopes = directional_derivatives(
        lambda: reference_loss(name, model, tasks, first_order=True), trained(model), directions
    )
    assert error(directions @ gradient, slopes) < 1e-6


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if F.batch_norm in case.substitutes])
@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_support_statistics_equal_finite_differences_of_native_evaluation(name, how):
    learner, model = learner_for(name, how, norm="support"), native(model_for(name))
    tasks, update = tasks_for(name), gradient_descent(CASES[name].lr)

    def loss() -> Tensor:
        losses = []
        for support, query in unstack(tasks):
            params = adapted(model, F.cross_entropy, support, update, STEPS, first_order=True)
            losses.append(F.cross_entropy(evaluated(model, params, support.inputs, query.inputs), query.targets))
        return torch.stack(losses).mean()

    given = learner(tasks)
    assert_close(given, loss())
    gradient = meta_gradient(given, learner)
    directions = torch.randn(2, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert error(directions @ gradient, directional_derivatives(loss, trained(model), directions)) < 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("name", "how"), RUNS)
def test_low_precision(name, how, dtype):
    learner, tasks = learner_for(name, how, torch.float32), tasks_for(name, torch.float32)
    tolerance = TOLERANCES[dtype]
    if dtype == torch.float32:
        given = meta_gradient(learner(tasks), learner)
    else:  # parameters, statistics and inner updates in float32, matrix products and convolutions in bfloat16
        with half_precision():
            loss = learner(tasks)
        given = meta_gradient(loss, learner)
        if CASES[name].kinked:
            model = native(model_for(name, torch.float32))
            with half_precision():
                loss = reference_loss(name, model, tasks)
            tolerance = min(0.2, 3 * error(meta_gradient(loss, model), reference_gradient(name)))
    assert error(given, reference_gradient(name)) < tolerance


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_autocast_reaches_the_matrix_products(how):
    ran = collections.Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
                ran[args[-1].dtype] += 1
            return func(*args, **(kwargs or {}))

    with half_precision(), Count():
        learner_for("MLP", how, torch.float32)(tasks_for("MLP", torch.float32))
    assert set(ran) == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's, where it then refuses to vectorise
@pytest.mark.parametrize("inner", [SGD(0.1), Adam(0.1)], ids=["SGD", "Adam"])
@pytest.mark.parametrize("name", CASES)
def test_a_module_in_bfloat16(name, inner):
    learner, tasks = (
        learner_for(name, dtype=torch.bfloat16, inner=inner, norm="support"),
        tasks_for(name, torch.bfloat16),
    )
    gradient = meta_gradient(learner(tasks), learner)
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    task = unstack(tasks)[0]
    module = learner.adapt(task.support)
    names = learner.adapted_names
    assert max((module.get_parameter(n) - learner.model.get_parameter(n)).abs().max() for n in names) > 1e-3
    assert error(outputs_of(module, task.query.inputs), learner.predict(tasks)[0, -1]) < 0.1


@pytest.mark.parametrize("name", CASES)
def test_what_is_substituted_and_what_is_looped_over(name, monkeypatch, caplog):
    used = set()

    def recorded(function, substitute):
        def run(*args, **kwargs):
            used.add(function)
            return substitute(*args, **kwargs)

        return run

    monkeypatch.setattr(exact, "EXACT", {f: recorded(f, s) for f, s in exact.EXACT.items()})
    learner, tasks = learner_for(name), tasks_for(name)
    random_state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="headstart"):
        given = [meta_gradient(learner(tasks), learner) for _ in range(2)]
    assert used - {*exact.AUTOCAST, *exact.RELU} == CASES[name].substitutes
    looped = ["looping over them instead" in record.message for record in caplog.records]
    assert looped == ([True] if CASES[name].runs == "loop" else [])  # said once, not at every call
    assert all(error(g, reference_gradient(name)) < EXACT for g in given)
    assert torch.equal(torch.get_rng_state(), random_state)


NAIVE = [
    "residual network, batch norm",
    "layer norm",
    "instance norm",
    "transformer encoder with dropout",
    "weight norm",
]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", NAIVE)
def test_the_battery_fails_without_the_substitutions(name, monkeypatch):
    """As vmap-MAML is usually written: no running statistics, and the native layers.

    Norms are wrong where their scale is adapted (weight norm even in a loop). The paper's networks, whose batch
    norm has a shift only, are not in the list.
    """
    model = torch.func.replace_all_batch_norm_modules_(model_for(name))
    learner, tasks = MAML(model, F.cross_entropy, steps=STEPS, inner=SGD(CASES[name].lr), norm="batch"), tasks_for(name)
    assert error(meta_gradient(learner(tasks), learner), reference_gradient(name)) < EXACT
    attention = F.multi_head_attention_forward  # without it the kernel raises
    monkeypatch.setattr(exact, "EXACT", {attention: exact.EXACT[attention]})
    assert error(meta_gradient(learner(tasks), learner), reference_gradient(name)) > 1e-5


@pytest.mark.parametrize("norm", ["support", "batch"])
@pytest.mark.parametrize("name", CASES)
def test_the_adapted_module_predicts_as_the_learner_does(name, norm):
    learner, tasks = learner_for(name), tasks_for(name)
    before = {key: value.clone() for key, value in learner.state_dict().items()}
    predictions = learner.predict(tasks, steps=4, norm=norm)
    assert predictions.shape[:3] == (TASKS, 5, CASES[name].examples)
    for task, predicted in zip(unstack(tasks), predictions, strict=True):
        module = learner.adapt(task.support, steps=4, norm=norm)
        assert type(module) is type(learner.model)
        assert not any(part.training for part in module.modules())
        assert_close(outputs_of(module, task.query.inputs), predicted[-1], rtol=0, atol=1e-10)
    assert all(torch.equal(value, before[key]) for key, value in learner.state_dict().items())


class TestDropoutInTraining:
    """Masks are drawn anew for every task and pass; given the seed, the loss is a function like any other."""

    NAME = "transformer encoder with dropout"

    def loss(self, learner: MAML) -> Tensor:
        torch.manual_seed(0)
        return learner.train()(tasks_for(self.NAME))

    def test_loop_equals_a_plain_loop(self):
        """Of one layer: how a seed becomes a mask depends on the memory layout, and in a transformer that differs."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(20, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, WAYS)).double()
        learner = MAML(model, F.cross_entropy, inner=SGD(CASES[self.NAME].lr), steps=STEPS, vectorize="loop")
        given = self.loss(learner)
        torch.manual_seed(0)
        expected = reference_loss(self.NAME, model, tasks_for(self.NAME))
        assert error(meta_gradient(given, learner), meta_gradient(expected, model)) < EXACT
        assert_close(given, expected, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("how", ["vmap", "loop"])
    def test_equals_finite_differences(self, how):
        learner = learner_for(self.NAME, how)
        gradient = meta_gradient(self.loss(learner), learner)
        directions = torch.randn(2, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        slopes = directional_derivatives(lambda: self.loss(learner), trained(learner), directions)
        assert error(directions @ gradient, slopes) < 1e-6

    @pytest.mark.parametrize("how", ["vmap", "loop"])
    def test_every_task_has_its_own_mask(self, how):
        learner = learner_for(self.NAME, how, steps=0).train()
        task = unstack(tasks_for(self.NAME))[0]
        losses = learner.task_losses([task] * 3)
        assert len(set(losses.tolist())) == 3
        assert_close(learner.eval().task_losses([task] * 3), losses.new_full((3,), learner([task]).item()))


def small_tasks(targets: Callable[[torch.Generator], Tensor]) -> Task:
    """Two tasks for a network from `layers.py`."""
    rng = torch.Generator().manual_seed(3)
    inputs = torch.randn(2, 2, EXAMPLES, FEATURES, dtype=torch.float64, generator=rng)
    return stack([Task(*(Batch(x, targets(rng)) for x in task)) for task in inputs])


def squared_error_tasks(model: nn.Module) -> Task:
    shape = model(torch.randn(EXAMPLES, FEATURES, dtype=torch.float64)).shape
    return small_tasks(lambda rng: torch.randn(shape, dtype=torch.float64, generator=rng))


def error_against_differences(learner: MAML, loss: Callable, tasks: Task) -> float:
    """Of a meta-gradient of one inner step of rate 0.1, along two directions."""
    gradient = meta_gradient(learner(tasks), learner)
    directions = torch.randn(2, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    update = gradient_descent(0.1)
    value = functools.partial(meta_loss, learner.model, loss, tasks, update, steps=1, first_order=True)
    return error(directions @ gradient, directional_derivatives(value, trained(learner), directions))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [*VMAP, *LOOP])
def test_layers_equal_finite_differences(name):
    torch.manual_seed(0)
    model = (VMAP | LOOP)[name]().double()
    how = "vmap" if name in VMAP else "auto"
    learner = MAML(model, F.mse_loss, inner=SGD(0.1), norm="batch", vectorize=how)
    assert error_against_differences(learner, F.mse_loss, squared_error_tasks(model)) < 1e-6
    assert learner.vectorize == ("vmap" if name in VMAP else "loop")


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [*VMAP, *LOOP])
def test_layers_recomputed_equal_themselves(name):
    gradients = []
    for recompute in (True, False):
        torch.manual_seed(0)
        model = (VMAP | LOOP)[name]().double()
        learner = MAML(model, F.mse_loss, inner=SGD(0.1), norm="batch", recompute=recompute)
        gradients.append(meta_gradient(learner(squared_error_tasks(model)), learner))
        assert learner.vectorize == ("auto" if name in VMAP else "loop")
    assert error(*gradients) < EXACT


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_finite_differences(name):
    torch.manual_seed(0)
    loss, targets = LOSSES[name]
    model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    learner = MAML(model, loss, inner=SGD(0.1))
    assert error_against_differences(learner, loss, small_tasks(lambda rng: targets(EXAMPLES, rng))) < 1e-6


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", REFUSED)
def test_layers_without_second_derivatives_raise(name):
    model = REFUSED[name]().double()
    tasks = squared_error_tasks(model)
    with pytest.raises(RuntimeError, match=r"derivative|not implemented|hooks"):
        MAML(model, F.mse_loss)(tasks).backward()


class Words(nn.Module):
    """Words looked up by a given function, the fourth of them padding."""

    def __init__(self, lookup: Callable[[Tensor, Tensor], Tensor]):
        super().__init__()
        self.lookup, self.table = lookup, nn.Embedding(5, 4)
        self.head = nn.Linear(4, WAYS)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.lookup(words, self.table.weight).tanh().mean(1))


LOOKUPS = {
    "F.embedding": lambda words, table: F.embedding(words, table, padding_idx=-2),
    "torch.embedding": lambda words, table: torch.embedding(table, words, 3),
    "aten.embedding": lambda words, table: torch.ops.aten.embedding(table, words, 3),
}


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize("lookup", LOOKUPS.values(), ids=LOOKUPS)
def test_a_padding_row_is_not_learned_in_any_task(lookup, how):
    """Its gradient is zero by definition, not by calculus: the plain loop is the reference, differences are not."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return Words(lookup).double()

    words = torch.randint(0, 5, (2, TASKS, 6, 4), generator=torch.Generator().manual_seed(0))
    tasks = Task(*(Batch(w, torch.arange(6).remainder(WAYS).expand(TASKS, 6)) for w in words))
    model, learner = make(), MAML(make(), F.cross_entropy, inner=SGD(0.5), steps=STEPS, vectorize=how)
    expected = meta_gradient(meta_loss(model, F.cross_entropy, tasks, gradient_descent(0.5), STEPS), model)
    assert error(meta_gradient(learner(tasks), learner), expected) < EXACT
    learner(tasks).backward()
    assert learner.model.table.weight.grad[3].count_nonzero() == 0
