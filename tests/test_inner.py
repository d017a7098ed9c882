import pytest
import torch
from reference import error
from torch import Tensor
from torch.testing import assert_close

from headstart import SGD, Adam, Momentum, adapt, inner_step

PARAMS = {"matrix": torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3), "scalar": torch.tensor(0.5).double()}
RATES = {
    "a number": 0.1,
    "a scalar tensor": torch.tensor(0.1),
    "per tensor": {"matrix": torch.tensor(0.2), "scalar": 0.05},
    "per element": {"matrix": torch.arange(6.0).reshape(2, 3) / 10, "scalar": torch.tensor(0.05)},
}
OPTIMIZERS = [SGD, Momentum, Adam]


def loss(params: dict[str, Tensor], target: Tensor) -> Tensor:
    return (params["matrix"].sin() * params["scalar"] - target).square().sum()


def rate_of(lr, name: str) -> Tensor:
    return torch.as_tensor(lr[name] if isinstance(lr, dict) else lr, dtype=torch.float64)


@pytest.mark.parametrize(
    ("inner", "make"),
    [
        (SGD(0.1), lambda params: torch.optim.SGD(params, lr=0.1)),
        (Momentum(0.1, momentum=0.8), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.8)),
        (
            Momentum(0.1, momentum=0.8, nesterov=True),
            lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.8, nesterov=True),
        ),
        (Adam(0.1, eps_root=1e-30), lambda params: torch.optim.Adam(params, lr=0.1, eps=0.0)),
    ],
    ids=["SGD", "Momentum", "Nesterov", "Adam"],
)
def test_values_are_those_of_torch_optim(inner, make):
    expected = {name: p.clone().requires_grad_() for name, p in PARAMS.items()}
    optimizer, targets = make(expected.values()), [torch.tensor(float(i)).double() for i in range(5)]
    for target in targets:
        optimizer.zero_grad()
        loss(expected, target).backward()
        optimizer.step()
    assert_close(adapt(loss, PARAMS, targets, inner), {name: p.detach() for name, p in expected.items()})


@pytest.mark.parametrize("lr", RATES.values(), ids=RATES)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_the_rate_scales_the_step(make, lr):
    unit, _ = inner_step(loss, PARAMS, torch.tensor(1.0), make(1.0), make(1.0).init(PARAMS))
    given, _ = inner_step(loss, PARAMS, torch.tensor(1.0), make(lr), make(lr).init(PARAMS))
    for name, start in PARAMS.items():
        assert_close(given[name] - start, rate_of(lr, name) * (unit[name] - start))


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_outer_gradients_flow_to_learned_rates(make):
    rates = {"matrix": torch.rand(2, 3, dtype=torch.float64), "scalar": torch.tensor(0.05).double()}

    def after(matrix: Tensor, scalar: Tensor) -> Tensor:
        return loss(
            adapt(loss, PARAMS, [torch.ones(())] * 3, make({"matrix": matrix, "scalar": scalar})), torch.ones(())
        )

    leaves = [rate.requires_grad_() for rate in rates.values()]
    assert torch.autograd.gradcheck(after, leaves)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_nothing_is_changed_in_place(make):
    inner, params = make(0.1), {name: p.clone() for name, p in PARAMS.items()}
    state = inner.init(params)
    grads = {name: torch.ones_like(p) for name, p in params.items()}
    _, first = inner.update(params, grads, state)
    _, again = inner.update(params, grads, state)
    assert_close(params, PARAMS, rtol=0, atol=0)
    assert_close(first, again, rtol=0, atol=0)


class TestAdamAtZeroGradients:
    PARAMS = torch.tensor([1.0, -2.0], dtype=torch.float64)

    @staticmethod
    def loss(params: dict[str, Tensor], _) -> Tensor:
        inputs = torch.tensor([1.0, 0.0], dtype=torch.float64)  # the second weight's gradient is exactly zero
        return (params["w"] * inputs).square().sum()

    def outer_gradient(self, inner) -> Tensor:
        w = self.PARAMS.clone().requires_grad_()
        adapted = adapt(self.loss, {"w": w}, [None] * 3, inner)["w"]
        return torch.autograd.grad(adapted.square().sum(), w)[0]

    def test_outer_gradients_are_finite_and_right(self):
        start, step = self.PARAMS, 1e-6
        inner = Adam(0.1, eps_root=1e-4)
        given = self.outer_gradient(inner)

        def value(w: Tensor) -> Tensor:
            return adapt(self.loss, {"w": w}, [None] * 3, inner)["w"].square().sum()

        slopes = [(value(start + step * e) - value(start - step * e)) / (2 * step) for e in torch.eye(2).double()]
        assert_close(given, torch.stack(slopes), rtol=1e-7, atol=0)

    def test_the_usual_form_gives_nan(self):
        """With epsilon outside the root: what `eps_root` is there for."""

        class Usual(Adam):
            def update(self, params, grads, state):
                square = {n: (1 - self.betas[1]) * g * g for n, g in grads.items()}
                return {n: p - self.lr * grads[n] / (square[n].sqrt() + 1e-8) for n, p in params.items()}, state

        assert self.outer_gradient(Usual(0.1)).isnan().any()


def test_adam_is_its_formula():
    inner = Adam(0.1, betas=(0.8, 0.9), eps_root=0.01)
    params, state = {"w": torch.tensor([1.0]).double()}, inner.init({"w": torch.tensor([1.0]).double()})
    mean = square = torch.zeros(1, dtype=torch.float64)
    for taken, g in enumerate(torch.tensor([[0.5], [-0.2], [0.1]]).double(), start=1):
        mean, square = 0.8 * mean + 0.2 * g, 0.9 * square + 0.1 * g**2
        expected = params["w"] - 0.1 * (mean / (1 - 0.8**taken)) / (square / (1 - 0.9**taken) + 0.01).sqrt()
        params, state = inner.update(params, {"w": g}, state)
        assert_close(params["w"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_half_precision_takes_the_same_steps(make, dtype):
    """In bfloat16 Adam's 0.999 is 1, and yet its bias correction must not be 0."""
    expected = adapt(loss, PARAMS, [torch.tensor(1.0)] * 3, make(0.1))
    given = adapt(
        loss, {name: p.to(dtype) for name, p in PARAMS.items()}, [torch.tensor(1.0, dtype=dtype)] * 3, make(0.1)
    )
    assert {p.dtype for p in given.values()} == {dtype}
    for name, start in PARAMS.items():
        assert error(given[name] - start, expected[name] - start) < 0.05


def test_steps_are_counted_in_bfloat16_too():
    params = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    state = Adam().init(params)
    for _ in range(300):
        _, state = Adam().update(params, params, state)
    assert state.taken == 300


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SGD(-0.1), "rate lr must be a finite number >= 0, got -0.1"),
        (lambda: Momentum({"w": float("inf")}), "rate w must be a finite number >= 0, got inf"),
        (lambda: Momentum(momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: Adam(betas=(0.9, -0.1)), r"betas must lie in \[0, 1\), got -0.1"),
        (lambda: Adam(eps_root=0.0), "eps_root must be positive, got 0.0"),
    ],
)
def test_settings_out_of_range(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("lr", "match"),
    [
        ({"matrix": 0.1}, r"no rate for \['scalar'\]; it names \['matrix'\]"),
        ({"matrix": 0.1, "scalar": torch.ones(3)}, r"rate of 'scalar' must be .* shape \(\), got shape \(3,\)"),
        (torch.ones(4, 2, 3), r"rate of 'matrix' must be .* shape \(2, 3\), got shape \(4, 2, 3\)"),
    ],
)
def test_rates_that_do_not_fit(lr, match):
    with pytest.raises(ValueError, match=match):
        adapt(loss, PARAMS, [torch.tensor(1.0)], SGD(lr))
