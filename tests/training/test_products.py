import functools

import pytest
import torch
import torch.nn.functional as F
from reference import error
from torch import Tensor, nn
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.testing import assert_close

from headstart.training import products
from headstart.training.products import AsProducts, Overlap, Windows, conv2d, linear

SHAPES = {
    # name: channels in and out, kernel, stride, padding, height and width
    "1x1": (1, 1, (1, 1), (1, 1), (0, 0), (3, 4)),
    "1x1, stride 2": (2, 3, (1, 1), (2, 2), (0, 0), (5, 4)),
    "3x3": (2, 3, (3, 3), (1, 1), (0, 0), (5, 5)),
    "3x3, padded": (1, 2, (3, 3), (1, 1), (1, 1), (4, 5)),
    "3x3, stride 2": (3, 2, (3, 3), (2, 2), (1, 1), (6, 5)),
    "3x3, stride 3": (2, 2, (3, 3), (3, 3), (0, 0), (8, 7)),
    "2x2, stride 3": (2, 2, (2, 2), (3, 3), (0, 0), (7, 9)),
    "5x5, stride 2": (1, 2, (5, 5), (2, 2), (2, 1), (6, 7)),
    "1x3, stride 2x1": (2, 1, (1, 3), (2, 1), (0, 1), (5, 4)),
    "3x2, stride 1x3": (2, 2, (3, 2), (1, 3), (2, 1), (4, 6)),
    "as large as the image": (2, 3, (4, 5), (2, 2), (0, 0), (4, 5)),
}
SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
BIAS = pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])


def normal(*size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*size, dtype=dtype, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def arguments(shape, biased: bool, tasks: tuple[int, ...] = (), dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images, weight and bias."""
    channels, outputs, kernel, _, _, size = shape
    made = [normal(*tasks, 2, channels, *size, dtype=dtype), normal(*tasks, outputs, channels, *kernel, dtype=dtype)]
    return [*made, normal(*tasks, outputs, dtype=dtype)] if biased else made


def pair(shape, biased: bool):
    """Ours and PyTorch's, as functions of the tensors."""
    _, _, _, stride, padding, _ = shape
    bias = () if biased else (None,)
    return (
        lambda *tensors: conv2d(*tensors, *bias, stride, padding),
        lambda *tensors: F.conv2d(*tensors, *bias, stride, padding),
    )


def derivatives(fn, tensors: list[Tensor]) -> list[list[Tensor]]:
    """Values, and first and second derivatives, in directions in which no term is zero."""
    out = fn(*tensors).sin()
    first = grad(out.sum(), tensors, create_graph=True)
    second = grad(sum((g * g.detach().cos()).sum() for g in first), tensors, allow_unused=True, materialize_grads=True)
    return [[out], list(first), list(second)]


@BIAS
@SHAPE
class TestConvolution:
    def test_equals_the_native_one(self, shape, biased):
        ours, native = (derivatives(fn, arguments(shape, biased)) for fn in pair(shape, biased))
        assert_close(ours, native, rtol=1e-10, atol=1e-10)

    def test_under_vmap_with_a_weight_for_each_task(self, shape, biased):
        ours, native = pair(shape, biased)
        tensors = arguments(shape, biased, tasks=(3,))

        def looped(*tensors: Tensor) -> Tensor:
            return torch.stack([native(*(t[i] for t in tensors)) for i in range(3)])

        assert_close(derivatives(torch.vmap(ours), tensors), derivatives(looped, tensors), rtol=1e-10, atol=1e-10)

    def test_under_vmap_with_a_weight_for_all(self, shape, biased):
        ours, native = pair(shape, biased)
        images, weights = arguments(shape, biased, tasks=(3,))[:1], arguments(shape, biased)[1:]

        def looped(x: Tensor, *weights: Tensor) -> Tensor:
            return torch.stack([native(one, *weights) for one in x])

        vectorized = torch.vmap(ours, in_dims=(0, *[None] * len(weights)))
        assert_close(derivatives(vectorized, images + weights), derivatives(looped, images + weights))


@pytest.mark.parametrize("name", ["3x3, stride 2", "2x2, stride 3", "3x2, stride 1x3"])
def test_finite_differences_of_a_convolution(name):
    shape = SHAPES[name]
    ours, _ = pair(shape, biased=True)
    tensors = arguments(shape, biased=True)
    assert gradcheck(ours, tensors)
    assert gradgradcheck(ours, tensors)


@SHAPE
def test_windows_and_overlap_are_adjoint(shape):
    channels, _, kernel, stride, _, size = shape
    x = normal(2, *size, channels, seed=1).detach()
    windows = Windows.apply(x, kernel, stride)
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel, stride=stride)  # [n, c * kh * kw, rows * columns]
    seen = windows.flatten(1, 2).permute(0, 4, 2, 3, 1).reshape(unfolded.shape)
    assert torch.equal(seen, unfolded)
    y = normal(*windows.shape, seed=2).detach()
    assert_close((windows * y).sum(), (x * Overlap.apply(y, stride, size)).sum(), rtol=1e-12, atol=0)


@BIAS
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)], ids=str)
class TestLinear:
    def tensors(self, leading: tuple[int, ...], biased: bool, tasks: tuple[int, ...] = ()) -> list[Tensor]:
        return [normal(*tasks, *leading, 5), normal(*tasks, 3, 5), *([normal(*tasks, 3)] if biased else [])]

    def test_equals_the_native_one(self, leading, biased):
        tensors = self.tensors(leading, biased)
        assert_close(derivatives(linear, tensors), derivatives(F.linear, tensors), rtol=1e-10, atol=1e-10)
        assert gradgradcheck(linear, tensors)

    @pytest.mark.parametrize("own", [True, False], ids=["a weight for each task", "a weight for all"])
    def test_under_vmap(self, leading, biased, own):
        x, *weights = self.tensors(leading, biased, tasks=(3,))
        weights = weights if own else self.tensors(leading, biased)[1:]

        def looped(x: Tensor, *weights: Tensor) -> Tensor:
            return torch.stack([F.linear(x[i], *(w[i] if own else w for w in weights)) for i in range(3)])

        vectorized = torch.vmap(linear, in_dims=(0, *[0 if own else None] * len(weights)))
        assert_close(derivatives(vectorized, [x, *weights]), derivatives(looped, [x, *weights]))


@pytest.fixture
def multiplied(monkeypatch) -> list[str]:
    """Which of our functions the context called."""
    names = []
    for name in ("conv2d", "linear"):
        fn = getattr(products, name)

        def noted(*args, fn=fn, name=name, **kwargs):
            names.append(name)
            return fn(*args, **kwargs)

        monkeypatch.setattr(products, name, noted)
    return names


def model(**settings) -> nn.Module:
    """For images of 6 x 7."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, **settings)
    features = conv(torch.zeros(1, 2, 6, 7)).numel()
    return nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(features, 3))


class TestContext:
    @pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": (2, 1)}, {"bias": False}], ids=str)
    def test_a_model_gives_the_same(self, settings, multiplied):
        network, x = model(**settings), normal(5, 2, 6, 7, dtype=torch.float32)
        expected = network(x)
        with AsProducts():
            assert_close(network(x), expected)
        assert multiplied == ["conv2d", "linear"]

    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
    @pytest.mark.parametrize(
        "settings",
        [{"dilation": 2}, {"dilation": (1, 2)}, {"groups": 2}, {"padding": "same"}, {"padding": "valid"}],
        ids=str,
    )
    def test_what_is_left_as_it_is(self, settings, multiplied):
        network, x = model(**settings), normal(5, 2, 6, 7, dtype=torch.float32)
        expected = network(x)
        with AsProducts():
            assert_close(network(x), expected)
        assert multiplied == ["linear"]

    def test_an_image_without_a_batch(self, multiplied):
        layer, x = nn.Conv2d(2, 4, 3), normal(2, 6, 7, dtype=torch.float32)
        with AsProducts():
            assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))
        assert not multiplied

    @pytest.mark.parametrize("mode", ["reflect", "circular"])
    def test_other_paddings_are_made_before(self, mode, multiplied):
        network, x = model(padding=1, padding_mode=mode), normal(5, 2, 6, 7, dtype=torch.float32)
        expected = network(x)
        with AsProducts():
            assert_close(network(x), expected)
        assert multiplied == ["conv2d", "linear"]

    @pytest.mark.parametrize(
        "call",
        [
            functools.partial(F.linear, input=torch.ones(2, 3), weight=torch.ones(4, 3), bias=torch.ones(4)),
            functools.partial(F.linear, torch.ones(2, 3), torch.ones(4, 3), bias=torch.ones(4)),
            functools.partial(F.linear, torch.ones(2, 3), torch.ones(3)),
            functools.partial(F.conv2d, input=torch.ones(1, 2, 4, 4), weight=torch.ones(3, 2, 3, 3), stride=[2, 2]),
            functools.partial(F.conv2d, torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), None, (1,), [1]),
            functools.partial(torch.conv2d, torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3), padding=1),
        ],
        ids=[
            "linear, by name",
            "linear, bias by name",
            "linear, a vector",
            "by name",
            "single numbers",
            "torch.conv2d",
        ],
    )
    def test_however_it_is_called(self, call):
        expected = call()
        with AsProducts():
            assert_close(call(), expected)

    @pytest.mark.parametrize("tasks", [None, 3], ids=["plain", "vmap"])
    def test_under_autocast(self, tasks):
        def run(network, x: Tensor) -> Tensor:
            params = dict(network.named_parameters())

            def once(params: dict[str, Tensor], x: Tensor) -> Tensor:
                return torch.func.functional_call(network, params, (x,))

            if tasks is None:
                return once(params, x)
            return torch.vmap(once, in_dims=(None, 0))(params, x.expand(tasks, *x.shape))

        network, x = model(stride=2, padding=1), normal(5, 2, 6, 7, dtype=torch.float32)
        exact = run(network, x)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            native = run(network, x)
            with AsProducts():
                ours = run(network, x)
        assert ours.dtype == torch.bfloat16
        assert error(ours, native) < 0.02
        assert 1e-4 < error(ours, exact) < 0.02
        given = grad(ours.float().square().sum(), list(network.parameters()))
        expected = grad(exact.square().sum(), list(network.parameters()))
        assert {g.dtype for g in given} == {torch.float32}
        assert all(error(g, e) < 0.05 for g, e in zip(given, expected, strict=True))
