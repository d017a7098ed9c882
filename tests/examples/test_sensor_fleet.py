"""The example of the sensor fleet runs, at its smallest, and its baselines are what they say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from headstart.types import Batch

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
        example.HEADSTART,
        example.FINE_TUNED,
        example.POOLED,
        example.RIDGE,
        example.CORRECTED,
    ]
    assert all(0 < point["rmse"] < 1e5 for points in result["ways"].values() for point in points)
    pooled = [point["rmse"] for point in result["ways"][example.POOLED]]
    assert len(set(pooled)) == 1  # the same queries, and no calibration
    assert (tmp_path / "sensor-fleet.png").read_bytes().startswith(b"\x89PNG")


def test_the_fleet_is_the_same_each_time_and_its_devices_differ(example):
    rows = example.fleet(3)
    assert rows == example.fleet(3)
    assert {row["device"] for row in rows} == {"sensor-0000", "sensor-0001", "sensor-0002"}
    assert all(80 <= sum(row["device"] == name for row in rows) <= 160 for name in {row["device"] for row in rows})
    assert any(row["temperature"] == "" for row in rows)


def test_ridge_is_ridge_in_closed_form(example):
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 40, 3, generator=rng)
    targets = 2 + inputs[..., :1] - 3 * inputs[..., 1:2] * inputs[..., 2:3]
    found = example.ridge(Batch(inputs, targets), inputs, 1e-9)
    torch.testing.assert_close(found, targets, atol=1e-4, rtol=1e-4)
    assert float(example.ridge(Batch(inputs, targets), inputs, 1e9).abs().max()) < 1e-5
