"""How do time and memory of a meta-iteration grow with the tasks, the inner steps and the width of the network?

One axis at a time, all else as in the work (`works.py`) that it is measured on. A system that takes too long
at one point is not tried at larger ones.

    python -m benchmarks.scaling [--quick] [--again]
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

from benchmarks.measure import Effort, compare
from benchmarks.peers import GROWING
from benchmarks.speed import RESULTS, opened, parser_for
from benchmarks.works import Sizes, work_named
from headstart.training.files import write_json


@dataclass(frozen=True)
class Axis:
    """What grows, on which work."""

    name: str
    """Field of `Work`."""
    work: str
    points: tuple[int, ...]
    quick: tuple[int, ...] = ()
    fixed: Sizes = field(default_factory=dict)


AXES = {
    axis.name: axis
    for axis in (
        Axis("tasks", "sinusoid", (1, 8, 64, 256, 1024), quick=(1, 64)),
        # At the work's own rate of 2 a hundred steps diverge.
        Axis("steps", "omniglot 5-way 1-shot", (1, 5, 20, 100), quick=(1, 10), fixed={"tasks": 4, "inner_lr": 0.05}),
        Axis("width", "sinusoid", (16, 64, 256, 1024)),
    )
}
SYSTEMS = (*GROWING, "Headstart compiled", "TorchOpt", "JAX")
EFFORT = Effort(repeats=3, block_s=0.3, budget_s=6.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, writing JSON after every point."""
    parser = parser_for(__doc__)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), metavar="AXIS")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    options = parser.parse_args(arguments)
    out = options.out or RESULTS / f"growth-{date.today().isoformat()}{'-quick' if options.quick else ''}.json"
    changes = {"threads": options.threads, "repeats": options.repeats or EFFORT.repeats}
    effort = Effort(**(asdict(EFFORT) | changes))
    for name in options.axes:
        axis = AXES[name]
        points = axis.quick if options.quick else axis.points
        measure_axis(out, axis, points, options.systems, effort, again=options.again)


def measure_axis(
    out: Path, axis: Axis, points: Sequence[int], systems: Sequence[str], effort: Effort, again: bool = False
) -> None:
    """Add to `out` the points of an axis that it does not have yet."""
    result = opened(out, effort)
    found = result["works"].setdefault(axis.name, {"points": {}})
    found |= {"work": axis.work, "description": work_named(axis.work, axis.fixed).describe()}
    alive = list(systems)
    for point in points:
        if again or str(point) not in found["points"]:
            print(f"{axis.name} = {point}", flush=True)
            sizes: Sizes = {**axis.fixed, axis.name: point}
            measured = compare(
                alive, axis.work, effort, overrides=sizes, errors=False, report=lambda line: print(line, flush=True)
            )
            found["points"][str(point)] = measured["systems"]
            write_json(out, result)
        alive = [system for system in alive if "failed" not in found["points"][str(point)].get(system, {})]


if __name__ == "__main__":
    main()
