import copy

import pytest
import torch
import torch.nn.functional as F
from reference import (
    adapted,
    call,
    error,
    gradient_descent,
    meta_gradient,
    meta_loss,
    native,
    normed,
    task_of,
    tasks_of,
    unstack,
)
from torch import Tensor, nn
from torch.testing import assert_close

from headstart import MAML, SGD, Batch, Task
from headstart.layers import NORMS
from headstart.models import MLP

HOW = pytest.mark.parametrize("how", ["vmap", "loop"])


class TestNormPolicies:
    @HOW
    def test_a_prediction_depends_on_the_other_queries_or_not(self, how):
        learner, tasks = MAML(normed(), F.mse_loss, inner=SGD(0.1), vectorize=how), tasks_of()
        x, y = tasks.query
        for norm, independent in (("support", True), ("support+query", True), ("running", True), ("batch", False)):
            together = learner.predict(tasks, norm=norm)
            pairs = [learner.predict(Task(tasks.support, Batch(x[:, i : i + 2], y)), norm=norm) for i in range(6)]
            apart = torch.stack([pair[:, :, 0] for pair in pairs], dim=2)
            assert torch.allclose(together[:, :, :6], apart, atol=1e-10) is independent

    def test_running_is_pytorchs_own(self):
        model, plain, tasks = normed(), normed(), tasks_of()
        learner = MAML(model, F.mse_loss, inner=SGD(0.1), norm="running", vectorize="loop")
        expected = meta_loss(plain, F.mse_loss, tasks, gradient_descent(0.1), 1)  # training mode: batch statistics
        assert error(meta_gradient(learner(tasks), learner), meta_gradient(expected, plain)) < 1e-10
        plain.load_state_dict(model.state_dict())
        learner.eval(), plain.eval()  # the buffers, now that they are not at their start
        expected = meta_loss(plain, F.mse_loss, tasks, gradient_descent(0.1), 1)
        assert error(meta_gradient(learner(tasks), learner), meta_gradient(expected, plain)) < 1e-10
        adapted = learner.adapt(task_of(0).support)
        assert_close(adapted[0][1].running_mean, model[0][1].running_mean)

    @HOW
    @pytest.mark.parametrize("norm", NORMS)
    def test_buffers_move_once_per_training_batch_and_never_else(self, norm, how):
        model = normed()
        layer = model[0][1]
        learner, tasks = MAML(model, F.mse_loss, inner=SGD(0.1), steps=2, norm=norm, vectorize=how), tasks_of()
        before = copy.deepcopy(layer.state_dict())
        learner.adapt(task_of(0).support, norm=norm.partition("+")[0]), learner.predict(tasks), learner.eval()(tasks)
        assert_close(layer.state_dict(), before, rtol=0, atol=0)
        features = []
        for task in unstack(tasks):
            adapted = learner.adapt(task.support, norm="batch")[0][0]
            features.append(adapted(task.support.inputs if "support" in norm else task.query.inputs).detach())
        learner.train()(tasks)
        mean = torch.stack([f.mean(0) for f in features]).mean(0)
        variance = torch.stack([f.var(0) for f in features]).mean(0)
        assert_close(layer.running_mean, 0.1 * mean)
        assert_close(layer.running_var, 0.9 + 0.1 * variance)
        assert layer.num_batches_tracked == 1

    @HOW
    def test_support_and_query_is_a_native_batch_for_each_query(self, how):
        """Of the support set and that query: with one batch norm there is no difference, to second order."""
        model, plain, tasks = normed(), normed(), tasks_of()
        learner = MAML(model, F.mse_loss, inner=SGD(0.1), steps=2, norm="support+query", vectorize=how)
        losses = []
        for support, query in unstack(tasks):
            params = adapted(plain, F.mse_loss, support, gradient_descent(0.1), 2)
            batches = [torch.cat([support.inputs, x.unsqueeze(0)]) for x in query.inputs]
            outputs = torch.stack([call(plain, params, batch)[-1] for batch in batches])
            losses.append(F.mse_loss(outputs, query.targets))
        expected = meta_gradient(torch.stack(losses).mean(), plain)
        assert error(meta_gradient(learner(tasks), learner), expected) < 1e-10
        with pytest.raises(ValueError, match=r"cannot do norm='support\+query' by itself.*Adapt with norm='support'"):
            learner.adapt(task_of(0).support)

    def test_the_papers_network_has_a_gradient_natively_only_with_a_scale(self):
        """Why `reference.native` exists: batch norm with a shift alone has no double backward in PyTorch."""
        model = nn.Sequential(MLP(2, 1, (4,), normalizer="batch")).double()
        learner = MAML(model, F.mse_loss, inner=SGD(0.1), norm="batch")
        given = meta_gradient(learner(tasks_of()), learner)
        assert given.isfinite().all()
        with pytest.raises(RuntimeError, match="Expected a proper Tensor but got None"):
            meta_gradient(meta_loss(model, F.mse_loss, tasks_of(), gradient_descent(0.1), 1), model)
        expected = meta_gradient(meta_loss(native(model), F.mse_loss, tasks_of(), gradient_descent(0.1), 1), model)
        assert error(given, expected) < 1e-10


class Counter(nn.Module):
    """A module that writes a buffer while it runs."""

    def __init__(self, by_data: bool):
        super().__init__()
        self.linear, self.by_data = nn.Linear(2, 1), by_data
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().sum(0) if self.by_data else 1
        return self.linear(x)


@pytest.mark.parametrize("by_data", [False, True])
@pytest.mark.parametrize("how", ["auto", "loop"])
def test_buffers_that_a_module_writes_stay_as_they_were(how, by_data):
    model = Counter(by_data)
    learner, tasks = MAML(model, F.mse_loss, vectorize=how), tasks_of(dtype=torch.float32)
    expected = MAML(copy.deepcopy(model).linear, F.mse_loss)(tasks)
    assert_close(learner(tasks), expected)
    learner.predict(tasks)
    assert model.seen.count_nonzero() == 0
    assert learner.vectorize == ("loop" if by_data else how)


def test_spectral_norm_leaves_its_vectors_alone():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 1)).double()
    before = copy.deepcopy(model.state_dict())
    learner = MAML(model, F.mse_loss)
    learner(tasks_of()).backward()
    learner.eval()(tasks_of())
    assert_close(model.state_dict(), before, rtol=0, atol=0)


def alone(learner: MAML, tasks: Task, norm: str) -> torch.Tensor:
    """Predictions of tasks that have one query each, put together again."""
    count = tasks.query.inputs.shape[1]
    single = [
        Task(tasks.support, Batch(tasks.query.inputs[:, i : i + 1], tasks.query.targets[:, i : i + 1]))
        for i in range(count)
    ]
    return torch.cat([learner.predict(one, norm=norm) for one in single], dim=2)


@pytest.mark.parametrize("vectorize", ["vmap", "loop"])
@pytest.mark.parametrize(("norm", "transductive"), [("batch", True), ("support", False), ("support+query", False)])
def test_one_query_at_a_time_is_a_task_with_one_query(norm, transductive, vectorize):
    """On sequences: a batch of one query still has a mean over its positions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.Tanh(), nn.Flatten(), nn.Linear(12, 1)).double()
    learner = MAML(model, F.mse_loss, inner=SGD(0.1), steps=2, norm=norm, vectorize=vectorize)
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 6, 2, 3, dtype=torch.float64, generator=rng)
    tasks = Task(*(Batch(x, torch.randn(3, 6, 1, dtype=torch.float64, generator=rng)) for x in inputs))
    together, each = learner.predict(tasks, norm=norm), learner.predict(tasks, norm=norm, one_at_a_time=True)
    assert_close(each, alone(learner, tasks, norm), rtol=0, atol=1e-12)
    assert ((together - each).abs().max() > 1e-2) == transductive
