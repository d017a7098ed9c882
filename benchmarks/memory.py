"""Is memory flat in the number of inner steps, and what does that cost in time?

The work is mini (4 tasks, 5 ways, 1 shot, 15 queries per class, 84 x 84, 32 filters; tasks one at a time), forward
and backward. The plain path keeps everything for the backward pass, the recomputing one the parameters after each
step. Every number is a median over processes that do nothing else, those of both paths in turn, so that a machine that
slows down does so for both. The peak is the most memory that a process ever held, PyTorch itself included. It
depends on how the allocator's free pieces happen to lie, so its range stands beside it.

    python -m benchmarks.memory [--repeats 3] [--steps 1 5 10 20 50] [--threads 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.works import work_named
from headstart import MAML, SGD
from headstart.allocator import keep_memory
from headstart.training.files import write_atomically, write_json
from headstart.training.run import environment

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
WORK = "mini 5-way 1-shot"
STEPS = (1, 5, 10, 20, 50)
PATHS = {"plain": False, "recomputed": True}
GOAL_MEMORY, GOAL_TIME = 1.3, 1.4
"""Upper bounds that the project set itself: peak at 50 steps over that at one, time over the plain path's."""

WARM_UP, TIMED = 2, 2
"""Meta-gradients of each process. The peak is that of all: it may still grow after the second."""


def measure(steps: int, recompute: bool) -> dict[str, Any]:
    """Peak memory of this process and milliseconds of a meta-gradient."""
    keep_memory()
    work = work_named(WORK)
    inner = SGD(work.inner_lr)
    learner = MAML(work.model(), work.loss, inner=inner, steps=steps, norm="batch", chunk_size=1, recompute=recompute)
    tasks = work.sample()

    def differentiate(times: int) -> None:
        for _ in range(times):
            learner.zero_grad()
            learner(tasks).backward()

    differentiate(WARM_UP)
    began, cpu_began = time.perf_counter(), time.process_time()
    differentiate(TIMED)
    ms, cpu_ms = 1e3 * (time.perf_counter() - began) / TIMED, 1e3 * (time.process_time() - cpu_began) / TIMED
    gradient = torch.cat([p.grad.flatten() for p in learner.parameters() if p.grad is not None])
    return {"peak_mib": peak_mib(), "ms": ms, "cpu_ms": cpu_ms, "gradient_norm": gradient.double().norm().item()}


def peak_mib() -> int:
    """The most memory that this process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) // 1024


def measured_apart(steps: int, recompute: bool, threads: int) -> dict[str, Any]:
    """`measure` in a process of its own."""
    asked = json.dumps({"steps": steps, "recompute": recompute})
    command = [sys.executable, "-m", "benchmarks.memory", "--measure", asked]
    settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        return {"failed": f"exit status {done.returncode}"}
    return json.loads(done.stdout)


def together(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """What several processes measured: medians, ranges, and all of it."""
    if failed := [one for one in rounds if "failed" in one]:
        return failed[0]
    values = {name: [one[name] for one in rounds] for name in rounds[0]}
    medians = {name: statistics.median(each) for name, each in values.items()}
    ranges = {f"{name}_range": [min(values[name]), max(values[name])] for name in ("peak_mib", "ms")}
    return medians | ranges | {"rounds": rounds}


def against_goals(points: dict[int, dict[str, Any]]) -> dict[str, float]:
    """At the largest number of steps the ratios of the goals, and of the gradients' lengths, where both paths ran."""
    most = max(points)
    plain, recomputed = (points[most][path] for path in PATHS)
    one, ratios = points.get(1, {}).get("plain", {}), {}
    if "peak_mib" in recomputed and "peak_mib" in one:
        ratios["memory"] = round(recomputed["peak_mib"] / one["peak_mib"], 3)
    if "ms" in recomputed and "ms" in plain:
        ratios["time"] = round(recomputed["ms"] / plain["ms"], 3)
    if "gradient_norm" in recomputed and "gradient_norm" in plain:
        ratios["gradient"] = recomputed["gradient_norm"] / plain["gradient_norm"]
    return ratios


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    machine, ratios = result["environment"], result["ratios"]
    most = max(int(steps) for steps in result["points"])
    rows = [
        f"Memory and time over inner steps, {result['date']}: torch {machine['torch']}, {result['threads']} threads, "
        f"{machine['processor']}. Work: {work_named(WORK).describe()}, but for the steps. Made by "
        "`python -m benchmarks.memory`.",
        "",
        f"At {most} steps, recomputed: {ratios.get('memory', 'not measured')} times the peak memory of one plain step "
        f"(goal: at most {GOAL_MEMORY}), {ratios.get('time', 'not measured')} times the time of the plain path (goal: "
        f"at most {GOAL_TIME}).",
        "",
        "| steps | plain, peak MiB (range) | recomputed, peak MiB (range) | plain, ms (range) | recomputed, ms (range) "
        "| time ratio | lengths of the gradients differ by |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for steps, point in result["points"].items():
        cells = [_median(point[path], name) for name in ("peak_mib", "ms") for path in PATHS]
        ratios = against_goals({int(steps): point})
        apart = f"{abs(ratios['gradient'] - 1):.0e}" if "gradient" in ratios else ""
        rows.append(f"| {' | '.join([str(steps), *cells, str(ratios.get('time', '')), apart])} |")
    return "\n".join(rows) + "\n"


def _median(point: dict[str, Any], name: str) -> str:
    if "failed" in point:
        return point["failed"]
    low, high = point[f"{name}_range"]
    return f"{point[name]:.0f} ({low:.0f} to {high:.0f})"


def main() -> None:
    """Measure both paths at every number of steps and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="1 and 5 steps, one repeat")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    if options.repeats < 1 or min(options.steps) < 1:
        parser.error(f"--repeats {options.repeats} --steps {options.steps}: both must be at least 1")
    if options.quick:
        options.steps, options.repeats = [1, 5], 1
    points: dict[int, dict[str, Any]] = {}
    for steps in options.steps:
        rounds: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS}
        for repeat in range(options.repeats):
            for path, recompute in sorted(PATHS.items(), reverse=repeat % 2 == 1):  # neither is always first
                rounds[path].append(measured_apart(steps, recompute, options.threads))
                print(steps, path, rounds[path][-1], file=sys.stderr, flush=True)
        points[steps] = {path: together(rounds[path]) for path in PATHS}
    result = {
        "date": date.today().isoformat(),
        "environment": environment(),
        "threads": options.threads,
        "ratios": against_goals(points),
        "points": points,
    }
    write_json(options.out / f"memory-{result['date']}.json", result)
    write_atomically(options.out / "memory.md", markdown(result).encode())
    print(markdown(result))


if __name__ == "__main__":
    main()
