"""The example of the sensor fleet runs, at its smallest, and its baselines are what they say."""

import importlib.util
import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from headstart.tasks.table import TableTasks, TaskRows
from headstart.types import Batch, Task

EXAMPLE = Path(__file__).parents[2] / "examples" / "sensor_fleet.py"


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("polars", reason="tables need the extra table")
    pytest.importorskip("matplotlib", reason="the figure needs the extra report")
    spec = importlib.util.spec_from_file_location("sensor_fleet", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sensor_fleet(example, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sensor_fleet.py", "--smoke", "--out", str(tmp_path)])
    example.main()
    assert "calibration rows" in capsys.readouterr().out
    result = json.loads((tmp_path / "sensor-fleet.json").read_text())
    assert list(result["ways"]) == [
        example.FIXED,
        example.CHOSEN,
        example.FINE_TUNED,
        example.POOLED,
        example.RIDGE,
        example.CORRECTED,
    ]
    assert all(0 < point["rmse"] < 1e5 for points in result["ways"].values() for point in points)
    pooled = [point["rmse"] for point in result["ways"][example.POOLED]]
    assert len(set(pooled)) == 1  # the same queries, and no calibration
    assert all(len(point["of_seeds"]) == 2 for points in result["ways"].values() for point in points)
    assert (tmp_path / "sensor-fleet.png").read_bytes().startswith(b"\x89PNG")


def test_the_fleet_is_the_same_each_time_and_its_devices_differ(example):
    rows = example.fleet(3)
    assert rows == example.fleet(3)
    assert {row["device"] for row in rows} == {"sensor-0000", "sensor-0001", "sensor-0002"}
    assert all(80 <= sum(row["device"] == name for row in rows) <= 160 for name in {row["device"] for row in rows})
    assert any(row["temperature"] == "" for row in rows)


def test_every_sensor_is_measured_equally_often(example):
    sizes = torch.tensor([30, 25, 28])
    places = torch.cat([torch.arange(1, size + 1) for size in sizes.tolist()])
    sensor = torch.arange(3.0).repeat_interleave(sizes).unsqueeze(1)
    rows = TaskRows(sensor, places.unsqueeze(1).float(), sizes, ("a", "b", "c"), places)
    tasks = example.each_sensor(TableTasks(rows, shots=5, queries=4, ordered=True), 2, seed=0)
    assert tasks.support.inputs[:, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert (tasks.query.inputs == tasks.support.inputs[:, :1]).all()
    assert bool((tasks.query.targets.amin(1) > tasks.support.targets.amax(1)).all())
    assert not torch.equal(tasks.support.targets[0], tasks.support.targets[1])


def test_the_interval_is_over_sensors_and_not_over_seeds(example):
    found = example._summary(torch.tensor([[1.0, 3.0, 5.0, 7.0], [3.0, 5.0, 7.0, 9.0]]))
    assert found == {"rmse": 5.0, "ci95": round(1.96 * (20 / 3) ** 0.5 / 2, 1), "of_seeds": [4.0, 6.0]}


def test_steps_and_step_size_are_those_of_the_smallest_validation_error(example):
    targets = torch.zeros(2, 3, 1)
    tasks = Task(Batch(targets, targets), Batch(targets, targets))

    def path(by_step, tasks, most):
        return torch.tensor(by_step[: most + 1]).view(1, -1, 1, 1).expand(2, -1, 3, 1)

    paths = {0.1: partial(path, [3.0, 2.0, 1.0]), 0.2: partial(path, [3.0, 0.5, math.nan])}
    way = example.best_step(paths, 2, tasks)
    assert way.chosen == {"rate": 0.2, "steps": 1}
    assert way.predict(tasks).unique().tolist() == [0.5]


def test_ridge_is_ridge_in_closed_form(example):
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 40, 3, generator=rng)
    targets = 2 + inputs[..., :1] - 3 * inputs[..., 1:2] * inputs[..., 2:3]
    found = example.ridge(Batch(inputs, targets), inputs, 1e-9)
    torch.testing.assert_close(found, targets, atol=1e-4, rtol=1e-4)
    assert float(example.ridge(Batch(inputs, targets), inputs, 1e9).abs().max()) < 1e-5
