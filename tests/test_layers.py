import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import layers
from headstart.exact import Statistics
from headstart.layers import freeze_statistics, predict, run, update_running

rand = torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rand).to(dtype)


class Sizes(nn.Module):
    """Batch norm before and after a nonlinearity, a counter, and whatever else the inner loop must not touch."""

    def __init__(self, **settings):
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(3, **settings), nn.BatchNorm1d(3, **settings)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("running_mean", torch.zeros(3))  # a module's own, that only looks like batch norm's

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.running_mean.lerp_(x.detach().mean(0).to(self.running_mean), 0.1)
        return self.second(self.first(x).tanh())


def natively(module: nn.Module, x: Tensor, statistics: layers.Seen) -> Tensor:
    """PyTorch's own evaluation mode, with buffers set by hand."""
    module = copy.deepcopy(module).eval()
    for name, (mean, variance, *_) in statistics.items():
        layer = module.get_submodule(name)
        layer.running_mean, layer.running_var, layer.track_running_stats = mean, variance, True
    return module(x)


def by_hand(*inputs: Tensor) -> list[Statistics]:
    return [Statistics(x.mean(0), x.var(0, correction=0), x.var(0), x.new_tensor(len(x))) for x in inputs]


class TestRun:
    def test_it_leaves_no_trace(self):
        module = Sizes()
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        for norm in layers.NORMS:
            run(module, {}, randn(5, 3, dtype=torch.float32), norm=norm)
        assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())
        assert list(module.state_dict()) == list(Sizes().state_dict())

    def test_parameters_not_named_keep_their_value(self):
        module, x = nn.Linear(3, 2), randn(4, 3, dtype=torch.float32)
        outputs, _ = run(module, {"bias": torch.tensor([5.0, 6.0])}, x)
        assert_close(outputs, x @ module.weight.T + torch.tensor([5.0, 6.0]))

    def test_it_notes_the_statistics_of_each_layer(self):
        module, x = Sizes().double(), randn(5, 3)
        _, seen = run(module, {}, x)
        first, second = by_hand(x, F.batch_norm(x, None, None, training=True).tanh())
        assert_close(seen, {"first": first, "second": second})

    @pytest.mark.parametrize(
        "settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
    )
    def test_batch_statistics_are_those_of_training_mode(self, settings):
        module, x = Sizes(**settings).double(), randn(5, 3)
        assert_close(run(module.eval(), {}, x)[0], copy.deepcopy(module).train()(x))

    @pytest.mark.parametrize("training", [True, False])
    def test_running_is_what_the_modes_of_the_layers_say(self, training):
        module, x = Sizes().double(), randn(5, 3)
        module(randn(8, 3))
        module.train(training)
        assert_close(run(module, {}, x, norm="running")[0], copy.deepcopy(module)(x))

    def test_too_few_values(self):
        with pytest.raises(ValueError, match=r"more than one value per channel, got input of shape \(1, 3\)"):
            run(Sizes(), {}, torch.ones(1, 3))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x).tanh() * 2)


class Functional(nn.Module):
    """Batch norm without a layer of its own; with running buffers, or without."""

    def __init__(self, buffers: bool):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("mean", torch.zeros(3) if buffers else None)
        self.register_buffer("variance", torch.ones(3) if buffers else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.scale, training=self.training or self.mean is None)


class SometimesNorm(Sizes):
    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) if len(x) > 4 else x


MODULES = {
    "two layers": Sizes,
    "without running statistics": lambda: Sizes(track_running_stats=False),
    "one layer twice": Twice,
    "itself a layer": lambda: nn.BatchNorm1d(3),
}
FUNCTIONS = {
    "a function": lambda: Functional(buffers=False),
    "a function with buffers": lambda: Functional(buffers=True),
}
REFUSED = {
    ("one layer twice", "support"),
    ("a function with buffers", "batch"),
    *((f, "support") for f in FUNCTIONS),
    *((name, "support+query") for name in [*MODULES, *FUNCTIONS]),
}
"""Which of them cannot follow which policy by themselves."""


class TestPredict:
    @pytest.mark.parametrize("name", MODULES)
    def test_support_statistics_make_predictions_independent(self, name):
        module, support, queries = MODULES[name]().double(), randn(6, 3), randn(4, 3)
        together, _ = predict(module, {}, queries, norm="support", support=support)
        alone = [predict(module, {}, query.unsqueeze(0), norm="support", support=support)[0] for query in queries]
        assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
        transductive, _ = predict(module, {}, queries, norm="batch")
        assert not torch.allclose(transductive, together, atol=1e-2)
        fewer, _ = predict(module, {}, queries[:3], norm="batch")
        assert not torch.allclose(transductive[:3], fewer, atol=1e-3)

    def test_support_statistics_are_native_evaluation_with_buffers_set_by_hand(self):
        module, support, queries = Sizes().double(), randn(6, 3), randn(4, 3)
        first, second = by_hand(support, F.batch_norm(support, None, None, training=True).tanh())
        given, _ = predict(module, {}, queries, norm="support", support=support)
        assert_close(given, natively(module, queries, {"first": first, "second": second}))

    def test_each_call_of_one_layer_has_its_own(self):
        module, support, queries = Twice().double(), randn(6, 3), randn(4, 3)
        _, seen = predict(module, {}, queries, norm="support", support=support)
        first, second = by_hand(support, F.batch_norm(support, None, None, training=True).tanh() * 2)
        assert_close(seen, {"norm": first, "norm#2": second})

    @pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2)], ids=str)
    def test_support_and_query_is_one_native_batch_of_the_support_set_and_that_query(self, shape):
        support, queries = randn(6, *shape), randn(4, *shape)
        queries[0] += 10
        module = (nn.BatchNorm1d if len(shape) < 3 else nn.BatchNorm2d)(3).double()
        nn.init.normal_(module.weight, generator=rand)
        expected = torch.stack([module(torch.cat([support, query.unsqueeze(0)]))[-1] for query in queries])
        given, _ = predict(module, {}, queries, norm="support+query", support=support)
        assert_close(given, expected)
        alone = [predict(module, {}, q.unsqueeze(0), norm="support+query", support=support)[0] for q in queries]
        assert_close(torch.cat(alone), given)

    def test_a_query_does_not_change_how_the_support_set_is_normalised_on_the_way(self):
        module, support, queries = Sizes().double(), randn(6, 3), randn(4, 3)
        given, seen = predict(module, {}, queries, norm="support+query", support=support)
        hidden = F.batch_norm(support, None, None, training=True).tanh()
        assert_close(seen, run(module, {}, support)[1])
        for query, output in zip(queries, given, strict=True):
            first = F.batch_norm(torch.cat([support, query.unsqueeze(0)]), None, None, training=True)[-1:].tanh()
            assert_close(F.batch_norm(torch.cat([hidden, first]), None, None, training=True)[-1], output)

    @pytest.mark.parametrize("make", [SometimesNorm, *FUNCTIONS.values()], ids=["not on the support set", *FUNCTIONS])
    def test_a_norm_without_support_statistics_is_refused(self, make):
        with pytest.raises(ValueError, match=r"Batch norm .* has no support statistics .* Use norm='batch' or"):
            predict(make(), {}, torch.randn(6, 3), norm="support", support=torch.ones(2, 3))


class TestFreezing:
    @pytest.mark.parametrize("norm", layers.NORMS)
    @pytest.mark.parametrize("name", [*MODULES, *FUNCTIONS])
    def test_the_frozen_module_does_it_by_itself_or_it_is_refused(self, name, norm):
        module, support, queries = (MODULES | FUNCTIONS)[name]().double(), randn(6, 3), randn(4, 3)
        module(randn(8, 3))  # running buffers that are neither at their start nor the support set's
        module.eval()
        if (name, norm) in REFUSED:
            with pytest.raises(
                ValueError, match=f"cannot do norm='{re.escape(norm)}' by itself.*Adapt with (another|norm=)"
            ):
                freeze_statistics(module, support, norm)
        else:
            expected, _ = predict(module, {}, queries, norm=norm, support=support)
            freeze_statistics(module, support, norm)
            assert_close(module(queries), expected)

    @pytest.mark.parametrize("norm", layers.NORMS)
    def test_instance_norm_uses_the_instance(self, norm):
        module, x = (
            nn.Sequential(nn.Conv1d(3, 3, 1), nn.InstanceNorm1d(3, track_running_stats=True)).eval(),
            torch.randn(2, 3, 5),
        )
        expected, _ = run(module, {}, x)
        freeze_statistics(module, x, norm)
        assert_close(module(x), expected)

    def test_a_fresh_module_loads_the_frozen_one(self):
        module, fresh, support, queries = Sizes().double(), Sizes().double().eval(), randn(6, 3), randn(4, 3)
        freeze_statistics(module.eval(), support, "support")
        fresh.load_state_dict(module.state_dict())
        assert_close(fresh(queries), module(queries))


class TestRunningBuffers:
    def seen(self, module: nn.Module, tasks: Tensor) -> layers.Seen:
        per_task = [run(module, {}, x)[1] for x in tasks]
        return {
            name: Statistics(*(torch.stack(s) for s in zip(*(seen[name] for seen in per_task), strict=True)))
            for name in per_task[0]
        }

    @pytest.mark.parametrize("momentum", [0.1, 0.5, None])
    @pytest.mark.parametrize("make", [Sizes, Twice], ids=["two layers", "one layer twice"])
    def test_they_move_as_in_plain_training(self, make, momentum):
        module = make().double()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d):
                layer.momentum = momentum
        plain = copy.deepcopy(module)
        for x in randn(3, 50, 3):
            update_running(module, self.seen(module, x.unsqueeze(0)))
            plain(x)
        for name, given in module.named_buffers():
            if "." in name:  # a norm layer's, and not the module's own
                assert_close(given, plain.get_buffer(name))

    def test_they_move_by_the_mean_over_tasks(self):
        module, tasks = nn.Sequential(nn.BatchNorm1d(3)).double(), randn(4, 5, 3)
        update_running(module, self.seen(module, tasks))
        assert_close(module[0].running_mean, 0.1 * tasks.mean((0, 1)))
        assert_close(module[0].running_var, 0.9 + 0.1 * tasks.var(1).mean(0))
        assert module[0].num_batches_tracked == 1

    def test_not_in_evaluation_mode_and_not_where_there_are_none(self):
        module, tasks = Sizes().double(), randn(2, 5, 3)
        before = copy.deepcopy(module.state_dict())
        module.first.eval()
        update_running(module, self.seen(module, tasks))
        assert torch.equal(module.first.running_mean, before["first.running_mean"])
        assert not torch.equal(module.second.running_mean, before["second.running_mean"])
        without = Sizes(track_running_stats=False).double()
        update_running(without, self.seen(without, tasks))
        assert "first.running_mean" not in without.state_dict()


def test_evaluating_restores_each_mode():
    module = Sizes()
    module.first.eval()
    with layers.evaluating(module):
        assert not any(m.training for m in module.modules())
    assert [m.training for m in module.modules()] == [True, False, True]
