import pytest
import torch
import torch.nn.functional as F

from headstart.export import operations

CONVOLUTIONS = {
    "plain": (F.conv2d, (3, 2, 6, 6), (4, 2, 3, 3), {}),
    "strided, with a rest": (F.conv2d, (3, 2, 8, 7), (4, 2, 3, 3), {"stride": 2, "padding": 1}),
    "dilated": (F.conv2d, (3, 2, 9, 9), (4, 2, 3, 2), {"dilation": 2, "stride": (1, 2)}),
    "in groups": (F.conv2d, (3, 4, 6, 6), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    "of a series": (F.conv1d, (3, 2, 9), (4, 2, 3), {"stride": 2}),
    "transposed": (F.conv_transpose2d, (3, 4, 5, 5), (4, 3, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "transposed in groups": (F.conv_transpose2d, (3, 4, 5, 5), (4, 3, 3, 3), {"groups": 2}),
}


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolutions_gradient_is_autograds(name, rng):
    function, x_shape, weight_shape, settings = CONVOLUTIONS[name]
    x = torch.randn(x_shape, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(weight_shape, generator=rng, dtype=torch.float64, requires_grad=True)
    transposed = function is F.conv_transpose2d
    channels = weight_shape[1] * settings.get("groups", 1) if transposed else weight_shape[0]
    bias = torch.randn(channels, generator=rng, dtype=torch.float64, requires_grad=True)
    outputs = function(x, weight, bias, **settings)
    grad = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
    expected = torch.autograd.grad(outputs, (x, weight, bias), grad)
    axes = x.dim() - 2
    each = {
        key: list(value) if isinstance(value, tuple) else [value] * axes
        for key, value in ({"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0} | settings).items()
        if key != "groups"
    }
    found = operations.convolution_backward(
        grad,
        x.detach(),
        weight.detach(),
        [channels],
        each["stride"],
        each["padding"],
        each["dilation"],
        transposed,
        each["output_padding"],
        settings.get("groups", 1),
        [True, True, True],
    )
    torch.testing.assert_close(found, expected)


def test_only_what_is_asked_for_is_computed(rng):
    x, weight, grad = torch.randn(2, 1, 4, 4), torch.randn(3, 1, 3, 3), torch.randn(2, 3, 2, 2)
    settings = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    found = operations.convolution_backward(grad, x, weight, None, *settings, [False, True, False])
    assert found[0] is None
    assert found[2] is None
    assert found[1] is not None


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1)])
def test_poolings_gradients_are_autograds(kernel, stride, padding, rng):
    x = torch.randn(2, 3, 7, 7, generator=rng, dtype=torch.float64, requires_grad=True)
    outputs, indices = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
    grad = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
    (expected,) = torch.autograd.grad(outputs, x, grad)
    window = [kernel] * 2, [stride] * 2, [padding] * 2
    found = operations.max_pool2d_backward(grad, x.detach(), *window, [1, 1], False, indices)
    torch.testing.assert_close(found, expected)
    outputs = F.avg_pool2d(x, kernel, stride, padding)
    (expected,) = torch.autograd.grad(outputs, x, grad)
    found = operations.avg_pool2d_backward(grad, x.detach(), *window, False, True, None)
    torch.testing.assert_close(found, expected)


def test_adaptive_pooling_is_even_or_refused(rng):
    x = torch.randn(2, 3, 6, 6, generator=rng, dtype=torch.float64, requires_grad=True)
    outputs = F.adaptive_avg_pool2d(x, (3, 2))
    grad = torch.randn(outputs.shape, generator=rng, dtype=torch.float64)
    (expected,) = torch.autograd.grad(outputs, x, grad)
    torch.testing.assert_close(operations.adaptive_avg_pool2d_backward(grad, x.detach()), expected)
    assert operations.adaptive_avg_pool2d_backward(torch.ones(2, 3, 4, 4), x.detach()) is NotImplemented
    uneven = operations.avg_pool2d_backward(grad, x.detach(), [2, 2], [2, 2], [1, 1], False, False, None)
    assert uneven is NotImplemented


def test_small_powers_are_products():
    x = torch.tensor([3.0, -2.0])
    for exponent in (1, 2, 3.0):
        assert operations.power(x, exponent).tolist() == x.pow(exponent).tolist()
    assert operations.power(x, 0.5) is NotImplemented
