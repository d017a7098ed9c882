"""How long does a meta-iteration take, here and in other libraries, and is its meta-gradient right?

Every system does the same works (`works.py`) in one session, alternating block by block, each in a process of
its own. Results are written after every work: an interrupted run goes on where it stopped.

    python -m benchmarks.speed [--quick] [--works WORK ...] [--systems SYSTEM ...] [--again]
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.measure import Effort, compare
from benchmarks.peers import SYSTEMS
from benchmarks.works import QUICK, WORKS
from headstart.training.files import read_json, write_json
from headstart.training.run import environment

RESULTS = Path(__file__).parent / "results"
QUICK_EFFORT = Effort(repeats=3, block_s=0.3, budget_s=6.0, limit_s=180.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, writing JSON after every work."""
    parser = parser_for(__doc__)
    parser.add_argument("--works", nargs="+", choices=WORKS, metavar="WORK", help=f"of: {', '.join(WORKS)}")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM")
    options = parser.parse_args(arguments)
    works = options.works or list(QUICK if options.quick else WORKS)
    out = options.out or RESULTS / f"speed-{date.today().isoformat()}{'-quick' if options.quick else ''}.json"
    measure_works(out, works, options.systems, effort_of(options), again=options.again)


def measure_works(out: Path, works: Sequence[str], systems: Sequence[str], effort: Effort, again: bool = False) -> None:
    """Add to `out` what of `works` and `systems` it does not have yet.

    A work is measured whole, so that all its numbers are of one session: if any system is missing, all that
    are asked for are measured again.
    """
    result = opened(out, effort)
    for name in works:
        there = result["works"].get(name, {"systems": {}})["systems"]
        if not again and set(systems) <= set(there):
            print(f"{name}: measured already, in {out.name}")
            continue
        print(f"{name} ({WORKS[name].describe()})", flush=True)
        result["works"][name] = compare(systems, name, effort, report=lambda line: print(line, flush=True))
        write_json(out, result)


def opened(out: Path, effort: Effort) -> dict[str, Any]:
    """What `out` holds so far, or a new result with machine, versions and settings.

    Raises:
        SystemExit: It was measured on another machine, with other versions or other settings.
    """
    facts = {
        "date": date.today().isoformat(),
        "environment": environment() | {"threads": effort.threads},
        "versions": versions(),
        "effort": asdict(effort),
    }
    if not out.exists():
        return facts | {"works": {}}
    found = read_json(out)
    other = [key for key in ("environment", "versions", "effort") if found[key] != facts[key]]
    if other:
        raise SystemExit(f"{out} was measured with other {' and '.join(other)}: move it away, or give another --out.")
    return found


def versions() -> dict[str, str]:
    """Versions of all that is compared; what is not installed is left out."""
    found = {}
    for package in sorted({system.package for system in SYSTEMS.values()} | {"jaxlib", "optax"}):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def parser_for(doc: str | None) -> argparse.ArgumentParser:
    """The options that all measurements share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer works, fewer and shorter repeats: minutes")
    parser.add_argument("--repeats", type=int, help="timed blocks per system and work")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="JSON file to write, or to go on with")
    parser.add_argument("--again", action="store_true", help="measure also what the file has already")
    return parser


def effort_of(options: argparse.Namespace) -> Effort:
    """How much time the options ask for."""
    effort = QUICK_EFFORT if options.quick else Effort()
    changes = {"threads": options.threads} | ({"repeats": options.repeats} if options.repeats else {})
    return Effort(**(asdict(effort) | changes))


if __name__ == "__main__":
    main()
