"""How many environment steps a second are sampled, the policy included, and where a meta-iteration's time goes?

    python -m benchmarks.control [--problems PROBLEM ...] [--repeats N] [--threads N] [--quick]

Sizes are those of the recipes, and for sampling in navigation more rollouts too. A sampling round is every episode of
every task at the initialisation. The parts of a meta-iteration are disjoint; what remains of it is conjugate gradient's
own arithmetic, and bookkeeping.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import RESULTS
from headstart.allocator import keep_memory
from headstart.recipes import experiment
from headstart.recipes.control import ControlRecipe
from headstart.rl.trpo import TRPO
from headstart.training.files import write_json
from headstart.training.run import environment
from headstart.types import generator

PROBLEMS = {"navigation-2d": (1, 10, 40), "half-cheetah-direction": (1,), "ant-velocity": (1,)}
"""For sampling, how many times the recipe's rollouts."""


class Stopwatch:
    """Seconds spent in functions, by name; time in a timed function called by another counts for the inner one."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.inner = [0.0]

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its own time added up under `name`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.inner.append(0.0)
            began = time.perf_counter()
            result = function(*args, **kwargs)
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self.inner.pop()
            self.inner[-1] += took
            return result

        return run


def sampling(recipe: ControlRecipe, repeats: int) -> dict[str, Any]:
    """Environment steps a second at the untrained initialisation."""
    torch.manual_seed(recipe.seed)
    learner, rng = recipe.make_learner(), generator(0, "benchmark")
    params = {name: p.detach() for name, p in learner.policy.named_parameters()}
    tasks = learner.problem.sample(recipe.meta_batch, rng)
    own = {name: p.expand(len(tasks), *p.shape) for name, p in params.items()}
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        seen = learner.collect(own, tasks, rng)
        rates.append(seen.steps / (time.perf_counter() - began))
    rates = rates[1:]  # the first makes the environments
    return {
        "environments": recipe.meta_batch * recipe.rollouts,
        "steps_per_s": statistics.median(rates),
        "range": [min(rates), max(rates)],
    }


def iteration(recipe: ControlRecipe, repeats: int) -> dict[str, Any]:
    """Seconds of a meta-iteration, and of its parts."""
    torch.manual_seed(recipe.seed)
    learner, watch = recipe.make_learner(), Stopwatch()
    updater = recipe.updater(learner)
    assert isinstance(updater, TRPO)
    rng = generator(0, "benchmark")
    product = updater.fisher_product

    def watched_product(episodes: Any) -> Callable[..., Any]:
        return watch.timed("Fisher products", product(episodes))

    learner.collect = watch.timed("sampling", learner.collect)  # type: ignore[method-assign]
    learner.experience = watch.timed("advantages", learner.experience)  # type: ignore[method-assign]
    learner.explore = watch.timed("inner steps", learner.explore)  # type: ignore[method-assign]
    updater.fisher_product = watch.timed("Fisher products", watched_product)  # type: ignore[method-assign]
    updater.search = watch.timed("line search", updater.search)  # type: ignore[method-assign]
    updater.gradient = watch.timed("meta-gradient", updater.gradient)  # type: ignore[method-assign]
    updater.update(learner.problem.sample(recipe.meta_batch, rng))
    totals, parts = [], []
    for _ in range(repeats):
        watch.seconds.clear()
        began = time.perf_counter()
        updater.update(learner.problem.sample(recipe.meta_batch, rng))
        totals.append(time.perf_counter() - began)
        parts.append(dict(watch.seconds))
    middle = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    return {"seconds": statistics.median(totals), "range": [min(totals), max(totals)], "parts_s": middle}


def main() -> None:
    """Measure, print and write `control-DATE.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS), metavar="PROBLEM")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS / f"control-{date.today().isoformat()}.json")
    options = parser.parse_args()
    options.repeats = 1 if options.quick else options.repeats
    keep_memory()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "environment": environment() | {"threads": options.threads},
        "problems": {},
    }
    for name in options.problems:
        recipe = experiment(name).recipe
        assert isinstance(recipe, ControlRecipe)
        sizes = [replace(recipe, rollouts=times * recipe.rollouts) for times in PROBLEMS[name]]
        result = {
            "sampling": [sampling(size, 2 * options.repeats) for size in sizes],
            "iteration": iteration(recipe, options.repeats),
        }
        found["problems"][name] = result
        for rate in result["sampling"]:
            print(f"{name}: {rate['steps_per_s']:,.0f} steps/s of {rate['environments']:,} environments", flush=True)
        took = result["iteration"]
        print(f"{name}: {took['seconds']:.2f} s per meta-iteration:", flush=True)
        for part, seconds in took["parts_s"].items():
            print(f"  {part}: {seconds:.2f} s", flush=True)
        write_json(options.out, found)


if __name__ == "__main__":
    main()
