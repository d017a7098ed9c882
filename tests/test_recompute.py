"""Recomputing changes no number, keeps no more memory, and loses no gradient silently."""

import logging

import pytest
import torch
import torch.nn.functional as F
from reference import cast, error, flat, meta_gradient, network, normed, task_of, tasks_of
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing import assert_close
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from headstart import MAML, SGD, Adam, Batch, Momentum, Task, adapt
from headstart.algorithms.maml import RECOMPUTE_FROM
from headstart.recompute import ClosureError, recomputed

HOW = pytest.mark.parametrize("how", ["vmap", "loop"])
INNER = pytest.mark.parametrize("inner", [SGD, Momentum, Adam], ids=lambda inner: inner.__name__)
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-12}


def both(make, tasks, **settings) -> list[tuple[Tensor, MAML]]:
    """Meta-gradients of a learner that recomputes and of one that does not, and the learners afterwards."""
    results = []
    for recompute in (True, False):
        torch.manual_seed(1)
        learner = MAML(make(), F.mse_loss, recompute=recompute, **settings)
        results.append((meta_gradient(learner(tasks), learner), learner))
    return results


class TestEqualsThePlainPath:
    @pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
    @pytest.mark.parametrize("steps", [0, 1, 3])
    @INNER
    @HOW
    def test_inner_optimisers(self, how, inner, steps, dtype):
        settings = {"inner": inner(0.1), "steps": steps, "vectorize": how}
        (given, _), (expected, _) = both(lambda: network(dtype), tasks_of(dtype=dtype), **settings)
        assert error(given, expected) < TOLERANCES[dtype]

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("norm", ["batch", "support", "running"])
    @HOW
    def test_norm_policies_with_held_parameters_and_running_buffers(self, how, norm, training):
        settings = {"norm": norm, "adapt_only": ["*", "!0.1.*"], "steps": 3, "inner": SGD(0.1), "vectorize": how}
        (given, learner), (expected, plain) = both(lambda: normed().train(training), tasks_of(), **settings)
        assert error(given, expected) < 1e-12
        assert_close(learner.state_dict(), plain.state_dict(), rtol=0, atol=0)

    @pytest.mark.parametrize("inner", [SGD, Momentum, Adam], ids=lambda inner: inner.__name__)
    @pytest.mark.parametrize("shape", ["one", "by name", "by element"])
    @HOW
    def test_learned_rates(self, how, shape, inner):
        def rates_gradient(recompute: bool) -> Tensor:
            params = dict(network().named_parameters())
            rates = {n: torch.full_like(p if shape == "by element" else p.sum(), 0.1) for n, p in params.items()}
            rates = {"lr": torch.tensor(0.1, dtype=torch.float64)} if shape == "one" else rates
            leaves = [rate.requires_grad_() for rate in rates.values()]
            lr = rates["lr"] if shape == "one" else rates
            learner = MAML(network(), F.mse_loss, inner=inner(lr), steps=3, vectorize=how, recompute=recompute)
            return flat(torch.autograd.grad(learner(tasks_of()), [*leaves, *learner.parameters()]))

        assert error(rates_gradient(True), rates_gradient(False)) < 1e-12

    @HOW
    def test_dropout_draws_the_same_masks(self, how):
        def dropped() -> nn.Module:
            return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 1)).double()

        (given, _), (expected, _) = both(dropped, tasks_of(), steps=3, inner=SGD(0.1), vectorize=how)
        assert error(given, expected) < 1e-12

    @HOW
    def test_the_backward_pass_leaves_the_random_state(self, how):
        model = nn.Sequential(nn.Linear(2, 16), nn.Dropout(0.4), nn.Linear(16, 1)).double()
        loss = MAML(model, F.mse_loss, steps=3, vectorize=how, recompute=True)(tasks_of())
        state = torch.get_rng_state()
        loss.backward()
        assert torch.equal(torch.get_rng_state(), state)

    @HOW
    def test_tasks_of_unequal_sizes(self, how):
        tasks = [task_of(i, shots) for i, shots in enumerate([5, 2, 5])]
        (given, _), (expected, _) = both(normed, tasks, steps=3, inner=SGD(0.1), vectorize=how)
        assert error(given, expected) < 1e-12

    @pytest.mark.filterwarnings("ignore:There is a performance drop")
    def test_a_recurrent_network_in_a_loop(self):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])

        (given, learner), (expected, _) = both(lambda: Last().double(), tasks_of(), steps=3, inner=SGD(0.1))
        assert learner.vectorize == "loop"
        assert error(given, expected) < 1e-12

    @HOW
    def test_first_order(self, how):
        (given, _), (expected, _) = both(normed, tasks_of(), steps=3, inner=SGD(0.1), vectorize=how, first_order=True)
        assert torch.equal(given, expected)

    @HOW
    def test_autocast_is_that_of_the_forward_pass(self, how):
        """The backward pass usually runs outside, on CUDA in another thread."""

        def gradient(recompute: bool) -> Tensor:
            learner = MAML(network(torch.float32), F.mse_loss, steps=3, inner=SGD(0.1), vectorize=how)
            learner.recompute = recompute
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                loss = learner(tasks_of(dtype=torch.float32))
            return meta_gradient(loss, learner)

        assert error(gradient(True), gradient(False)) < 1e-5

    @INNER
    @HOW
    def test_under_transforms_and_of_third_order(self, how, inner):
        tasks, params = tasks_of(), {"w": torch.tensor([0.3, -0.2], dtype=torch.float64)}

        def meta_loss(params: dict[str, Tensor], recompute: bool) -> Tensor:
            def one(support: Batch) -> Tensor:
                adapted = adapt(waves, params, [support] * 3, inner(0.1), recompute=recompute)
                return waves(adapted, support)

            batches = tasks.support
            if how == "vmap":
                return torch.vmap(one)(batches).sum()
            return sum(one(pytree.tree_map(lambda leaf, i=i: leaf[i], batches)) for i in range(3))

        def slope(params: dict[str, Tensor], recompute: bool) -> Tensor:
            return torch.func.grad(meta_loss)(params, recompute)["w"].square().sum()

        for fn in (meta_loss, slope):
            given, expected = (torch.func.grad(fn)(params, recompute) for recompute in (True, False))
            assert_close(given, expected, rtol=1e-10, atol=1e-12)

    @HOW
    def test_third_order_by_autograd(self, how):
        learners = [MAML(network(), F.mse_loss, steps=2, vectorize=how, recompute=r) for r in (True, False)]
        gradients = []
        for learner in learners:
            first = torch.autograd.grad(learner(tasks_of()), list(learner.parameters()), create_graph=True)
            gradients.append(meta_gradient(flat(first).square().sum(), learner))
        assert error(*gradients) < 1e-12

    @pytest.mark.parametrize("grad_mode", [True, False])
    def test_jacobians(self, grad_mode):
        def step(w: Tensor) -> Tensor:
            return w.sin() ** 2 * w

        w, rows = torch.tensor([0.3, -0.2, 1.1], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
        expected = torch.diag(w.sin() ** 2 + w * (2 * w).sin())
        leaf = w.clone().requires_grad_()
        image = recomputed(step)(leaf)
        with torch.set_grad_enabled(grad_mode):
            for given in (
                torch.func.jacrev(recomputed(step))(w),
                torch.vmap(torch.func.vjp(recomputed(step), w)[1])(rows)[0],
                torch.autograd.grad(image, leaf, rows, is_grads_batched=True, create_graph=grad_mode)[0],
            ):
                assert_close(given, expected)

    @pytest.mark.parametrize("create_graph", [True, False])
    def test_outputs_that_depend_on_no_argument(self, create_graph):
        w = torch.tensor([0.3, -0.2], requires_grad=True)
        square, index, one = recomputed(lambda w: (w.square(), torch.arange(2), torch.ones(2)))(w)
        assert not index.requires_grad
        total = (square * one + one).sum()
        assert_close(torch.autograd.grad(total, w, create_graph=create_graph, retain_graph=True)[0], 2 * w)
        (nothing,) = torch.autograd.grad(one.sum(), w, create_graph=create_graph, materialize_grads=True)
        assert_close(nothing, torch.zeros(2))


def waves(params: dict[str, Tensor], batch: Batch) -> Tensor:
    return ((batch.inputs * params["w"]).sum(-1).sin() - batch.targets[..., 0]).square().mean()


class TestTrees:
    def test_states_of_other_things_than_tensors_pass_through(self):
        def step(x: Tensor, state: tuple[int, str, dict]) -> tuple:
            count, name, _ = state
            return x * 2 ** (count + 1), (count + 1, name, {"x": x.detach(), "n": torch.tensor(count)})

        x = torch.tensor(3.0, requires_grad=True)
        y, (count, name, more) = recomputed(step)(x, (0, "a", {"not": None}))
        z, (count, name, more) = recomputed(step)(y, (count, name, more))
        z.backward()
        assert (count, name, int(more["n"]), x.grad.item()) == (2, "a", 1, 8.0)
        assert y.item() == more["x"].item() == 6.0

    def test_an_optimizer_of_the_users_own(self):
        class Plain:
            def init(self, params):
                return 0

            def update(self, params, grads, state):
                return {n: p - 0.1 / (state + 1) * grads[n] for n, p in params.items()}, state + 1

        (given, _), (expected, _) = both(network, tasks_of(), steps=3, inner=Plain())
        assert error(given, expected) < 1e-12

    def test_changed_parameters_are_noticed(self):
        learner = MAML(network(), F.mse_loss, steps=2, recompute=True)
        loss = learner(tasks_of())
        with torch.no_grad():
            learner.model[0].weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_without_gradients_it_is_the_function_itself(self):
        scale = torch.tensor(2.0, requires_grad=True)
        with torch.no_grad():
            assert recomputed(lambda x: x * scale)(torch.tensor(3.0)).item() == 6.0


class TestClosures:
    """What a loss takes from elsewhere would lose its gradient: that is an error, under every transform."""

    X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    W = torch.linspace(1, 2, 3, dtype=torch.float64)

    def adapted(self, x: Tensor, scale: Tensor) -> Tensor:
        def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
            return ((params["w"] * x).sum() * scale).cos()

        return adapt(loss, {"w": self.W}, [x] * 2, SGD(0.1), recompute=True)["w"].sum()

    def test_a_tensor_that_requires_gradients(self):
        scale = torch.tensor(2.0, requires_grad=True)
        with pytest.raises(ClosureError, match="recompute=False"):
            self.adapted(self.X[0], scale)
        with pytest.raises(ClosureError):
            torch.vmap(lambda x: self.adapted(x, scale))(self.X)
        assert not self.adapted(self.X[0], scale.detach()).requires_grad

    @pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # PyTorch's own, in jvp
    def test_one_of_a_transform(self):
        scale = torch.tensor(2.0)
        with pytest.raises(ClosureError):
            torch.func.grad(lambda scale: self.adapted(self.X[0], scale))(scale)
        with pytest.raises(ClosureError):
            torch.func.grad(lambda scale: torch.vmap(lambda x: self.adapted(x, scale))(self.X).sum())(scale)
        with pytest.raises(ClosureError):
            torch.vmap(torch.func.grad(lambda scale, x: self.adapted(x, scale)), in_dims=(None, 0))(scale, self.X)
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(lambda scale: self.adapted(self.X[0], scale), (scale,), (scale,))

    def test_one_that_vmap_maps_over(self):
        with pytest.raises(ClosureError):
            torch.vmap(lambda scale: self.adapted(self.X[0], scale))(self.W)

    @pytest.mark.parametrize("how", ["auto", "vmap", "loop"])
    def test_on_by_itself_it_steps_back_and_says_so_once(self, how, caplog):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

            def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
                return F.mse_loss(F.dropout(outputs, 0.1), targets) * self.scale

        def gradient(recompute: bool | str) -> Tensor:
            torch.manual_seed(0)
            learner = MAML(network(), Scaled(), steps=RECOMPUTE_FROM, vectorize=how, recompute=recompute)
            learner(tasks_of())
            return meta_gradient(learner(tasks_of()), learner)

        with caplog.at_level(logging.WARNING, logger="headstart"):
            assert torch.equal(gradient("auto"), gradient(False))
        assert len(caplog.records) == 1
        assert "cannot be recomputed" in caplog.text
        with pytest.raises(ClosureError):
            gradient(True)


class TestTracing:
    @HOW
    def test_a_graph_of_the_meta_gradient(self, how):
        tasks, other = tasks_of(), tasks_of(5)
        other = pytree.tree_map(lambda leaf: leaf[2:], other)
        learner = MAML(normed(), F.mse_loss, steps=3, inner=SGD(0.1), vectorize=how, recompute=True).eval()
        names = [name for name, _ in learner.named_parameters()]

        def gradients(params: list[Tensor], tasks: Task) -> list[Tensor]:
            with torch.nn.utils.stateless._reparametrize_module(learner, dict(zip(names, params, strict=True))):
                return list(torch.autograd.grad(learner.task_losses(tasks).mean(), params))

        params = [p.detach().clone().requires_grad_() for p in learner.parameters()]
        graph = make_fx(gradients)(params, tasks)
        for batch in (tasks, other):
            assert error(flat(graph(params, batch)), meta_gradient(learner(batch), learner)) < 1e-12

    def test_not_of_random_numbers(self):
        model = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
        learner = MAML(model, F.mse_loss, steps=1, recompute=True)
        with pytest.raises(NotImplementedError, match="draws random numbers"):
            make_fx(lambda tasks: learner.task_losses(tasks))(tasks_of())


class Peak(TorchDispatchMode):
    """The most memory that tensors took at once, of those made while it is active."""

    def __init__(self):
        super().__init__()
        self.live: dict[StorageWeakRef, int] = {}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(outputs):
            if isinstance(tensor, Tensor) and (reference := StorageWeakRef(tensor.untyped_storage())) not in self.live:
                self.live[reference] = tensor.untyped_storage().nbytes()
                self.bytes += self.live[reference]
        if self.bytes > self.most:  # perhaps: some are gone
            self.live = {reference: size for reference, size in self.live.items() if not reference.expired()}
            self.bytes = sum(self.live.values())
            self.most = max(self.most, self.bytes)
        return outputs


@HOW
def test_memory_is_flat_in_the_number_of_steps(how):
    def block(channels: int) -> nn.Module:
        conv = nn.Conv2d(channels, 4, 3, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))

    rng = torch.Generator().manual_seed(0)
    images = [torch.randn(2, count, 3, 20, 20, generator=rng) for count in (5, 75)]
    tasks = Task(*(Batch(x, torch.arange(x.shape[1]).remainder(5).expand(2, -1)) for x in images))

    def peak(steps: int, recompute: bool | str) -> int:
        torch.manual_seed(0)
        model = nn.Sequential(block(3), block(4), nn.Flatten(), nn.Linear(100, 5))
        learner = MAML(model, F.cross_entropy, steps=steps, vectorize=how, chunk_size=1, recompute=recompute)
        with Peak() as memory:
            learner(tasks).backward()
        return memory.most

    one = peak(1, recompute=False)
    assert peak(50, recompute="auto") < 1.3 * one
    assert peak(20, recompute=False) > 2 * one  # what the above would find without


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@HOW
def test_dropout_and_autocast_on_a_gpu(how):
    def gradient(recompute: bool) -> Tensor:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 1)).cuda()
        learner = MAML(model, F.mse_loss, steps=3, inner=SGD(0.1), vectorize=how, recompute=recompute)
        tasks = pytree.tree_map(Tensor.cuda, cast(tasks_of(), torch.float32))
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            loss = learner(tasks)
        return meta_gradient(loss, learner)

    assert error(gradient(True), gradient(False)) < 1e-5
