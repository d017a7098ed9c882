"""Is memory flat in the number of inner steps, and what does that cost in time?

The work is mini (4 tasks, 5 ways, 1 shot, 15 queries per class, 84 x 84, 32 filters; tasks one at a time), forward
and backward. The plain path keeps everything for the backward pass, the recomputing one the parameters after each
step. Every number comes from processes of its own, those of both paths in turn, so that a machine that slows down does
so for both: peak is the most memory that one ever held, PyTorch itself included.

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


def measure(steps: int, recompute: bool) -> dict[str, Any]:
    """Peak memory of this process and milliseconds of a meta-gradient, after one to warm up."""
    keep_memory()
    work = work_named(WORK)
    inner = SGD(work.inner_lr)
    learner = MAML(work.model(), work.loss, inner=inner, steps=steps, norm="batch", chunk_size=1, recompute=recompute)
    tasks = work.sample()
    learner(tasks).backward()
    learner.zero_grad()
    began, cpu_began = time.perf_counter(), time.process_time()
    learner(tasks).backward()
    ms, cpu_ms = 1e3 * (time.perf_counter() - began), 1e3 * (time.process_time() - cpu_began)
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
    """Of what several processes measured, the largest peak and the median times."""
    if failed := [one for one in rounds if "failed" in one]:
        return failed[0]
    times_ms = [one["ms"] for one in rounds]
    return {
        "peak_mib": max(one["peak_mib"] for one in rounds),
        "ms": round(statistics.median(times_ms), 1),
        "ms_range": [round(min(times_ms), 1), round(max(times_ms), 1)],
        "cpu_ms": round(statistics.median(one["cpu_ms"] for one in rounds), 1),
        "gradient_norm": rounds[0]["gradient_norm"],
    }


def against_goals(points: dict[int, dict[str, Any]]) -> dict[str, float]:
    """The two ratios of the goals, at the largest number of steps, where both paths could be measured."""
    most = max(points)
    plain, recomputed = (points[most][path] for path in PATHS)
    one, ratios = points.get(1, {}).get("plain", {}), {}
    if "peak_mib" in recomputed and "peak_mib" in one:
        ratios["memory"] = round(recomputed["peak_mib"] / one["peak_mib"], 3)
    if "ms" in recomputed and "ms" in plain:
        ratios["time"] = round(recomputed["ms"] / plain["ms"], 3)
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
        "| steps | plain, peak MiB | recomputed, peak MiB | plain, ms (range) | recomputed, ms (range) | time ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for steps, point in result["points"].items():
        peaks = [str(point[path].get("peak_mib", point[path].get("failed"))) for path in PATHS]
        times = [_time(point[path]) for path in PATHS]
        ratio = against_goals({int(steps): point}).get("time", "")
        rows.append(f"| {' | '.join([str(steps), *peaks, *times, str(ratio)])} |")
    return "\n".join(rows) + "\n"


def _time(point: dict[str, Any]) -> str:
    if "failed" in point:
        return point["failed"]
    low, high = point["ms_range"]
    return f"{point['ms']:.0f} ({low:.0f} to {high:.0f})"


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
    if options.quick:
        options.steps, options.repeats = [1, 5], 1
    points: dict[int, dict[str, Any]] = {}
    for steps in options.steps:
        rounds: dict[str, list[dict[str, Any]]] = {path: [] for path in PATHS}
        for _ in range(options.repeats):
            for path, recompute in PATHS.items():
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
