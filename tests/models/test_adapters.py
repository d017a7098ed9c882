"""Parts added to a module: what they compute, in closed form, and that MAML adapts them alone and exactly."""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from contracts.modules import CASES, WAYS, Residual, Tied, Transformer, features, images, sequences, tokens
from reference import (
    Update,
    directional_derivatives,
    error,
    meta_gradient,
    meta_loss,
    native,
    network,
    tasks_of,
    trained,
    unstack,
)
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.models import MLP, Conv4, WithContext, add_context, add_film, add_low_rank, bias_names
from headstart.vectorize import stack

EXACT, STEPS, LR = 1e-10, 2, 0.1


class Twice(nn.Module):
    """A layer that is called twice, and two that share a weight."""

    def __init__(self):
        super().__init__()
        self.mix, self.first, self.second, self.head = (nn.Linear(5, 5) for _ in range(4))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.mix(x).tanh()).tanh()
        return self.head(self.second(self.first(x).tanh()).tanh())[..., :WAYS]


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable]] = {
    "MLP": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, WAYS)), features),
    "residual network, batch norm": (Residual, images),
    "layer norm": (CASES["layer norm"].make, images),
    "instance norm": (CASES["instance norm"].make, images),
    "transformer": (lambda: Transformer().eval(), sequences),
    "weight norm": (CASES["weight norm"].make, features),
    "tied weights": (Tied, tokens),
    "called twice, and shared": (Twice, features),
}
PARTS: dict[str, Callable[[nn.Module], Sequence[str]]] = {
    "low rank": lambda model: add_low_rank(model, rank=2, scale=0.7),
    "FiLM": add_film,
    "context": lambda model: [add_context(model, 3)[0]],
    "biases": bias_names,
}
PAIRS = [(module, part) for module in MODULES for part in PARTS]


def with_parts(module: str, part: str, moved: bool = True) -> tuple[nn.Module, list[str]]:
    """The module and the names of what is to adapt; `moved`: no parameter is left where it was drawn, or at zero."""
    torch.manual_seed(0)
    model = MODULES[module][0]().double()
    names = list(PARTS[part](model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter), alpha=float(moved))
    return model, names


def tasks_for(module: str) -> Task:
    rng, labels = torch.Generator().manual_seed(0), torch.arange(9) % WAYS

    def batch() -> Batch:
        x = MODULES[module][1](9, rng)
        return Batch(x.double() if x.is_floating_point() else x, labels)

    return stack([Task(batch(), batch()) for _ in range(3)])


def descent_of(names: Sequence[str]) -> Update:
    """Gradient descent of these parameters alone."""
    return lambda params, grads, state: {n: p - LR * grads[n] if n in names else p for n, p in params.items()}


def learner_of(model: nn.Module, names: str | Sequence[str], **settings) -> MAML:
    return MAML(
        model, F.cross_entropy, inner=SGD(LR), adapt_only=names, **{"steps": STEPS, "norm": "batch", **settings}
    )


@pytest.mark.parametrize("how", ["vmap", "loop"])
@pytest.mark.parametrize(("module", "part"), PAIRS)
def test_the_meta_gradient_equals_a_plain_loop(module, part, how):
    (model, names), tasks = with_parts(module, part), tasks_for(module)
    learner = learner_of(model, names, vectorize=how)
    given = meta_gradient(learner(tasks), learner)
    reference = native(copy.deepcopy(model))
    expected, first_order = (
        meta_gradient(meta_loss(reference, F.cross_entropy, tasks, descent_of(names), STEPS, first), reference)
        for first in (False, True)
    )
    assert error(given, expected) < EXACT
    assert error(first_order, expected) > 1e-4  # there is a second order to be right about


@pytest.mark.parametrize(("module", "part"), PAIRS)
def test_the_meta_gradient_equals_finite_differences(module, part):
    (model, names), tasks = with_parts(module, part), tasks_for(module)
    learner = learner_of(model, names)
    gradient = meta_gradient(learner(tasks), learner)
    directions = torch.randn(2, len(gradient), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    reference = native(copy.deepcopy(model))

    def loss() -> Tensor:
        return meta_loss(reference, F.cross_entropy, tasks, descent_of(names), STEPS, first_order=True)

    assert error(directions @ gradient, directional_derivatives(loss, trained(reference), directions)) < 1e-6


@pytest.mark.parametrize("norm", ["support", "batch"])
@pytest.mark.parametrize(("module", "part"), PAIRS)
def test_the_adapted_module_stands_alone(module, part, norm):
    (model, names), tasks = with_parts(module, part), tasks_for(module)
    learner = learner_of(model, names, norm=norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    predicted = learner.predict(tasks)
    for task, outputs in zip(unstack(tasks), predicted, strict=True):
        adapted = learner.adapt(task.support)
        with torch.no_grad():  # where PyTorch's transformers may take a path that calls no layer
            assert_close(adapted(task.query.inputs), outputs[-1], rtol=0, atol=1e-10)
        start = dict(model.named_parameters())
        moved = {name for name, value in adapted.named_parameters() if not torch.equal(value, start[name])}
        assert moved
        assert moved <= set(names)  # a shift that a norm removes again may not move
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (predicted[:, 0] - predicted[:, -1]).abs().max() > 1e-4


@pytest.mark.parametrize(("module", "part"), [pair for pair in PAIRS if pair[1] != "biases"])
def test_parts_leave_a_module_what_it_was(module, part):
    torch.manual_seed(0)
    plain, x = MODULES[module][0]().double(), unstack(tasks_for(module))[0].support.inputs
    model, names = with_parts(module, part, moved=False)
    assert_close(model(x), plain(x), rtol=0, atol=1e-12)
    learner = learner_of(model, names)
    learner(tasks_for(module)).backward()
    gradients = [parameter.grad for name, parameter in model.named_parameters() if name in names]
    assert all(g is not None and g.count_nonzero() for g in gradients)  # and yet they learn


@pytest.mark.parametrize(("module", "part"), PAIRS)
def test_copies_and_state_dicts(module, part):
    (model, _), x = with_parts(module, part), unstack(tasks_for(module))[0].support.inputs
    model.eval()
    copied, (other, names) = copy.deepcopy(model), with_parts(module, part, moved=False)
    other.load_state_dict(model.state_dict())
    assert_close(copied(x), model(x), rtol=0, atol=0)
    assert_close(other.eval()(x), model(x), rtol=0, atol=0)
    assert set(names) < {name for name, _ in copied.named_parameters()}
    with torch.no_grad():
        for name in names:
            copied.get_parameter(name).add_(1.0)
    assert_close(other(x), model(x), rtol=0, atol=0)  # the copy has parameters of its own,
    assert (copied(x) - model(x)).abs().max() > 1e-3  # and uses them


def test_a_copy_has_one_object_as_hook_and_as_child():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    add_film(model)
    add_low_rank(model)  # gives the layer a class with a deepcopy of its own
    add_context(model, 2)
    copied = copy.deepcopy(model)
    for layer, original in zip(copied, model, strict=True):
        hooks = list(layer._forward_hooks.values())
        assert len(hooks) == 2
        assert hooks[0] is layer.film is not original.film
        assert hooks[1] is layer.modulation is not original.modulation
    assert copied[1].modulation._owner[0] is copied[0].modulation


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("module", ["MLP", "residual network, batch norm", "called twice, and shared"])
def test_the_adapted_module_exports(module, part):
    (model, names), task = with_parts(module, part), unstack(tasks_for(module))[0]
    adapted = learner_of(model, names, norm="support").adapt(task.support)
    exported = torch.export.export(adapted, (task.query.inputs,), strict=False).module()
    assert_close(exported(task.query.inputs), adapted(task.query.inputs), rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "biases"])
def test_a_frozen_body_with_trained_parts(part):
    torch.manual_seed(0)
    model, tasks = Residual().double().requires_grad_(requires_grad=False), tasks_for("residual network, batch norm")
    pretrained = {name: parameter.clone() for name, parameter in model.named_parameters()}
    names = PARTS[part](model)
    learner = learner_of(model, names)
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        losses.append(learner(tasks))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.01
    now = {name.replace("parametrizations.weight.original", "weight"): p for name, p in model.named_parameters()}
    assert all(torch.equal(now[name], value) for name, value in pretrained.items())
    with pytest.raises(ValueError, match=r"No trainable parameter is a bias; there are: none\."):
        bias_names(nn.Linear(2, 2).requires_grad_(requires_grad=False))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 3), (5, 4)),
        (nn.Conv1d(4, 6, 3, groups=2), (5, 4, 7)),
        (nn.Conv2d(2, 3, (2, 3), bias=False), (5, 2, 6, 6)),
        (nn.Conv3d(2, 3, 2), (5, 2, 3, 3, 3)),
    ],
    ids=str,
)
def test_low_rank_equals_merged_weights(layer, shape):
    layer, x = copy.deepcopy(layer).double(), torch.randn(shape, dtype=torch.float64)
    plain = copy.deepcopy(layer)
    a, b = map(layer.get_parameter, add_low_rank(layer, rank=2, scale=0.3))
    assert a.shape == (2, layer.weight[0].numel())
    assert b.shape == (len(layer.weight), 2)
    nn.init.normal_(b)
    with torch.no_grad():
        delta = torch.einsum("or,ri->oi", b, a).reshape(plain.weight.shape)
        plain.weight += 0.3 * delta
    assert torch.linalg.matrix_rank(delta.flatten(1)) == 2
    assert_close(layer(x), plain(x), rtol=0, atol=1e-12)
    assert_close(remove_parametrizations(layer, "weight")(x), plain(x), rtol=0, atol=1e-12)


def test_low_rank_of_a_shared_weight_is_shared():
    model = Twice()
    assert len(add_low_rank(model, ["first", "second"])) == 2
    nn.init.normal_(model.get_parameter("first.parametrizations.weight.0.low_rank_b"))
    assert_close(model.second.weight, model.first.weight, rtol=0, atol=0)


CHANNELS = [  # a layer, the shape of its input, and the channels of its output as the first axis
    (nn.Linear(4, 3), (2, 5, 4), lambda y: y.movedim(-1, 0)),
    (nn.Conv1d(4, 3, 2), (5, 4, 7), lambda y: y.movedim(1, 0)),
    (nn.Conv2d(4, 3, 2), (4, 6, 6), lambda y: y),  # a single image
    (nn.ConvTranspose2d(4, 3, 2), (5, 4, 6, 6), lambda y: y.movedim(1, 0)),
    (nn.BatchNorm1d(4), (5, 4), lambda y: y.movedim(1, 0)),
    (nn.BatchNorm2d(4, affine=False), (5, 4, 6, 6), lambda y: y.movedim(1, 0)),
    (nn.InstanceNorm1d(4, affine=True), (5, 4, 6), lambda y: y.movedim(1, 0)),
    (nn.InstanceNorm2d(4, affine=True), (4, 6, 6), lambda y: y),
    (nn.GroupNorm(2, 4), (5, 4, 6), lambda y: y.movedim(1, 0)),
    (nn.LayerNorm(4), (5, 6, 4), lambda y: y.movedim(-1, 0)),
    (nn.LayerNorm([4, 6]), (5, 4, 6), lambda y: y.movedim(-2, 0)),
    (nn.RMSNorm(4), (5, 4), lambda y: y.movedim(-1, 0)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("layer", "shape", "channels_first"), CHANNELS, ids=lambda v: str(v))
def test_film_scales_and_shifts_each_channel(layer, shape, channels_first, dtype):
    layer, x = copy.deepcopy(layer).to(dtype), torch.randn(shape, dtype=dtype)
    plain = copy.deepcopy(layer)(x)
    gamma, beta = map(layer.get_parameter, add_film(layer))
    nn.init.normal_(gamma)
    nn.init.normal_(beta)
    assert layer(x).dtype == gamma.dtype == dtype
    pairs = zip(channels_first(layer(x)), channels_first(plain), gamma, beta, strict=True)
    for given, before, g, b in pairs:
        assert_close(given, before * (1 + g) + b)


def test_a_context_modulates_by_an_affine_function_of_it():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double(), torch.randn(5, 4).double()
    plain = copy.deepcopy(model)
    names = add_context(model, 6, ["0", "2"])
    assert [name for name in names if name.endswith("context")] == ["0.modulation.context"]
    context = nn.init.normal_(model.get_parameter("0.modulation.context"))
    hidden = x
    for index, layer in enumerate(plain):
        hidden = layer(hidden)
        if index != 1:
            modulation = model[index].modulation
            assert 0 < modulation.weight.abs().max() <= 6**-0.5  # as nn.Linear
            nn.init.normal_(modulation.bias)
            of_context = modulation.weight @ context + modulation.bias
            gamma, beta = of_context[: len(of_context) // 2], of_context[len(of_context) // 2 :]
            hidden = (1 + gamma) * hidden + beta
    assert_close(model(x), hidden)


def test_the_context_is_all_that_adapts_in_conv4():
    model = Conv4(WAYS, filters=4).double()
    names = add_context(model, 5, "body.2.1")
    assert learner_of(model, "*context").adapted_names == ("body.2.1.modulation.context",) == names[:1]


class TestWithContext:
    def test_appends_the_context_to_every_example(self):
        torch.manual_seed(0)
        model = WithContext(MLP(2 + 3, 1).double(), 3)
        assert model.context.dtype == torch.float64
        assert model.context.count_nonzero() == 0
        nn.init.normal_(model.context)
        x = torch.randn(7, 2, dtype=torch.float64)
        assert_close(model(x), torch.stack([model.model(torch.cat([row, model.context])[None])[0] for row in x]))
        linear = WithContext(nn.Linear(5, 1), 3)
        assert linear(torch.randn(4, 7, 2)).shape == (4, 7, 1)

    @pytest.mark.parametrize("how", ["vmap", "loop"])
    def test_the_meta_gradient_equals_a_plain_loop_and_differences(self, how):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(2 + 3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
        model, tasks, update = WithContext(body, 3), tasks_of(), descent_of(["context"])
        learner = MAML(model, F.mse_loss, inner=SGD(LR), steps=STEPS, adapt_only="*context", vectorize=how)
        assert learner.adapted_names == ("context",)
        gradient = meta_gradient(learner(tasks), learner)
        assert error(gradient, meta_gradient(meta_loss(model, F.mse_loss, tasks, update, STEPS), model)) < EXACT
        directions = torch.randn(2, len(gradient), dtype=torch.float64)
        slopes = directional_derivatives(
            lambda: meta_loss(model, F.mse_loss, tasks, update, STEPS, first_order=True), trained(model), directions
        )
        assert error(directions @ gradient, slopes) < 1e-6

    def test_adapted_it_is_a_module_of_its_own(self):
        task, model = unstack(tasks_of())[0], WithContext(MLP(2 + 3, 1).double(), 3)
        adapted = MAML(model, F.mse_loss, inner=SGD(LR), adapt_only="*context").adapt(task.support)
        x = task.query.inputs
        assert (adapted.context - model.context).abs().min() > 0
        exported = torch.export.export(adapted, (x,), strict=False).module()
        assert_close(exported(x), adapted(x), rtol=0, atol=1e-12)


def test_bias_names():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(1, 2, 3),
            "norm": nn.BatchNorm2d(2),
            "rnn": nn.GRU(2, 3),
            "attention": nn.MultiheadAttention(2, 1),
            "frozen": nn.Linear(2, 2).requires_grad_(requires_grad=False),
            "debiased": nn.Linear(2, 2, bias=False),
            "embedding_bias": nn.Embedding(2, 2),
        }
    )
    nn.utils.parametrize.register_parametrization(model["conv"], "bias", nn.Tanh())
    rnn, attention = ["rnn.bias_ih_l0", "rnn.bias_hh_l0"], ["attention.in_proj_bias", "attention.out_proj.bias"]
    assert list(bias_names(model)) == ["conv.parametrizations.bias.original", "norm.bias", *rnn, *attention]
    with pytest.raises(ValueError, match=r"No trainable parameter is a bias; there are: weight\."):
        bias_names(nn.Linear(2, 2, bias=False))


def test_layers_are_chosen_by_patterns():
    assert add_film(network(), ["*", "!2"]) == ("0.film.gamma", "0.film.beta")
    layer = nn.Linear(2, 2)
    assert add_film(nn.ModuleDict({"mix": layer, "again": layer}), "again") == ("mix.film.gamma", "mix.film.beta")
    model = nn.ModuleDict({"mix": nn.Linear(2, 2), "head": layer, "again": layer})
    assert add_low_rank(model, ["*", "!again"])[0] == "mix.parametrizations.weight.0.low_rank_a"
    assert add_film(model, ["*", "!again"]) == ("mix.film.gamma", "mix.film.beta")
    attention = nn.TransformerEncoderLayer(4, 2)
    assert not any("out_proj" in name for name in add_film(attention))  # it is never called
    assert any("out_proj" in name for name in add_low_rank(attention))  # but its weight is used


@pytest.mark.parametrize("add", [add_low_rank, add_film, lambda model, *layers: add_context(model, 2, *layers)])
def test_what_cannot_be_added_is_said(add):
    there_are = r"; there are: 0, 2\.$"
    with pytest.raises(ValueError, match=r"^The pattern 'body\.\*' matches no .*layer" + ".*" + there_are):
        add(network(), ["0", "body.*"])
    with pytest.raises(ValueError, match=r"^The patterns \['\*', '!\*'\] leave no .*layer" + ".*" + there_are):
        add(network(), ["*", "!*"])
    with pytest.raises(ValueError, match=r"there are: none\."):
        add(nn.Sequential(nn.Tanh(), nn.Embedding(2, 2)))
    with pytest.raises(ValueError, match=r"Layer '0' does not know its sizes yet: run the module once"):
        add(nn.Sequential(nn.LazyLinear(2)))
    model = network()
    add(model, "2")
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"^Layer '2' has .* already"):
        add(model)
    assert list(model.state_dict()) == before  # an error changes nothing


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="rank must be 1 or more, got 0"):
        add_low_rank(network(), rank=0)
    for make in (lambda: add_context(network(), 0), lambda: WithContext(network(), 0)):
        with pytest.raises(ValueError, match="size must be 1 or more, got 0"):
            make()
