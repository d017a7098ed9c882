"""Calibrate a new sensor from a few readings: error against the number of calibration rows, beside other ways.

The fleet is generated. A sensor's voltage depends on the pressure by its own gain, offset and saturation, on the
temperature by its own coefficient, and drifts with its age. A table of readings, a pressure gauge's value beside each,
is what a person would have; to predict is the pressure. Calibration rows come before the rows to predict.

    python examples/sensor_fleet.py --out /tmp/fleet
"""

import argparse
import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from headstart.adapted import load_run
from headstart.cli import main as headstart
from headstart.inner import SGD
from headstart.recipes.my_table import FittedTableRecipe
from headstart.training.run import Run
from headstart.types import Batch, Task

CALIBRATION_ROWS = (1, 2, 5, 10, 20, 50)
QUERIES = 20
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)
PENALTIES = tuple(10.0**power for power in range(-4, 5))
FINE_TUNING_STEPS = 30

HEADSTART, FINE_TUNED, POOLED, RIDGE, CORRECTED = (
    "Headstart, adapted",
    "fine-tuned pooled network",
    "pooled network, no calibration",
    "ridge regression per sensor",
    "pooled network + ridge per sensor",
)


def fleet(devices: int, seed: int = 0) -> list[dict[str, Any]]:
    """The readings of `devices` sensors, 80 to 160 rows each, in no order."""
    rng = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Any]] = []
    for device in range(devices):
        gain, saturation = torch.exp(0.2 * torch.randn(2, generator=rng)).tolist()
        offset, drift, heat = (torch.randn(3, generator=rng) * torch.tensor([0.2, 0.2, 0.1])).tolist()
        family = "ABC"[int(torch.randint(3, (), generator=rng))]
        bend = {"A": 0.4, "B": 0.8, "C": 1.2}[family] * saturation
        for _ in range(int(torch.randint(80, 161, (), generator=rng))):
            level, age, warm = torch.rand(3, generator=rng).tolist()
            celsius = 5 + 35 * warm
            noise = 0.005 * float(torch.randn((), generator=rng))
            volts = gain * math.tanh(bend * level) / bend + offset + drift * age + heat * (celsius - 20) / 15 + noise
            missing = float(torch.rand((), generator=rng)) < 0.05
            rows.append(
                {
                    "device": f"sensor-{device:04d}",
                    "day": round(365 * age, 2),
                    "family": family,
                    "voltage": f"{1e-3 * volts:.7f}",
                    "temperature": "" if missing else f"{celsius:.1f}",
                    "pressure": f"{1e4 + 2e4 * level:.1f}",
                }
            )
    order = torch.randperm(len(rows), generator=rng).tolist()
    return [rows[i] for i in order]


def write_csv(rows: Sequence[dict[str, Any]], file: Path) -> None:
    with file.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def trained(out: Path, name: str, table: Path, *more: str) -> Run:
    """The run in `out / name`, trained by the command line; one that is there already is gone on with."""
    run = Run(out / name)
    columns = ["--task-column", "device", "--target", "pressure", "--time-column", "day"]
    where = ["--data", str(table), "--out", str(run.path), "--resume"]
    code = headstart(["train", "my-table", *where, *columns, *more])
    if code:
        raise SystemExit(code)
    return run


def last(tasks: Task, rows: int) -> Task:
    """The same tasks with the last `rows` support rows: those next to the queries, which stay the same."""
    inputs, targets = tasks.support
    return Task(Batch(inputs[:, -rows:], targets[:, -rows:]), tasks.query)


def errors(outputs: Tensor, tasks: Task) -> Tensor:
    """Root mean squared error of each task, standardised: outputs `[tasks, ..., queries, 1]` to `[tasks, ...]`."""
    targets = tasks.query.targets
    while targets.ndim < outputs.ndim:
        targets = targets.unsqueeze(1)
    return (outputs - targets).square().mean((-2, -1)).sqrt().nan_to_num(math.inf, math.inf)


def ridge(support: Batch, inputs: Tensor, penalty: float) -> Tensor:
    """Per-task ridge regression, `[tasks, queries, 1]`; the intercept is penalised too, for one row must do."""
    known, wanted = (_features(x.double()) for x in (support.inputs, inputs))
    gram = known.mT @ known + penalty * torch.eye(known.shape[-1], dtype=torch.float64)
    return (wanted @ torch.linalg.solve(gram, known.mT @ support.targets.double())).float()


def _features(inputs: Tensor) -> Tensor:
    """A constant, all inputs, and products of the numbers: day, voltage, temperature."""
    numbers = inputs[..., :3]
    products = [numbers[..., i] * numbers[..., j] for i in range(3) for j in range(i, 3)]
    return torch.cat([torch.ones_like(inputs[..., :1]), inputs, torch.stack(products, -1)], -1)


def best(candidates: dict[Any, Callable[[Task], Tensor]], validation: Task) -> Callable[[Task], Tensor]:
    """The one of the smallest mean error on validation tasks."""
    scores = {name: float(errors(predict(validation), validation).mean()) for name, predict in candidates.items()}
    return candidates[min(scores, key=scores.__getitem__)]


def compare(headstart_run: Run, pooled_run: Run, table: Path, num_tasks: int, counts: Sequence[int]) -> dict[str, Any]:
    """Root mean squared error, in Pa, of each way after each number of calibration rows."""
    model, pooled = load_run(headstart_run), load_run(pooled_run)
    recipe = model.recipe
    assert isinstance(recipe, FittedTableRecipe)

    def drawn(part: Literal["val", "test"], seed: int) -> Task:
        return recipe.source(part, table, max(counts), QUERIES).sample(num_tasks, torch.Generator().manual_seed(seed))

    validation, test = drawn("val", 1), drawn("test", 0)

    def plain(tasks: Task) -> Tensor:
        with torch.no_grad():
            return pooled.learner.predict(tasks, 0)[:, 0]

    def fine_tuned(rate: float, step: int) -> Callable[[Task], Tensor]:
        return lambda tasks: tuned(rate, tasks)[:, step]

    def tuned(rate: float, tasks: Task) -> Tensor:
        pooled.learner.inner = SGD(lr=rate)
        return pooled.learner.predict(tasks, FINE_TUNING_STEPS).detach()

    def corrected(penalty: float, tasks: Task) -> Tensor:
        with torch.no_grad():
            before = pooled.learner.predict(Task(tasks.support, tasks.support), 0)[:, 0]
        rest = Batch(tasks.support.inputs, tasks.support.targets - before)
        return plain(tasks) + ridge(rest, tasks.query.inputs, penalty)

    found: dict[str, list[dict[str, float]]] = {}
    for count in counts:
        val, held_out = last(validation, count), last(test, count)
        paths = {rate: errors(tuned(rate, val), val).mean(0) for rate in RATES}
        rate = min(RATES, key=lambda rate: float(paths[rate].min()))
        ways: dict[str, Callable[[Task], Tensor]] = {
            HEADSTART: lambda tasks: model.learner.predict(tasks, recipe.eval_steps)[:, -1].detach(),
            FINE_TUNED: fine_tuned(rate, int(paths[rate].argmin())),
            POOLED: plain,
            RIDGE: best({p: lambda t, p=p: ridge(t.support, t.query.inputs, p) for p in PENALTIES}, val),
            CORRECTED: best({p: lambda t, p=p: corrected(p, t) for p in PENALTIES}, val),
        }
        for name, predict in ways.items():
            each = errors(predict(held_out), held_out).double() * recipe.schema.target_scale
            ci95 = 1.96 * float(each.std()) / math.sqrt(len(each))
            found.setdefault(name, []).append(
                {"rows": count, "rmse": round(float(each.mean()), 1), "ci95": round(ci95, 1)}
            )
    return {"unit": "Pa", "target_deviation": round(recipe.schema.target_scale, 1), "tasks": num_tasks, "ways": found}


def figure(result: dict[str, Any]) -> bytes:
    """Error against calibration rows, as a PNG file in the look of the report's figures."""
    from headstart.report import picture, records  # the extra `report`
    from headstart.report.axes import metric_axis

    styles = {
        HEADSTART: (records.MAML, "-"),
        FINE_TUNED: (records.PRETRAINED, "-"),
        POOLED: (records.RANDOM, "--"),
        RIDGE: (records.CONTEXT, "-"),
        CORRECTED: (records.FIRST_ORDER, "-"),
    }

    def draw(look: picture.Look) -> Any:
        drawn, ((ax,),) = picture.panels(look, 1, 1, 3.6)
        x = [point["rows"] for point in result["ways"][POOLED]]
        for name, points in result["ways"].items():
            method, line = styles[name]
            colour = look.method(method)
            y, half = ([point[key] for point in points] for key in ("rmse", "ci95"))
            ax.fill_between(
                x,
                [mean - ci95 for mean, ci95 in zip(y, half, strict=True)],
                [mean + ci95 for mean, ci95 in zip(y, half, strict=True)],
                color=colour,
                alpha=0.12,
                linewidth=0,
            )
            ax.plot(x, y, line, color=colour, marker=picture.marker(method), label=name)
        ax.set_xscale("log")
        metric_axis(ax, "mse", [point["rmse"] for points in result["ways"].values() for point in points])
        ax.set_xticks(x, list(map(str, x)))
        ax.minorticks_off()
        ax.set_xlabel("calibration rows of the new sensor")
        ax.set_ylabel(f"root mean squared error, {result['unit']}")
        drawn.legend(loc="outside right upper", labelcolor=look.muted)
        return drawn

    title = "Calibrating a new sensor"
    return picture.Picture("sensor-fleet", title, title, title, (), draw).png(picture.Look())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/sensor-fleet"), help="for the table and the runs")
    parser.add_argument("--json", type=Path, help="for the numbers; sensor-fleet.json in --out unless given")
    parser.add_argument("--figure", type=Path, help="for the figure; sensor-fleet.png in --out unless given")
    parser.add_argument("--devices", type=int, default=300)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=100, help="sensors and draws of rows to measure on")
    parser.add_argument("--smoke", action="store_true", help="the smallest size of everything")
    options = parser.parse_args()
    devices, iterations, tasks = options.devices, options.iterations, options.tasks
    if options.smoke:
        devices, iterations, tasks = 12, 4, 4
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "fleet.csv"
    if not table.exists():
        write_csv(fleet(devices), table)
    length = ["--mode", "eager", "--iterations", str(iterations), *(["--val-tasks", "4"] if options.smoke else [])]
    adapted = trained(options.out, "headstart", table, *length)
    joint = ("--learner", "maml", "--steps", "0", "--select-step", "0", "--fewest", "None")
    pooled = trained(options.out, "pooled", table, *joint, *length)
    counts = (1, 5) if options.smoke else CALIBRATION_ROWS
    result = compare(adapted, pooled, table, tasks, counts)
    result |= {"devices": devices, "iterations": iterations, "learner": adapted.config()["settings"]["learner"]}
    print(f"{'calibration rows':34}" + "".join(f"{count:>8}" for count in counts))
    for name, points in result["ways"].items():
        print(f"{name:34}" + "".join(f"{point['rmse']:8.0f}" for point in points))
    numbers = options.json or options.out / "sensor-fleet.json"
    numbers.write_text(json.dumps(result, indent=1) + "\n")
    picture = options.figure or options.out / "sensor-fleet.png"
    picture.write_bytes(figure(result))
    print(f"Numbers: {numbers}. Figure: {picture}.")


if __name__ == "__main__":
    main()
