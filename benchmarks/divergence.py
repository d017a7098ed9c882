"""Why do a few sinusoid tasks diverge when a model trained for one step takes ten?

Gradient descent on a quadratic diverges where the step size exceeds 2 over the largest curvature. For each
held-out task this measures the largest eigenvalue of the support loss's Hessian before adaptation and after
each step, and sets it beside what became of the task.

    python benchmarks/divergence.py RUN [--num-tasks 2000] [--out FILE.json]
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart import SGD, Batch, Params, Task, trajectory
from headstart.recipes import SupervisedRecipe, work
from headstart.training.evaluate import fixed_tasks
from headstart.training.files import write_json
from headstart.training.run import Run

POWER_ITERATIONS = 30


def sharpness(model: torch.nn.Module, params: Params, batch: Batch) -> Tensor:
    """Largest eigenvalue of the Hessian of the mean squared error at `params`, by power iteration."""

    def loss(p: Params) -> Tensor:
        return F.mse_loss(torch.func.functional_call(model, p, (batch.inputs,)), batch.targets)

    def times_hessian(v: Params) -> Params:
        def slope(p: Params) -> Tensor:
            return torch.stack([(g * v[name]).sum() for name, g in torch.func.grad(loss)(p).items()]).sum()

        return torch.func.grad(slope)(params)

    v = {name: torch.ones_like(p) for name, p in params.items()}
    for _ in range(POWER_ITERATIONS):
        length = _norm(v).clamp_min(1e-12)
        v = times_hessian({name: x / length for name, x in v.items()})
    return _norm(v)


def _norm(v: Params) -> Tensor:
    return torch.stack([x.square().sum() for x in v.values()]).sum().sqrt()


def measure(run: Run, num_tasks: int, steps: int) -> dict[str, object]:
    """Sharpness and error per task and step, summed up."""
    recipe, learner, iteration = work.trained(run)
    assert isinstance(recipe, SupervisedRecipe)
    theta = {name: p.detach() for name, p in learner.model.named_parameters()}
    rate = recipe.inner_lr

    def one(task: Task) -> tuple[Tensor, Tensor]:
        def loss(p: Params, batch: Batch) -> Tensor:
            return F.mse_loss(torch.func.functional_call(learner.model, p, (batch.inputs,)), batch.targets)

        path = list(trajectory(loss, theta, [task.support] * steps, SGD(lr=rate)))
        curvature = torch.stack([sharpness(learner.model, p, task.support) for p in path])
        return curvature, torch.stack([loss(p, task.query) for p in path])

    tables = [torch.vmap(one)(tasks) for tasks in fixed_tasks(recipe.source("test"), num_tasks, work.TEST_SEED)]
    curvature, error = (torch.cat(column).double() for column in zip(*tables, strict=True))
    worse = ~(error[:, -1] <= 10 * error[:, 0].clamp_min(0.1))  # NaN is worse, too
    bound = 2 / rate
    over = curvature.nan_to_num(torch.inf).amax(1) > bound
    return {
        "recipe": run.config()["recipe"],
        "iteration": iteration,
        "num_tasks": num_tasks,
        "steps": steps,
        "inner_lr": rate,
        "stable_below": bound,
        "sharpness_at_init": quantiles(curvature[:, 0]),
        "sharpness_after_1_step": quantiles(curvature[:, 1]),
        "tasks_above_bound_at_init": int((curvature[:, 0] > bound).sum()),
        "tasks_above_bound_on_path": int(over.sum()),
        "tasks_ten_times_worse_at_the_end": int(worse.sum()),
        "of_these_above_bound_at_init": int((worse & (curvature[:, 0] > bound)).sum()),
        "of_these_above_bound_on_path": int((worse & over).sum()),
        "mean_without_them": float(error[~worse, -1].mean()),
        "mean_without_tasks_above_bound_at_init": float(error[curvature[:, 0] <= bound, -1].mean().nan_to_num()),
    }


def quantiles(values: Tensor) -> dict[str, float]:
    """Median, upper percentiles and maximum."""
    shares = {"50%": 0.5, "90%": 0.9, "99%": 0.99, "100%": 1.0}
    return {name: round(float(values.nan_to_num(torch.inf).quantile(share)), 1) for name, share in shares.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--num-tasks", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with torch.no_grad():
        result = measure(Run(options.run), options.num_tasks, options.steps)
    print(json.dumps(result, indent=2))
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
