"""What a few meta-updates of a run cost in memory and time, measured in a process that has done nothing else.

    python -m headstart.recipes.footprint RUN [--data FOLDER] [--device cpu|cuda]

prints a JSON object: eager updates on the whole meta-batch at once, so that learners are compared by what they
compute and keep for the meta-gradient, and not by the mode and the chunks that were fastest for each.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from headstart.allocator import give_back, keep_memory
from headstart.recipes import SupervisedRecipe
from headstart.recipes.work import trained
from headstart.training.run import Run
from headstart.training.tuning import Choice
from headstart.types import Updater, generator

UPDATES = 3
"""Meta-updates measured: the first one alone has not kept anything from an earlier one."""


def measure(run: Run, data: Path | None, device: torch.device) -> dict[str, Any]:
    """Peak memory of `UPDATES` meta-updates beyond what was held before them in MiB, and median milliseconds of one.

    `mib` is None if unknown.

    Args:
        run: A run of a recipe that learns from examples; it is only read.
        data: Folder of data sets.
        device: Where to compute. On a GPU its allocated memory counts, elsewhere the process's resident memory.
    """
    recipe, learner, _ = trained(run, "last", device)  # what is annealed in training is then over
    if not isinstance(recipe, SupervisedRecipe):
        raise ValueError(f"{run.path} is a run of {run.config()['recipe']}, which does not learn from examples.")
    learner.train().chunk_size = None
    torch.manual_seed(recipe.seed)
    rng = generator(recipe.seed, "measuring memory", device=device)
    tasks = recipe.source("train", data).sample(recipe.meta_batch, rng)
    updater = recipe.updater(learner, Choice("eager", recipe.meta_batch, recipe.precision, []))
    updater.update(pytree.tree_map(lambda leaf: leaf[:1], tasks))  # loads libraries and makes Adam's state
    give_back()
    before = _start(device)
    for _ in range(UPDATES):
        updater.update(tasks)
    peak = _peak_mib(device)
    mib = None if peak is None or before is None else round(max(0.0, peak - before), 1)
    keep_memory()  # as the command line trains; only now, because what is kept would count as used
    ms = round(statistics.median(_timed(updater, tasks) for _ in range(UPDATES)), 3)
    return {"mib": mib, "ms": ms, "of": device.type, "updates": UPDATES, "tasks": recipe.meta_batch}


def _timed(updater: Updater, tasks: Any) -> float:
    """Milliseconds of an update, which waits for the device to look at the loss."""
    began = time.perf_counter()
    updater.update(tasks)
    return 1e3 * (time.perf_counter() - began)


def _start(device: torch.device) -> float | None:
    """What is held now, in MiB; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    control = Path("/proc/self/clear_refs")
    try:
        if control.exists():
            control.write_text("5")  # VmHWM starts again from VmRSS
    except OSError:  # where that is not allowed, the peak is that of the whole process: an upper bound
        pass
    held = _status_mib("VmRSS")
    return _peak_mib(device) if held is None else held


def _peak_mib(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = _status_mib("VmHWM")
    if peak is not None or os.name != "posix":
        return peak
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def _status_mib(field: str) -> float | None:
    """A line of the kernel's account of this process; None where there is none."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)


def main() -> None:
    """Measure the run that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m headstart.recipes.footprint")
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    asked = parser.parse_args()
    sys.stdout.write(json.dumps(measure(Run(asked.run), asked.data, asked.device)) + "\n")


if __name__ == "__main__":
    main()
