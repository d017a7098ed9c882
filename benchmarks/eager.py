"""How long does one meta-iteration take, and how much of it is drawing tasks?

The works are those of the design: sinusoid (25 tasks, 40-40 network, 1 step) and omniglot (32 tasks, 5 ways,
1 shot, 64 filters, 1 step); both second order, then first order. A meta-iteration is drawing the meta-batch,
forward, backward and Adam's step, as in training. Omniglot's work is timed on generated glyphs of the same
size, so that no data is needed: the arithmetic is the same.

    python benchmarks/eager.py [--repeats 5]
"""

import argparse
import statistics
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from headstart import recipes
from headstart.recipes import Recipe
from headstart.training.files import write_atomically, write_json
from headstart.training.run import environment
from headstart.types import generator

RESULTS = Path(__file__).parent / "results"
GOALS_MS = {"sinusoid": 3.5, "omniglot": 230.0}
"""Upper bounds that the project set itself for second order on two CPU cores."""


def works() -> dict[str, tuple[Recipe, int]]:
    """Each work's recipe, and iterations per repeat."""
    sinusoid = recipes.experiment("sinusoid-10shot").recipe
    characters = recipes.experiment("glyphs-5way-1shot").recipe
    return {
        "sinusoid": (sinusoid, 400),
        "omniglot": (characters, 12),
        "sinusoid, first order": (replace(sinusoid, first_order=True), 400),
        "omniglot, first order": (replace(characters, first_order=True), 12),
    }


def timed(recipe: Recipe, iterations: int, repeats: int) -> dict[str, Any]:
    """Median over repeats of the milliseconds per meta-iteration and per drawn meta-batch, with their range."""
    torch.manual_seed(0)
    learner = recipe.learner()
    updater = recipe.updater(learner)
    source, rng = recipe.source("train"), generator(0, "benchmark")
    totals, draws = [], []
    for repeat in range(repeats + 1):
        drawing, began = 0.0, time.perf_counter()
        for _ in range(iterations):
            at = time.perf_counter()
            tasks = source.sample(recipe.meta_batch, rng)
            drawing += time.perf_counter() - at
            updater.update(tasks)
        if repeat:  # the first warms up
            totals.append(1e3 * (time.perf_counter() - began) / iterations)
            draws.append(1e3 * drawing / iterations)
    return {
        "ms_per_iteration": round(statistics.median(totals), 3),
        "ms_range": [round(min(totals), 3), round(max(totals), 3)],
        "ms_sampling": round(statistics.median(draws), 3),
        "sampling_share": round(statistics.median(draws) / statistics.median(totals), 4),
        "tasks_per_s": round(1e3 * recipe.meta_batch / statistics.median(totals)),
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    machine = result["environment"]
    rows = [
        f"Eager meta-iterations, {result['date']}: torch {machine['torch']}, {machine['threads']} threads, "
        f"{machine['processor']}. Made by `python benchmarks/eager.py`.",
        "",
        "| work | ms per meta-iteration (range) | goal | of it drawing tasks | tasks/s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, r in result["works"].items():
        low, high = r["ms_range"]
        told = f"{r['ms_per_iteration']:.2f} ({low:.2f} to {high:.2f})"
        goal = f"{GOALS_MS[name]:g}" if name in GOALS_MS else ""
        rows.append(f"| {name} | {told} | {goal} | {100 * r['sampling_share']:.1f} % | {r['tasks_per_s']:,} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Measure all works and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measured = {name: timed(recipe, iterations, options.repeats) for name, (recipe, iterations) in works().items()}
    result = {"date": date.today().isoformat(), "environment": environment(), "works": measured}
    write_json(RESULTS / f"eager-{result['date']}.json", result)
    write_atomically(RESULTS / "eager.md", markdown(result).encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
