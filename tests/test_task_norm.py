import copy
import math

import pytest
import torch
import torch._inductor
import torch.nn.functional as F
from reference import directional_derivatives, error, flat, meta_gradient, trained, unstack
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task, layers
from headstart.task_norm import TaskNorm
from headstart.training.engine import Engine

OWN = pytest.mark.parametrize("own", ["instance", "layer"])
HOW = pytest.mark.parametrize("how", ["vmap", "loop"])
LR, STEPS, EPS = 0.1, 2, 1e-3

Params = dict[str, Tensor]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(own: str) -> nn.Sequential:
    """Two convolutions, each with TaskNorm, no parameter or buffer of which is where it begins."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 2)
    norms = [TaskNorm(3, own, eps=EPS), TaskNorm(4, own, eps=EPS)]
    model = nn.Sequential(first, norms[0], nn.Tanh(), second, norms[1], nn.Tanh(), nn.Flatten(), nn.Linear(36, 2))
    for norm in norms:
        for p in norm.parameters():
            nn.init.normal_(p, std=0.3)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.constant_(norm.examples, 3)
    return model.double()


def tasks(count: int = 3, shots: int = 5, queries: int = 4) -> Task:
    support, query = randn(count, shots, 1, 6, 6), randn(count, queries, 1, 6, 6, seed=1) * 2 + 0.5
    targets = randn(count, shots + queries, 2, seed=2)
    return Task(Batch(support, targets[:, :shots]), Batch(query, targets[:, shots:]))


def learner_of(own: str, how: str = "vmap", **settings) -> MAML:
    return MAML(network(own), F.mse_loss, inner=SGD(LR), steps=STEPS, vectorize=how, **settings)


Moments = tuple[Tensor, Tensor, int]


def by_hand(own: str, params: Params, x: Tensor, contexts: list[Moments] | None) -> tuple[Tensor, list[Moments]]:
    """The network on one task, example by example, and the moments of the batch at each norm.

    Those of `contexts` are used where given, else the batch's own.
    """
    noted = []
    for conv, name in (("0", "1"), ("3", "4")):
        x = F.conv2d(x, params[f"{conv}.weight"], params[f"{conv}.bias"])
        batch = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0), len(x)
        noted.append(batch)
        mean_c, variance_c, count = batch if contexts is None else contexts[len(noted) - 1]
        alpha = 1 / (1 + torch.exp(-params[f"{name}.blend_scale"] * count - params[f"{name}.blend_offset"]))
        rows = []
        for example in x:
            dims = (1, 2) if own == "instance" else (0, 1, 2)
            mean_e, variance_e = example.mean(dims), example.var(dims, correction=0)
            mean = alpha * mean_c + (1 - alpha) * mean_e
            variance = alpha * (variance_c + (mean_c - mean) ** 2) + (1 - alpha) * (variance_e + (mean_e - mean) ** 2)
            scale = params[f"{name}.weight"] / (variance + EPS).sqrt()
            row = (example - mean[:, None, None]) * scale[:, None, None] + params[f"{name}.bias"][:, None, None]
            rows.append(row.tanh())
        x = torch.stack(rows)
    return F.linear(x.flatten(1), params["7.weight"], params["7.bias"]), noted


def meta_loss_by_hand(own: str, model: nn.Module, norm: str, first_order: bool = False) -> Tensor:
    losses = []
    for support, query in unstack(tasks()):
        params = dict(model.named_parameters())
        for _ in range(STEPS):
            loss = F.mse_loss(by_hand(own, params, support.inputs, None)[0], support.targets)
            grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
            params = {name: p - LR * g for (name, p), g in zip(params.items(), grads, strict=True)}
        contexts = by_hand(own, params, support.inputs, None)[1] if norm == "support" else None
        losses.append(F.mse_loss(by_hand(own, params, query.inputs, contexts)[0], query.targets))
    return torch.stack(losses).mean()


class TestInsideTheInnerLoop:
    @HOW
    @OWN
    @pytest.mark.parametrize("norm", ["support", "batch"])
    def test_the_meta_gradient_is_that_of_a_loop_by_hand(self, own, norm, how):
        learner = learner_of(own, how, norm=norm)
        given, expected = learner(tasks()), meta_loss_by_hand(own, learner.model, norm)
        assert_close(given, expected)
        assert error(meta_gradient(given, learner), meta_gradient(expected, learner)) < 1e-10

    @OWN
    @pytest.mark.parametrize("norm", ["support", "batch"])
    def test_it_equals_finite_differences(self, own, norm):
        learner = learner_of(own, norm=norm)
        gradient = meta_gradient(learner(tasks()), learner)
        directions = randn(3, len(gradient))
        slopes = directional_derivatives(
            lambda: meta_loss_by_hand(own, learner.model, norm, first_order=True), trained(learner), directions
        )
        assert error(directions @ gradient, slopes) < 1e-6

    @OWN
    def test_all_that_it_learns_has_a_gradient(self, own):
        learner = learner_of(own)
        learner(tasks()).backward()
        for name, p in learner.model.named_parameters():
            if not name.endswith(("0.bias", "3.bias")):  # what the norm behind them takes away, or nearly so
                assert p.grad.abs().max() > 1e-6, name

    def test_which_names_do_not_adapt(self):
        learner = learner_of("layer", adapt_only=("*", "!*.blend_*"))
        adapted = learner.adapt(unstack(tasks())[0].support)
        moved = {n for n, p in adapted.named_parameters() if not torch.equal(p, learner.model.get_parameter(n))}
        assert moved == {name for name, _ in adapted.named_parameters() if "blend" not in name}
        learner(tasks()).backward()
        assert learner.model[1].blend_scale.grad.abs() > 1e-6

    @HOW
    @OWN
    def test_running_is_its_buffers_in_evaluation_mode(self, own, how):
        learner = learner_of(own, how, norm="running").eval()
        given = learner.predict(tasks(), steps=0)[:, 0]
        model = learner.model
        contexts = [(model[i].running_mean, model[i].running_var, 3) for i in (1, 4)]
        params = dict(model.named_parameters())
        expected = [by_hand(own, params, task.query.inputs, contexts)[0] for task in unstack(tasks())]
        assert_close(given, torch.stack(expected))

    def test_training_moves_the_buffers_and_counts_the_examples(self):
        learner = learner_of("layer")
        model, before = learner.model, copy.deepcopy(learner.model)
        learner.eval()(tasks())
        assert_close(dict(model.named_buffers()), dict(before.named_buffers()), rtol=0, atol=0)
        features = []
        for task in unstack(tasks()):
            adapted = learner.adapt(task.support)
            features.append(adapted[0](task.support.inputs).detach())
        learner.train()(tasks())
        mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
        assert_close(model[1].running_mean, 0.9 * before[1].running_mean + 0.1 * mean)
        assert model[1].examples == 5
        assert model[1].num_batches_tracked == 1

    @OWN
    @pytest.mark.parametrize("norm", layers.NORMS)
    def test_recorded_it_is_eager(self, own, norm, monkeypatch):
        """All of compiled mode but the compiler."""
        monkeypatch.setattr(torch._inductor, "compile", lambda graph, examples, options: graph)
        learner, other = (learner_of(own, norm=norm) for _ in range(2))
        compiled, eager = Engine(learner, mode="compiled"), Engine(other)
        for _ in range(2):
            learner.zero_grad(), other.zero_grad()
            assert_close(compiled.gradient(tasks()), eager.gradient(tasks()))
            assert_close([p.grad for p in learner.parameters()], [p.grad for p in other.parameters()])
            assert_close(dict(learner.named_buffers()), dict(other.named_buffers()))
        assert compiled.mode == "compiled"


class TestByItself:
    @OWN
    @pytest.mark.parametrize("norm", ["support", "batch", "running"])
    def test_the_adapted_module_predicts_as_the_learner_does(self, own, norm):
        learner = learner_of(own, norm=norm)
        predicted = learner.predict(tasks())[:, -1]
        for task, expected in zip(unstack(tasks()), predicted, strict=True):
            module = learner.adapt(task.support)
            queries = task.query.inputs
            assert_close(module(queries), expected)
            one_by_one = torch.cat([module(query.unsqueeze(0)) for query in queries])
            assert torch.allclose(one_by_one, expected, atol=1e-10) is (norm != "batch")

    @OWN
    def test_a_fresh_module_loads_the_adapted_one(self, own):
        task = unstack(tasks())[0]
        adapted, fresh = learner_of(own).adapt(task.support), network(own).eval()
        assert not torch.allclose(fresh(task.query.inputs), adapted(task.query.inputs))
        fresh.load_state_dict(adapted.state_dict())
        assert_close(fresh(task.query.inputs), adapted(task.query.inputs))

    @OWN
    @pytest.mark.parametrize("strict", [True, False])
    def test_the_adapted_module_exports(self, own, strict):
        task = unstack(tasks())[0]
        adapted = learner_of(own).adapt(task.support)
        exported = torch.export.export(adapted, (task.query.inputs[:1],), strict=strict).module()
        for query in task.query.inputs:
            assert_close(exported(query.unsqueeze(0)), adapted(query.unsqueeze(0)))

    @OWN
    def test_the_adapted_module_compiles_as_one_graph(self, own):
        task = unstack(tasks())[0]
        adapted = learner_of(own).adapt(task.support)
        compiled = torch.compile(adapted, fullgraph=True, backend="eager")
        assert_close(compiled(task.query.inputs), adapted(task.query.inputs))


def layer_of(own: str, share: float | None = None, channels: int = 3, **blend: float) -> TaskNorm:
    layer = TaskNorm(channels, own).double()
    blend = blend if share is None else {"blend_offset": math.log(share / (1 - share))}
    for name, value in blend.items():
        nn.init.constant_(layer.get_parameter(name), value)
    return layer


class TestTheShareOfTheContext:
    @OWN
    def test_all_of_it_is_batch_norm_and_none_of_it_the_examples_own(self, own):
        x = randn(5, 3, 4, 4) * 3 + 1
        assert_close(layer_of(own, blend_offset=100)(x), F.batch_norm(x, None, None, training=True))
        alone = F.instance_norm(x) if own == "instance" else F.layer_norm(x, [3, 4, 4])
        assert_close(layer_of(own, blend_offset=-100)(x), alone)

    def test_it_begins_at_one_half(self):
        x = randn(5, 3, 4, 4)
        assert_close(TaskNorm(3).double()(x), layer_of("instance", share=0.5)(x))
        assert not torch.allclose(TaskNorm(3).double()(x), layer_of("instance", share=0.4)(x), atol=1e-3)

    def test_it_is_a_sigmoid_of_the_number_of_support_examples(self):
        """And not of the number of queries, nor of positions."""
        layer, queries = layer_of("instance", blend_scale=0.3, blend_offset=-1.0), randn(4, 3, 2, 2, seed=1)
        for shots in (2, 6):
            support = randn(shots, 3, 2, 2)
            given, _ = layers.predict(layer, {}, queries, norm="support", support=support)
            fixed = layer_of("instance", share=1 / (1 + math.exp(1.0 - 0.3 * shots)))
            assert_close(given, layers.predict(fixed, {}, queries, norm="support", support=support)[0])

    def test_with_features_it_is_taken_of_all_of_them(self):
        x, layer = randn(5, 3), layer_of("layer", share=0.25)
        both = [
            (x.mean(0, keepdim=True), x.var(0, correction=0)),
            (x.mean(1, keepdim=True), x.var(1, correction=0)[:, None]),
        ]
        (mean_c, variance_c), (mean_e, variance_e) = both
        mean = 0.25 * mean_c + 0.75 * mean_e
        variance = 0.25 * (variance_c + mean_c**2) + 0.75 * (variance_e + mean_e**2) - mean**2
        assert_close(layer(x), (x - mean) / (variance + 1e-5).sqrt())

    def test_under_support_and_query_the_context_has_the_query_in_it(self):
        support, queries = randn(6, 3, 2, 2), randn(4, 3, 2, 2, seed=1)
        layer = layer_of("instance", share=0.3)
        given, _ = layers.predict(layer, {}, queries, norm="support+query", support=support)
        expected = [layer(torch.cat([support, query.unsqueeze(0)]))[-1] for query in queries]
        assert_close(given, torch.stack(expected))


def test_in_half_precision_it_computes_in_single():
    x = (randn(6, 3, 4, 4) + 50).bfloat16()
    layer = layer_of("instance", share=0.5).bfloat16()
    given = layer(x)
    assert given.dtype == torch.bfloat16
    assert error(given, layer_of("instance", share=0.5)(x.double())) < 1e-2
    layers.freeze_statistics(layer.eval(), x, "support")
    assert flat(list(layer.buffers())[:2]).dtype == torch.bfloat16
    assert layer(x).dtype == torch.bfloat16


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"needs inputs .*, got \(5, 3\): without positions .* Use own='layer'"):
        TaskNorm(3, "instance")(torch.ones(5, 3))
    with pytest.raises(ValueError, match="own must be 'instance' or 'layer', got 'batch'"):
        TaskNorm(3, "batch")
