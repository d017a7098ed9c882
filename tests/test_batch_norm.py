"""Batch norm in few passes against its formula, which PyTorch differentiates by itself, and finite differences."""

from functools import partial
from typing import Any

import pytest
import torch
from reference import error
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from headstart import SGD, adapt, once, worthwhile
from headstart.batch_norm import BatchNormalized
from headstart.exact import Exact, Statistics
from headstart.layers import run
from headstart.types import Params

# PyTorch's own forward-mode rules are scripted, which it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

SHAPES = {"images": (3, 2, 2, 3), "sequences": (2, 3, 4), "features": (4, 3), "one image": (1, 2, 3, 2)}
AFFINE = {"scale and shift": (True, True), "shift": (False, True), "scale": (True, False), "neither": (False, False)}
EPS = 0.1


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def given(shape: tuple[int, ...], affine: tuple[bool, bool], tasks: tuple[int, ...] = ()) -> list[Tensor | None]:
    """Images, scale and shift, each with a leading axis of `tasks`, if any."""
    scale, shift = affine
    channels = shape[1]
    return [
        values(*tasks, *shape),
        values(*tasks, channels, seed=1) if scale else None,
        values(*tasks, channels, seed=2) if shift else None,
    ]


def by_hand(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    dims, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
    mean = x.mean(dims)
    variance = ((x - mean.view(shape)) ** 2).mean(dims)
    y = (x - mean.view(shape)) / (variance.view(shape) + eps) ** 0.5
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape), mean, variance


def fused(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return BatchNormalized.apply(x, weight, bias, eps)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("affine", AFFINE.values(), ids=AFFINE)
class TestDerivatives:
    def test_by_finite_differences(self, shape, affine):
        inputs = [i if i is None else i.requires_grad_() for i in given(shape, affine)]
        assert gradcheck(lambda *i: fused(*i, EPS), inputs, check_forward_ad=True)
        assert gradgradcheck(lambda *i: fused(*i, EPS), inputs)

    @pytest.mark.parametrize("parts", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
    def test_without_a_graph_and_with_one(self, shape, affine, parts):
        """PyTorch's kernel gives what the first owes to the normalised values."""
        grads = []
        for function, graph in ((fused, False), (fused, True), (by_hand, False)):
            inputs = [i if i is None else i.requires_grad_() for i in given(shape, affine)]
            outputs = function(*inputs, EPS)
            loss = sum((outputs[part] * values(*outputs[part].shape, seed=3)).sum() for part in parts)
            asked = [i for i in inputs if i is not None]
            got = torch.autograd.grad(loss, asked, create_graph=graph, allow_unused=True)
            grads.append([torch.zeros_like(i) if g is None else g for i, g in zip(asked, got, strict=True)])
        assert_close(grads[0], grads[2])
        assert_close(grads[1], grads[2])

    @pytest.mark.parametrize("own", [(0, 0, 0), (0, None, None), (None, 0, 0), (2, 0, None)])
    def test_under_vmap_and_twice_differentiated(self, shape, affine, own):
        """Tasks with axes anywhere, or shared, against a loop over tasks with the formula."""
        inputs = given(shape, affine, tasks=(3,))
        inputs = [i if i is None or at is not None else i[0] for i, at in zip(inputs, own, strict=True)]
        if own[0] is None and not any(affine):
            pytest.skip("nothing has an axis of tasks")
        dims = tuple(None if i is None else at for i, at in zip(inputs, own, strict=True))

        def slope(function):
            def loss(*inputs: Tensor | None) -> Tensor:
                y, mean, variance = function(*inputs, EPS)
                return (y**3).sum() + (mean * variance).sum()

            def norm(*inputs: Tensor | None) -> Tensor:
                grads = torch.func.grad(loss, argnums=tuple(i for i, x in enumerate(inputs) if x is not None))(*inputs)
                return sum((g**2).sum() for g in grads)

            return norm

        def outer(norms: Tensor) -> tuple[Tensor, ...]:
            return torch.autograd.grad(norms.sum(), [i for i in inputs if i is not None])

        for i in inputs:
            _ = i is None or i.requires_grad_()
        moved = [i if not at else i.movedim(0, at) for i, at in zip(inputs, dims, strict=True)]
        ours = torch.vmap(slope(fused), dims)(*moved)
        tasks = [[i if at is None else i[t] for i, at in zip(inputs, dims, strict=True)] for t in range(3)]
        expected = torch.stack([slope(by_hand)(*task) for task in tasks])
        assert_close(ours, expected)
        assert_close(outer(ours), outer(expected))


def test_in_single_precision_far_from_zero():
    x = 1000 + values(8, 3, 9, 9)
    y, _, variance = fused(x.float(), None, None, 1e-5)
    expected, _, exact = by_hand(x, None, None, 1e-5)
    assert_close(y.double(), expected, rtol=0, atol=1e-3)
    assert_close(variance.double(), exact, rtol=1e-3, atol=0)


def test_images_in_any_layout():
    x, slope = values(4, 3, 6, 5), values(4, 3, 6, 5, seed=1)
    expected = torch.autograd.grad((by_hand(x.requires_grad_(), None, None, EPS)[0] * slope).sum(), x)[0]
    for layout in (lambda t: t.contiguous(memory_format=torch.channels_last), lambda t: t.mT.contiguous().mT):
        laid = layout(x.detach()).requires_grad_()
        assert_close(torch.autograd.grad((fused(laid, None, None, EPS)[0] * slope).sum(), laid)[0], expected)


KERNEL = torch.ops.aten.native_batch_norm_backward.default


class Counting(TorchDispatchMode):
    """How often PyTorch's kernel is called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is KERNEL
        return func(*args, **(kwargs or {}))


def plain(x: Tensor) -> None:
    fused(x, None, None, EPS)[0].sum().backward()


def with_moments(x: Tensor) -> None:
    y, mean, variance = fused(x, None, None, EPS)
    (y.sum() + mean.sum() + variance.sum()).backward()


def of_many_tasks(x: Tensor) -> None:
    torch.vmap(lambda x: fused(x, None, None, EPS)[0])(x.unsqueeze(0)).sum().backward()


def with_a_graph(x: Tensor) -> None:
    torch.autograd.grad(fused(x, None, None, EPS)[0].sum(), x, create_graph=True)


def inner(x: Tensor) -> None:
    torch.func.grad(lambda x: fused(x, None, None, EPS)[0].sum())(x)


@pytest.mark.parametrize(
    ("gradient", "calls"), [(plain, 1), (with_moments, 1), (of_many_tasks, 1), (with_a_graph, 0), (inner, 0)]
)
def test_the_kernel_gives_what_nothing_differentiates_again(gradient, calls):
    x = values(4, 3, 5, 5).requires_grad_()
    with Counting() as counted:
        gradient(x)
    assert counted.calls == calls


def normed_loss(params: Params, x: Tensor) -> Tensor:
    w = params["w"]
    return (fused(w * x, w.expand(3), w.expand(3), 1.0)[0] ** 3).mean()


def nested(params: Params, x: Tensor, recompute: bool = False) -> Tensor:
    """Differentiates through an adaptation, as do the steps that minimise it."""
    return adapt(normed_loss, params, [x], SGD(0.01), recompute=recompute)["w"].square()


def penalised(params: Params, x: Tensor) -> Tensor:
    """Differentiates a gradient that it takes itself."""
    return torch.func.grad(normed_loss)(params, x)["w"].square()


@pytest.mark.parametrize(
    ("loss", "options", "calls"),
    [
        (normed_loss, {"first_order": True}, 2),
        (normed_loss, {"recompute": True}, 2),  # then with a graph
        (normed_loss, {}, 0),
        (nested, {"first_order": True}, 2),  # the gradients of gradients, and not these
        (nested, {"recompute": True}, 2),
        (partial(nested, recompute=True), {"recompute": True}, 4),  # values alone at first
        (penalised, {"first_order": True}, 2),
        (penalised, {"recompute": True}, 2),
    ],
)
@pytest.mark.parametrize("tasks", [None, 3])
def test_the_kernel_gives_gradients_of_inner_steps_that_are_constants(loss, options, calls, tasks):
    x, w = values(*([] if tasks is None else [tasks]), 4, 3, 5, 5), values(1)[0].requires_grad_()

    def adapted(w: Tensor, x: Tensor, **options: bool) -> Tensor:
        return adapt(loss, {"w": w}, [x, x], SGD(0.01), **options)["w"]

    def gradient(**options: bool) -> tuple[Tensor, Tensor, int]:
        fn = partial(adapted, **options)
        with Counting() as counted:
            after = fn(w, x) if tasks is None else torch.vmap(fn, (None, 0))(w, x).sum()
            forward = counted.calls
        return after, torch.autograd.grad(after, w)[0], forward

    after, slope, counted = gradient(**options)
    assert counted == calls
    expected, second_order, _ = gradient()
    assert_close(after, expected)
    assert_close(slope, second_order if "recompute" in options or not options else torch.tensor(tasks or 1).to(slope))


def test_layers_use_it_where_images_are_large(monkeypatch):
    x, layer = values(4, 3, 5, 5).requires_grad_(), torch.nn.BatchNorm2d(3).double()
    for large, calls in ((x.numel(), 1), (x.numel() + 1, 0)):
        monkeypatch.setattr(worthwhile, "LARGE", large)
        y = run(layer, {}, x)[0]
        with Counting() as counted:  # any dispatch mode turns `worthwhile` off
            y.sum().backward()
        assert counted.calls == calls


def kernel(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return BatchNormalized.apply(x, weight, bias, eps, True)


class TestDifferentiatedOnce:
    """By PyTorch's kernels for large images; whether anything is differentiated again, a context promises only."""

    @pytest.fixture(autouse=True)
    def _inside(self):
        with once.differentiated_once():
            yield

    @pytest.mark.parametrize("affine", AFFINE.values(), ids=AFFINE)
    def test_by_finite_differences(self, affine):
        inputs = [i if i is None else i.requires_grad_() for i in given(SHAPES["images"], affine)]
        assert gradcheck(lambda *i: kernel(*i, EPS), inputs, check_forward_ad=True)
        assert gradgradcheck(lambda *i: kernel(*i, EPS), inputs)

    @pytest.mark.parametrize("affine", AFFINE.values(), ids=AFFINE)
    def test_of_several_tasks(self, affine):
        def slopes(fn: Any, *inputs: Any) -> list[Tensor]:
            asked = [i for i in inputs if i is not None]
            (first,) = torch.autograd.grad((fn(*inputs)[0] ** 3).sum(), inputs[0], create_graph=True)
            return [first, *torch.autograd.grad((first**2).sum(), asked)]

        inputs = [None if i is None else i.requires_grad_() for i in given(SHAPES["images"], affine, tasks=(3,))]
        dims = tuple(None if i is None else 0 for i in inputs)
        ours, expected = (
            slopes(lambda *i, fn=fn: torch.vmap(lambda *i: fn(*i, EPS), dims)(*i), *inputs) for fn in (kernel, by_hand)
        )
        assert_close(ours, expected)

    def test_constant_channels_have_no_negative_variance(self):
        """Recovered from `1 / sqrt(variance + eps)`, which rounds to one side or the other."""
        x = torch.ones(2, 1, 3, 3)
        assert all(kernel(x, None, None, eps)[2] >= 0 for eps in torch.linspace(1e-5, 0.1, 200).tolist())

    @pytest.mark.parametrize(("large", "calls"), [(24, 1), (25, 0)])
    def test_layers_use_it_where_images_are_large(self, monkeypatch, large, calls):
        monkeypatch.setattr(once, "LARGE_IMAGE", large)
        layer, x = torch.nn.BatchNorm2d(3), torch.zeros(4, 3, 5, 5)
        with torch.profiler.profile() as profile:
            run(layer, {}, x)
        assert sum(e.count for e in profile.key_averages() if e.key == "aten::native_batch_norm") == calls

    @pytest.mark.parametrize("again", [False, True])
    @pytest.mark.parametrize("affine", AFFINE.values(), ids=AFFINE)
    def test_in_half_precision(self, affine, again):
        """The formulas, where something is differentiated again, are in single precision."""

        def gradients(fn: Any, inputs: list[Any]) -> list[Tensor]:
            asked = [i for i in inputs if i is not None]
            y, mean, variance = fn(*inputs, EPS)
            value = (y.to(mean.dtype) * values(*y.shape, seed=3).to(mean.dtype)).sum() + (mean * variance).sum()
            return [y, mean, variance, *torch.autograd.grad(value, asked, create_graph=again)]

        exact = [i if i is None else i.requires_grad_() for i in given((8, 3, 9, 9), affine)]
        inputs = [None if i is None else i.detach().float().requires_grad_() for i in exact]
        inputs[0] = inputs[0].detach().bfloat16().requires_grad_()
        ours, expected = gradients(kernel, inputs), gradients(by_hand, exact)
        assert [t.dtype == torch.bfloat16 for t in ours] == [True, False, False, True, *[False] * (len(ours) - 4)]
        assert all(error(o.double(), e) < 1e-2 for o, e in zip(ours, expected, strict=True))


def test_other_statistics_than_the_batchs_own_are_heeded(monkeypatch):
    monkeypatch.setattr(worthwhile, "LARGE", 0)
    x = values(4, 3, 5, 5)

    def shifted(own: Any, *_: Any) -> Statistics:
        statistics = own()
        return statistics._replace(mean=statistics.mean + 1)

    with Exact(shifted):
        y = torch.nn.functional.batch_norm(x, None, None, training=True, eps=EPS)
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    assert_close(y, (x - mean - 1) / (variance + EPS).sqrt())
