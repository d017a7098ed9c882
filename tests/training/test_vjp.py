from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from headstart.training.tracing import CannotCompileError, DrawsRandomNumbersError
from headstart.training.vjp import TracedVjp, parts

X, W, G = (torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
aten = torch.ops.aten


def value_of(x: Tensor, w: Tensor) -> list[Tensor]:
    return [torch.sin(torch.exp(x @ w)), x.sum(1).cos()]


def with_product(fn):
    """`fn`, and the products of cotangents with its Jacobian, by autograd."""

    def both(x: Tensor, w: Tensor, cotangents: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        value = fn(x, w)
        return [t.detach() for t in value], list(torch.autograd.grad(value, [x, w], cotangents))

    return both


def by_hand(x: Tensor, w: Tensor, cotangents: list[Tensor]) -> list[Tensor]:
    inner = (x @ w).exp()
    of_product = cotangents[0] * inner.cos() * inner
    of_rows = -(x.sum(1).sin() * cotangents[1]).unsqueeze(1).expand_as(x)
    return [of_product @ w.T + of_rows, x.T @ of_product]


def operations(graph) -> Counter:
    return Counter(node.target for node in graph.graph.nodes if node.op == "call_function")


@pytest.mark.usefixtures("recorded")
class TestTracedVjp:
    def test_is_the_closed_form(self):
        traced = TracedVjp(value_of, with_product(value_of))
        for scale in (1.0, 0.5):  # the second time it is recorded already
            value, product = traced(scale * X, W)
            assert_close(value, value_of(scale * X, W))
            assert not any(t.requires_grad for t in value)
            for cotangents in ([G, G[0]], [G.T, 2 * G[:, 1]]):  # in whatever layout
                assert_close(product(cotangents), by_hand(scale * X, W, cotangents))
        assert len(traced.compiled) == 1

    def test_two_values_have_a_product_each(self):
        traced = TracedVjp(value_of, with_product(value_of))
        (_, first), (_, second) = traced(X, W), traced(W, X)
        assert_close(second([G, G[0]]), by_hand(W, X, [G, G[0]]))
        assert_close(first([G, G[0]]), by_hand(X, W, [G, G[0]]))

    def test_what_writes_to_its_results(self):
        """Once, twice in a row, and to a part of what is read later; and to what nobody reads."""

        def writing(x: Tensor, w: Tensor) -> list[Tensor]:
            y = x @ w
            y[:, 0].add_(x[:, 1]).mul_(2.0)
            y.clone().add_(1)
            return [torch.relu_(y).exp()]

        def plain(x: Tensor, w: Tensor) -> list[Tensor]:
            y = x @ w
            first = (y[:, :1] + x[:, 1:2]) * 2.0
            return [torch.relu(torch.cat([first, y[:, 1:]], 1)).exp()]

        value, product = TracedVjp(writing, with_product(writing))(X, W)
        expected_value, expected = with_product(plain)(X, W, [G])
        assert_close(value, expected_value)
        assert_close(product([G]), expected)

    def test_what_writes_to_its_arguments_is_refused(self):
        def counting(x: Tensor, w: Tensor) -> list[Tensor]:
            w.detach().add_(1.0)
            return [x * 2.0]

        def both(x, w, cotangents):
            return counting(x, w), [2.0 * cotangents[0], torch.zeros_like(w)]

        with pytest.raises(CannotCompileError, match="writes to its arguments"):
            TracedVjp(counting, both)(X, W)

    def test_what_draws_random_numbers_is_refused(self):
        def drawn(x: Tensor, w: Tensor) -> list[Tensor]:
            return [(x @ w) * torch.rand(4, dtype=torch.float64)]

        with pytest.raises(DrawsRandomNumbersError):
            TracedVjp(drawn, with_product(drawn))(X, W)


class TestParts:
    @pytest.fixture
    def taken_apart(self):
        return parts(make_fx(with_product(value_of))(X, W, [G, G[0]]), inputs=2, outputs=2)

    def test_products_and_sums_are_kept_and_the_rest_is_computed_again(self, taken_apart):
        first, second = taken_apart
        *_, kept_product, kept_sum = first(X, W)
        assert_close([kept_product, kept_sum], [X @ W, X.sum(1)])
        assert operations(first)[aten.mm.default] == 1
        assert operations(second)[aten.mm.default] == 2  # those of the derivative
        assert operations(second)[aten.exp.default] == 1
        assert aten.sum.dim_IntList not in operations(second)

    def test_the_second_needs_only_what_it_is_given(self, taken_apart):
        first, second = taken_apart
        kept = first(X, W)[2:]
        assert_close(second(X, W, *kept, G, G[0]), by_hand(X, W, [G, G[0]]))

    def test_several_results_of_one_operation_are_kept_in_whatever_layout(self):
        """Of a pooling both maxima and indices, of a convolution its channels-last output."""

        def pooled(x: Tensor, w: Tensor) -> list[Tensor]:
            images = torch.stack([x, w]).unsqueeze(0).to(memory_format=torch.channels_last)
            seen = torch.nn.functional.conv2d(images, w[:3, :2, None, None].contiguous())
            return [torch.nn.functional.max_pool2d(seen.sin(), 2).exp()]

        cotangents = [torch.ones(1, 3, 2, 2).double()]
        both = with_product(pooled)
        first, second = parts(make_fx(both)(X, W, cotangents), 2, 1)
        kept = first(X, W)[1:]
        assert not all(t.is_contiguous() for t in kept)
        assert {aten.convolution.default, aten.max_pool2d_with_indices.default} <= set(operations(first))
        assert not {aten.convolution.default, aten.max_pool2d_with_indices.default} & set(operations(second))
        assert_close(list(second(X, W, *kept, *cotangents)), both(X, W, cotangents)[1])
