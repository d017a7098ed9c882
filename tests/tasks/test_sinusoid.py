import math

import pytest
import torch

from headstart.tasks import Sinusoids
from headstart.tasks.sinusoid import curve
from headstart.types import generator


def test_targets_are_the_formula_and_the_query_is_of_the_same_wave() -> None:
    tasks = Sinusoids(shots=7, queries=4, oracle=True).sample(50, generator(0, "test"))
    for batch, examples in ((tasks.support, 7), (tasks.query, 4)):
        assert batch.inputs.shape == (50, examples, 3)
        assert batch.inputs.dtype == batch.targets.dtype == torch.float32
        x, amplitude, phase = batch.inputs.double().split(1, dim=-1)
        torch.testing.assert_close(batch.targets.double(), amplitude * torch.sin(x - phase), atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.inputs[..., 1:], tasks.support.inputs[:, :1, 1:].expand(-1, examples, -1))


def test_draws_fill_the_published_ranges() -> None:
    inputs = Sinusoids(shots=2, queries=1, oracle=True).sample(20_000, generator(0, "test")).support.inputs
    for column, (low, high) in zip(inputs.unbind(-1), ((-5.0, 5.0), (0.1, 5.0), (0.0, math.pi)), strict=True):
        assert low <= column.min() < low + 0.01
        assert high - 0.01 < column.max() <= high
        assert abs(column.mean() - (low + high) / 2) < 0.03 * (high - low)


def test_oracle_only_adds_inputs() -> None:
    plain = Sinusoids().sample(5, generator(3, "test"))
    oracle = Sinusoids(oracle=True).sample(5, generator(3, "test"))
    torch.testing.assert_close(oracle.query.inputs[..., :1], plain.query.inputs, rtol=0, atol=0)
    torch.testing.assert_close(oracle.query.targets, plain.query.targets, rtol=0, atol=0)


def test_same_seed_same_batches_and_each_batch_is_new() -> None:
    first, again, other = (Sinusoids().batches(3, seed=seed) for seed in (0, 0, 1))
    one, two = next(first), next(first)
    assert torch.equal(one.support.inputs, next(again).support.inputs)
    assert not torch.equal(one.support.inputs, two.support.inputs)
    assert not torch.equal(one.support.inputs, next(other).support.inputs)


def test_curve_broadcasts_over_a_grid() -> None:
    grid = torch.linspace(-5, 5, 11)
    values = curve(grid, amplitude=torch.tensor([[1.0], [2.0]]), phase=math.pi / 2)
    torch.testing.assert_close(values, torch.stack([-grid.cos(), -2 * grid.cos()]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": 0}, "shots=0"),
        ({"queries": -1}, "queries=-1"),
        ({"amplitude": (2.0, 1.0)}, "amplitude"),
        ({"x": (0.0, math.inf)}, "x="),
        ({"phase": (math.nan, 1.0)}, "phase"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sinusoids(**settings)
    with pytest.raises(ValueError, match="size=0"):
        Sinusoids().sample(0, generator(0, "test"))
