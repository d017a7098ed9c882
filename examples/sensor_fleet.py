"""Calibrate a new sensor from a few readings: error against the number of calibration rows, beside other ways.

The fleet is generated. A sensor's voltage depends on the pressure by its own gain, offset and saturation, on the
temperature by its own coefficient, and drifts with its age. A table of readings, a pressure gauge's value beside each,
is what a person would have; to predict is the pressure. Calibration rows come before the rows to predict. Every test
sensor counts the same: intervals are of the mean over sensors. What a way leaves open (steps, step size, penalty) is
chosen on the validation sensors, for each number of calibration rows.

    python examples/sensor_fleet.py --out fleet
"""

import argparse
import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.adapted import load_run
from headstart.algorithms.maml import MAML
from headstart.cli import main as headstart
from headstart.inner import SGD
from headstart.recipes.my_table import FittedTableRecipe
from headstart.tasks.table import TableTasks, TaskRows
from headstart.training.run import Run
from headstart.types import Batch, Task

CALIBRATION_ROWS = (1, 2, 5, 10, 20, 50)
QUERIES = 20
RATES = (0.01, 0.03, 0.1, 0.3)
PENALTIES = tuple(10.0**power for power in range(-4, 5))
STEPS = 300

FIXED, CHOSEN, FINE_TUNED, POOLED, RIDGE, CORRECTED = (
    "Headstart, the recipe's steps",
    "Headstart, steps chosen",
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


class Way(NamedTuple):
    """One way to predict the queries of tasks, and what was chosen for it on validation tasks."""

    predict: Callable[[Task], Tensor]
    """Outputs, `[tasks, queries, 1]`."""
    chosen: dict[str, float]


def best(name: str, candidates: dict[float, Callable[[Task], Tensor]], validation: Task) -> Way:
    """The one of the smallest mean error on validation tasks."""
    scores = {value: float(errors(predict(validation), validation).mean()) for value, predict in candidates.items()}
    value = min(scores, key=scores.__getitem__)
    return Way(candidates[value], {name: value})


def best_step(paths: dict[float, Callable[[Task, int], Tensor]], most: int, validation: Task) -> Way:
    """The step size, up to `most` steps after it, of the smallest mean error on validation tasks."""
    scores = {rate: errors(path(validation, most), validation).mean(0) for rate, path in paths.items()}
    rate = min(scores, key=lambda rate: float(scores[rate].min()))
    step = int(scores[rate].argmin())
    return Way(lambda tasks: paths[rate](tasks, step)[:, -1], {"rate": rate, "steps": step})


def ways_of(adapting: MAML, steps: int, pooled: MAML, validation: Task, most: int) -> dict[str, Way]:
    """Each way by its name, for as many calibration rows as `validation` has; `most` steps where they are chosen."""

    def adapted(tasks: Task, steps: int) -> Tensor:
        return adapting.predict(tasks, steps)

    def tuned(rate: float, tasks: Task, steps: int) -> Tensor:
        pooled.inner = SGD(lr=rate)
        return pooled.predict(tasks, steps)

    def plain(tasks: Task) -> Tensor:
        return pooled.predict(tasks, 0)[:, 0]

    def alone(penalty: float, tasks: Task) -> Tensor:
        return ridge(tasks.support, tasks.query.inputs, penalty)

    def corrected(penalty: float, tasks: Task) -> Tensor:
        before = pooled.predict(Task(tasks.support, tasks.support), 0)[:, 0]
        rest = Batch(tasks.support.inputs, tasks.support.targets - before)
        return plain(tasks) + ridge(rest, tasks.query.inputs, penalty)

    chosen = best_step({0.0: adapted}, most, validation)
    return {
        FIXED: Way(lambda tasks: adapted(tasks, steps)[:, -1], {"steps": steps}),
        CHOSEN: Way(chosen.predict, {"steps": chosen.chosen["steps"]}),
        FINE_TUNED: best_step({rate: partial(tuned, rate) for rate in RATES}, most, validation),
        POOLED: Way(plain, {}),
        RIDGE: best("penalty", {penalty: partial(alone, penalty) for penalty in PENALTIES}, validation),
        CORRECTED: best("penalty", {penalty: partial(corrected, penalty) for penalty in PENALTIES}, validation),
    }


def each_sensor(source: TableTasks, draws: int, seed: int) -> Task:
    """`draws` tasks of each sensor, one sensor after the other."""
    generator = torch.Generator().manual_seed(seed)
    all_rows, drawn = source.rows, list[Task]()
    starts = (all_rows.sizes.cumsum(0) - all_rows.sizes).tolist()
    for index in source.long_enough.tolist():
        own = slice(starts[index], starts[index] + int(all_rows.sizes[index]))
        tensors = (all_rows.inputs[own], all_rows.targets[own], all_rows.sizes[index : index + 1])
        alone = TaskRows(*tensors, (all_rows.names[index],), all_rows.until[own])
        drawn.append(replace(source, rows=alone).sample(draws, generator))
    support, query = ([getattr(task, side) for task in drawn] for side in ("support", "query"))
    return Task(*(Batch(*map(torch.cat, zip(*side, strict=True))) for side in (support, query)))


def compare(
    runs: Sequence[tuple[Run, Run]], table: Path, draws: int, counts: Sequence[int], most: int = STEPS
) -> dict[str, Any]:
    """Root mean squared error, in Pa, of each way after each number of calibration rows.

    Args:
        runs: Headstart's and the pooled network's, of each seed.
        table: The fleet.
        draws: Tasks of each validation and test sensor.
        counts: Numbers of calibration rows.
        most: The most steps that are tried, by the ways whose number of steps is chosen.
    """
    models = [(load_run(mine), load_run(other).learner) for mine, other in runs]
    recipe = models[0][0].recipe
    assert isinstance(recipe, FittedTableRecipe)
    sources = [recipe.source(part, table, max(counts), QUERIES) for part in ("val", "test")]
    validation, test = (each_sensor(source, draws, seed) for source, seed in zip(sources, (1, 0), strict=True))
    scale = recipe.schema.target_scale
    found: dict[str, list[dict[str, Any]]] = {}
    for count in counts:
        known, held_out = last(validation, count), last(test, count)
        sensors: dict[str, list[Tensor]] = {}
        chosen: dict[str, list[dict[str, float]]] = {}
        for model, pooled in models:
            for name, way in ways_of(model.learner, recipe.eval_steps, pooled, known, most).items():
                each = errors(way.predict(held_out), held_out).double() * scale
                sensors.setdefault(name, []).append(each.view(-1, draws).mean(1))
                chosen.setdefault(name, []).append(way.chosen)
        for name, seeds in sensors.items():
            found.setdefault(name, []).append({"rows": count, **_summary(torch.stack(seeds)), "chosen": chosen[name]})
    about = {"unit": "Pa", "target_deviation": round(scale, 1), "test_sensors": len(sources[1].long_enough)}
    return about | {"draws": draws, "seeds": len(runs), "most_steps": most, "ways": found}


def _summary(seeds: Tensor) -> dict[str, Any]:
    """Of errors `[seeds, sensors]`: the mean, its 95 % interval over sensors, and the mean of each seed."""
    each = seeds.mean(0)
    ci95 = 1.96 * float(each.std()) / math.sqrt(len(each))
    means = [round(mean, 1) for mean in seeds.mean(1).tolist()]
    return {"rmse": round(float(each.mean()), 1), "ci95": round(ci95, 1), "of_seeds": means}


def figure(result: dict[str, Any]) -> bytes:
    """Error against calibration rows, as a PNG file in the look of the report's figures."""
    from headstart.report import picture, records  # the extra `report`
    from headstart.report.axes import metric_axis

    styles = {
        FIXED: (records.MAML, ":"),
        CHOSEN: (records.MAML, "-"),
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
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each network")
    parser.add_argument("--draws", type=int, default=3, help="draws of rows of each validation and test sensor")
    parser.add_argument("--smoke", action="store_true", help="the smallest size of everything")
    options = parser.parse_args()
    devices, iterations, seeds, draws = options.devices, options.iterations, options.seeds, options.draws
    if options.smoke:
        devices, iterations, seeds, draws = 16, 4, 2, 2
    options.out.mkdir(parents=True, exist_ok=True)
    table = options.out / "fleet.csv"
    if not table.exists():
        write_csv(fleet(devices), table)
    length = ["--mode", "eager", "--iterations", str(iterations), *(["--val-tasks", "4"] if options.smoke else [])]
    joint = ["--learner", "maml", "--steps", "0", "--select-step", "0", "--fewest", "None"]
    runs: list[tuple[Run, Run]] = []
    for seed in range(seeds):
        more = [*length, "--seed", str(seed)]
        adapting = trained(options.out, f"headstart-{seed}", table, *more)
        runs.append((adapting, trained(options.out, f"pooled-{seed}", table, *joint, *more)))
    counts = (1, 5) if options.smoke else CALIBRATION_ROWS
    result = compare(runs, table, draws, counts, 5 if options.smoke else STEPS)
    result |= {"devices": devices, "iterations": iterations, "learner": runs[0][0].config()["settings"]["learner"]}
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
