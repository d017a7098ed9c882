import pytest
import torch
import torch.nn.functional as F
from reference import error, flat
from torch import Tensor
from torch.testing import assert_close

from headstart.exact import EXACT, Exact, Statistics, batch_moments, moments, pooled

rand = torch.Generator().manual_seed(0)


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=rand).to(dtype)


WORDS = torch.tensor([[0, 1, 2], [2, 2, 4], [0, 0, 0], [3, 1, 0]])
BAG = {"offsets": torch.tensor([0, 2, 2, 5, 12])}

# The native call, as one function of the tensors it is differentiable in.
CALLS = {
    "batch_norm": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [(6, 3), (3,), (3,)]),
    "batch_norm of images": (
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True, eps=0.1),
        [(4, 3, 2, 2), (3,), (3,)],
    ),
    "batch_norm without affine": (lambda x: F.batch_norm(x, None, None, training=True), [(4, 3, 5)]),
    "torch.batch_norm": (
        lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-3, False),
        [(6, 3), (3,), (3,)],
    ),
    "layer_norm": (lambda x, w, b: F.layer_norm(x, [2, 3], w, b), [(4, 2, 3), (2, 3), (2, 3)]),
    "layer_norm without bias": (lambda x, w: F.layer_norm(x, [3], w, eps=0.1), [(4, 2, 3), (3,)]),
    "torch.layer_norm": (lambda x, w, b: torch.layer_norm(x, [3], w, b, 0.1), [(4, 2, 3), (3,), (3,)]),
    "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), [(2, 3, 4), (3,), (3,)]),
    "instance_norm of images": (lambda x: F.instance_norm(x, eps=0.1), [(2, 3, 2, 2)]),
    "torch.instance_norm": (
        lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-3, False),
        [(2, 3, 4), (3,), (3,)],
    ),
    "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), [(4, 3), (4, 1)]),
    "weight_norm of kernels": (lambda v, g: torch._weight_norm(v, g, 1), [(4, 3, 2, 2), (1, 3, 1, 1)]),
    "weight_norm of all": (lambda v, g: torch._weight_norm(v, g, -1), [(4, 3), ()]),
    "embedding": (lambda w: F.embedding(WORDS, w), [(5, 3)]),
    "torch.embedding": (lambda w: torch.embedding(w, WORDS), [(5, 3)]),
    "embedding_bag": (lambda w: F.embedding_bag(WORDS, w), [(5, 3)]),
    "embedding_bag of sums": (
        lambda w, s: F.embedding_bag(WORDS, w, mode="sum", per_sample_weights=s),
        [(5, 3), (4, 3)],
    ),
    "embedding_bag with offsets": (
        lambda w: F.embedding_bag(WORDS.flatten(), w, BAG["offsets"], include_last_offset=True),
        [(5, 3)],
    ),
    "scaled_dot_product_attention": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        [(2, 4, 3)] * 3,
    ),
}
RENORMED = {
    "embedding": lambda w: F.embedding(WORDS, w, max_norm=0.7, norm_type=1.0),
    "embedding_bag": lambda w: F.embedding_bag(WORDS, w, max_norm=0.7),
}
PADDED = {
    "embedding": lambda w: F.embedding(WORDS, w, padding_idx=-5),
    "torch.embedding": lambda w: torch.embedding(w, WORDS, 0),
    "embedding_bag": lambda w: F.embedding_bag(WORDS, w, padding_idx=0),
    "embedding_bag of sums": lambda w: F.embedding_bag(WORDS, w, mode="sum", padding_idx=-5),
    "embedding_bag with offsets": lambda w: F.embedding_bag(WORDS.flatten(), w, BAG["offsets"][:-1], padding_idx=0),
}


TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_the_native_ones(name, dtype):
    fn, shapes = CALLS[name]
    inputs = [randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    expected = fn(*(x.double() for x in inputs))
    with Exact():
        given = fn(*inputs)
    assert given.dtype == dtype
    assert error(given, expected) < TOLERANCES[dtype]
    weights = randn(*expected.shape)
    gradients = [flat(torch.autograd.grad((outputs * weights).sum(), inputs)) for outputs in (given, expected)]
    assert error(*gradients) < TOLERANCES[dtype]


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm", "instance_norm"])
def test_statistics_in_half_precision_are_taken_in_single(name):
    fn, shapes = CALLS[name]
    inputs = [randn(*shape, dtype=torch.bfloat16) for shape in shapes]
    inputs[0] += 50  # so far from zero that the mean itself, rounded to bfloat16, would be a tenth of a deviation off
    with Exact():
        assert error(fn(*inputs), fn(*(x.double() for x in inputs))) < 1e-2


IN_HALF_PRECISION = {
    "conv1d": (F.conv1d, [(5, 3, 8), (4, 3, 3), (4,)]),
    "conv2d": (F.conv2d, [(5, 3, 8, 8), (4, 3, 3, 3), (4,)]),
    "conv3d": (F.conv3d, [(5, 3, 4, 4, 4), (4, 3, 3, 3, 3), (4,)]),
    "conv_transpose1d": (F.conv_transpose1d, [(5, 3, 8), (3, 4, 3), (4,)]),
    "conv_transpose2d": (F.conv_transpose2d, [(5, 3, 8, 8), (3, 4, 3, 3), (4,)]),
    "conv_transpose3d": (F.conv_transpose3d, [(5, 3, 4, 4, 4), (3, 4, 3, 3, 3), (4,)]),
    "linear": (F.linear, [(5, 3), (4, 3), (4,)]),
    "by name": (lambda x, w, b: F.linear(x, weight=w, bias=b), [(5, 3), (4, 3), (4,)]),
    "operator": (torch.ops.aten.conv2d, [(5, 3, 8, 8), (4, 3, 3, 3), (4,)]),
    "addmm": (torch.addmm, [(5, 4), (5, 3), (3, 4)]),
    "baddbmm": (torch.baddbmm, [(2, 5, 4), (2, 5, 3), (2, 3, 4)]),
    "addbmm": (torch.addbmm, [(5, 4), (2, 5, 3), (2, 3, 4)]),
    "method": (torch.Tensor.addmm, [(5, 4), (5, 3), (3, 4)]),
    "vecdot": (torch.linalg.vecdot, [(5, 4), (5, 4)]),
    "attention": (F.scaled_dot_product_attention, [(2, 4, 3)] * 3),
    "several heads": (
        lambda x, w, b, v: F.multi_head_attention_forward(x, x, x, 4, 2, w, b, None, None, False, 0.0, v, None)[0],
        [(3, 2, 4), (12, 4), (12,), (4, 4)],
    ),
}


@pytest.mark.parametrize("name", IN_HALF_PRECISION)
def test_autocast_reaches_it_under_vmap(name):
    """PyTorch's own does not, on a CPU: it would be computed in single precision."""
    fn, shapes = IN_HALF_PRECISION[name]
    inputs = [randn(*shape, dtype=torch.float32) for shape in shapes]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Exact():
        assert torch.vmap(fn)(*(x.unsqueeze(0) for x in inputs)).dtype == torch.bfloat16
        assert fn(inputs[0].half(), *inputs[1:]).dtype == torch.bfloat16
        assert fn(*(x.double() for x in inputs)).dtype == torch.float64  # as PyTorch's leaves it
        with torch.autocast("cpu", enabled=False):
            assert fn(*inputs).dtype == torch.float32


def test_what_autocast_leaves_alone():
    a, b, out = randn(5, 3, dtype=torch.float32), randn(3, 4, dtype=torch.float32), torch.zeros(5, 4)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Exact():
        torch.addmm(torch.zeros(5, 4), a, b, out=out)
        assert F.linear(a.to("meta"), b.T.to("meta")).dtype == torch.float32  # a device without autocast
    assert_close(out, a @ b)


def test_attention_to_itself_stays_one_product():
    """Cast apart, query, key and value would be three."""
    x, w = randn(3, 2, 4, dtype=torch.float32), randn(12, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Exact(), torch.profiler.profile() as profile:
        F.multi_head_attention_forward(x, x, x, 4, 2, w, None, None, None, False, 0.0, w[:4], None)
    assert sum(e.count for e in profile.key_averages() if e.key == "aten::linear") == 2


@pytest.mark.parametrize("name", CALLS)
def test_second_derivatives_are_right(name):
    fn, shapes = CALLS[name]
    with Exact():
        assert torch.autograd.gradgradcheck(fn, [randn(*shape).requires_grad_() for shape in shapes])


@pytest.mark.parametrize("name", PADDED)
def test_padding_has_the_native_gradient(name):
    weight = randn(5, 3).requires_grad_()
    expected = PADDED[name](weight)
    with Exact():
        given = PADDED[name](weight)
    assert_close(given, expected)
    assert_close(*(torch.autograd.grad(outputs.square().sum(), weight) for outputs in (given, expected)))


@pytest.mark.parametrize("name", RENORMED)
def test_embeddings_of_bounded_norm_do_not_write_into_their_parameter(name):
    weight = randn(5, 3)
    before = weight.clone()
    native, own = weight.clone().requires_grad_(), weight.requires_grad_()
    expected = RENORMED[name](native)
    with Exact():
        given = RENORMED[name](own)
    assert_close(given, expected)
    assert_close(*(torch.autograd.grad(o.square().sum(), w)[0] for o, w in ((given, own), (expected, native))))
    assert torch.equal(weight, before)
    assert not torch.equal(native, before)


class TestBatchMoments:
    BUFFERS = torch.tensor([5.0, 6.0]), torch.tensor([7.0, 8.0]), torch.tensor(9.0)

    def test_in_training_mode_or_without_buffers_they_are_the_batchs(self):
        x = randn(4, 2, 3)
        expected = x.mean((0, 2)), x.var((0, 2), correction=0), torch.tensor(4.0, dtype=torch.float64)
        assert_close(batch_moments(x, *self.BUFFERS, training=True), expected)
        assert_close(batch_moments(x, None, None, None, training=False), expected)
        with Exact():
            assert_close(batch_moments(x, *self.BUFFERS, training=False), expected)

    def test_else_the_buffers(self):
        assert batch_moments(randn(4, 2), *self.BUFFERS, training=False) == self.BUFFERS

    def test_a_context_gives_its_own(self):
        own, told = Statistics(*randn(3, 2), torch.tensor(3.0)), []

        def statistics(*args) -> Statistics:
            told.append(args)
            return own

        x, (mean, variance, examples) = randn(4, 2), self.BUFFERS
        with Exact(statistics):
            assert batch_moments(x, *self.BUFFERS, training=False) == (own.mean, own.variance, own.examples)
        ((batchs_own, *given),) = told
        assert given == [x, mean, variance, False, examples]
        assert_close(batchs_own().mean, x.mean(0))


def test_pooled_moments_are_those_of_both_sets_together():
    first, second = randn(6, 3), randn(2, 3) * 4 + 1
    given = pooled(torch.tensor(6 / 8, dtype=torch.float64), *(moments(x, [0]) for x in (first, second)))
    assert_close(given, moments(torch.cat([first, second]), [0]))


def test_an_instance_of_one_value_is_refused():
    """PyTorch refuses it too; normalised, it would be zero, and nothing behind it could learn."""
    with (
        Exact(),
        pytest.raises(ValueError, match=r"more than one position per channel, got input of shape \(4, 3, 1\)"),
    ):
        F.instance_norm(randn(4, 3, 1))


def test_every_operator_behind_a_substituted_function_is_substituted_too():
    names = {function.__name__ for function in EXACT if getattr(function, "__module__", None) == "torch"}
    operators = {
        str(function).removeprefix("aten.") for function in EXACT if isinstance(function, torch._ops.OpOverloadPacket)
    }
    assert names | {"scaled_dot_product_attention", "linear", "linalg_vecdot"} == operators
    x, weight = randn(6, 3), randn(3)
    with Exact():
        torch.ops.aten.layer_norm(x, [3], weight)
        assert torch.equal(torch.ops.aten.relu(self=x), x.relu())
        assert torch.equal(torch.ops.aten.relu.out(x, out=torch.empty_like(x)), x.relu())
        with pytest.raises(NotImplementedError, match="native_layer_norm has wrong second derivatives"):
            torch.ops.aten.native_layer_norm.default(x, [3], weight, None, 1e-5)
