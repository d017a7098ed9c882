"""Does a meta-update gain less when its curvature is taken from a part of the time steps?

    python -m benchmarks.subsample RUN [RUN ...] [--fractions 1 0.5 0.25 0.1] [--repeats N] [--batches N]

From the policy of a run's last checkpoint: for each set of episodes one TRPO update by every `fisher_fraction`, each
from the same parameters, judged by other episodes. An update's gain is how much lower it makes the surrogate of the
adapted policies there, to first order: minus the step times the meta-gradient, the mean of `--batches` meta-batches.
Its own gain is the same on the episodes that it was made from, most of which is their noise.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.speed import RESULTS
from headstart import linalg
from headstart.allocator import keep_memory
from headstart.recipes import work
from headstart.recipes.control import ControlRecipe
from headstart.rl import MAMLRL, TRPO
from headstart.training.files import write_json
from headstart.training.run import Run, environment
from headstart.types import Params, generator

FRACTIONS = (1.0, 0.5, 0.25, 0.1)


def compared(recipe: ControlRecipe, learner: MAMLRL, fractions: Sequence[float], repeats: int, batches: int) -> Any:
    """For every fraction, of each update: gain, own gain, divergence, and seconds."""
    rng = generator(0, "subsample")
    start = copy.deepcopy(learner.policy.state_dict())
    updaters = {fraction: _updater(replace(recipe, fisher_fraction=fraction), learner) for fraction in fractions}
    first = updaters[fractions[0]]

    def episodes() -> Any:
        return learner.explore(learner.problem.sample(recipe.meta_batch, rng), rng)[0]

    judge: Params = {}
    for _ in range(batches):
        _, gradient = first.gradient(episodes())
        judge = linalg.add_scaled(judge, 1.0, gradient) if judge else gradient
    judge = linalg.scaled(1 / batches, judge)
    found: dict[float, list[dict[str, float]]] = {fraction: [] for fraction in fractions}
    for repeat in range(repeats):
        seen = episodes()
        _, own = first.gradient(seen)
        for fraction, updater in updaters.items():
            began = time.perf_counter()
            told = updater.improve(seen)
            took = time.perf_counter() - began
            step = {name: p.detach() - start[name] for name, p in learner.policy.named_parameters()}
            learner.policy.load_state_dict(start)
            gains = {"gain": -float(linalg.dot(judge, step)), "own_gain": -float(linalg.dot(own, step))}
            found[fraction].append({**gains, "kl": told["kl"], "seconds": took})
        print(f"{repeat + 1} of {repeats}", flush=True)
    return found


def summary(found: dict[float, list[dict[str, float]]]) -> list[dict[str, float]]:
    """Means over updates, and the difference in gain from the first fraction's with its standard error."""
    (_, whole), *_ = found.items()
    rows = []
    for fraction, updates in found.items():
        apart = [update["gain"] - other["gain"] for update, other in zip(updates, whole, strict=True)]
        means = {key: statistics.mean(update[key] for update in updates) for key in updates[0]}
        error = statistics.stdev(apart) / len(apart) ** 0.5
        rows.append({"fraction": fraction, **means, "difference": statistics.mean(apart), "standard_error": error})
    return rows


def main() -> None:
    """Measure, print and write `subsample-DATE.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--fractions", nargs="+", type=float, default=FRACTIONS)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / f"subsample-{date.today().isoformat()}.json")
    options = parser.parse_args()
    if options.repeats < 2:
        parser.error("--repeats must be at least 2: a standard error is told")
    keep_memory()
    told: dict[str, Any] = {"date": date.today().isoformat(), "environment": environment(), "runs": []}
    for path in options.runs:
        run = Run(path)
        recipe, learner, iteration = work.trained(run, "last")
        if not isinstance(recipe, ControlRecipe) or recipe.meta_update != "trpo":
            parser.error(f"{path} is not a control run with --meta-update trpo")
        print(f"{path}, iteration {iteration}", flush=True)
        found = compared(recipe, learner, options.fractions, options.repeats, options.batches)
        about = {"recipe": run.config()["recipe"], "seed": recipe.seed, "iteration": iteration}
        rows = summary(found)
        told["runs"].append({**about, "batches": options.batches, "repeats": options.repeats, "fractions": rows})
        for row in rows:
            print("  ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
        write_json(options.out, told)


def _updater(recipe: ControlRecipe, learner: MAMLRL) -> TRPO:
    updater = recipe.updater(learner)
    assert isinstance(updater, TRPO)
    return updater


if __name__ == "__main__":
    main()
