import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from headstart.linalg import add_scaled, conjugate_gradient, dot, norm, scaled

SHAPES = {"w": (2, 3), "b": (3,), "s": ()}
SIZE = 10


def vector_of(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator, dtype=torch.double) for n, shape in SHAPES.items()}


def flat(params: dict[str, Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in params.values()])


def unflat(vector: Tensor) -> dict[str, Tensor]:
    parts = vector.split([6, 3, 1])
    return {n: part.reshape(shape) for (n, shape), part in zip(SHAPES.items(), parts, strict=True)}


def positive(eigenvalues: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.double))
    return basis @ eigenvalues.double().diag() @ basis.mT


def counted(matrix: Tensor, calls: list[int]):
    def product(x: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return unflat(matrix @ flat(x))

    return product


def test_inner_product_length_and_sums_are_those_of_the_concatenated_vectors():
    a, b = vector_of(0), vector_of(1)
    assert_close(dot(a, b), flat(a) @ flat(b))
    assert dot(a, b).shape == ()
    assert_close(norm(a), flat(a).norm())
    assert_close(flat(add_scaled(a, -2.5, b)), flat(a) - 2.5 * flat(b))
    assert_close(flat(add_scaled(a, torch.tensor(3.0), b)), flat(a) + 3 * flat(b))
    assert_close(flat(scaled(0.5, a)), 0.5 * flat(a))
    assert {n: p.shape for n, p in add_scaled(a, 1.0, b).items()} == {n: p.shape for n, p in a.items()}


def test_names_are_matched_not_positions():
    a, b = vector_of(0), vector_of(1)
    reordered = {name: b[name] for name in reversed(b)}
    assert_close(dot(a, reordered), dot(a, b))
    assert_close(flat(add_scaled(a, 2.0, reordered)), flat(add_scaled(a, 2.0, b)))


def test_conjugate_gradient_is_exact_after_as_many_products_as_dimensions():
    matrix, b = positive(torch.linspace(0.5, 3.0, SIZE)), vector_of(2)
    x = conjugate_gradient(counted(matrix, []), b, iterations=SIZE, tolerance=0.0)
    assert_close(flat(x), torch.linalg.solve(matrix, flat(b)), rtol=1e-9, atol=1e-9)


def test_an_ill_conditioned_matrix():
    matrix, b = positive(torch.logspace(-6, 0, SIZE)), vector_of(2)
    x = conjugate_gradient(counted(matrix, []), b, iterations=200, tolerance=1e-28)
    assert_close(flat(x), torch.linalg.solve(matrix, flat(b)), rtol=1e-6, atol=1e-6 * float(flat(x).norm()))


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_every_iterate_is_the_best_of_its_krylov_space(iterations):
    """Minimises `x A x / 2 - b x` over span(b, A b, ...): what ten products on thousands of parameters rely on."""
    matrix, b = positive(torch.linspace(0.1, 4.0, SIZE)), vector_of(3)
    space = torch.stack([torch.linalg.matrix_power(matrix, k) @ flat(b) for k in range(iterations)], -1)
    best = space @ torch.linalg.solve(space.mT @ matrix @ space, space.mT @ flat(b))
    assert_close(flat(conjugate_gradient(counted(matrix, []), b, iterations)), best, rtol=1e-8, atol=1e-8)


def test_few_distinct_eigenvalues_take_as_few_products_then_it_stops():
    eigenvalues = torch.tensor([1.0, 2.0, 5.0]).repeat(4)[:SIZE]
    matrix, b, calls = positive(eigenvalues), vector_of(4), []
    x = conjugate_gradient(counted(matrix, calls), b, iterations=100)
    assert len(calls) == 3
    assert_close(flat(x), torch.linalg.solve(matrix, flat(b)), rtol=1e-4, atol=1e-4)


def test_iterations_bound_the_products_and_zero_is_solved_by_zero():
    matrix, calls = positive(torch.logspace(-3, 0, SIZE)), []
    conjugate_gradient(counted(matrix, calls), vector_of(5), iterations=4, tolerance=0.0)
    assert len(calls) == 4
    zero = conjugate_gradient(counted(matrix, calls), scaled(0.0, vector_of(5)))
    assert len(calls) == 4
    assert_close(flat(zero), torch.zeros(SIZE, dtype=torch.double))


def test_the_right_hand_side_is_left_as_it_was():
    b = vector_of(6)
    before = {name: value.clone() for name, value in b.items()}
    conjugate_gradient(counted(positive(torch.linspace(1.0, 2.0, SIZE)), []), b)
    for name, value in before.items():
        assert torch.equal(b[name], value)
