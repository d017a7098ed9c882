"""Everything worth doing on one large GPU, within one ten-minute command, written as JSON.

    bash benchmarks/gpu.sh [--out DIR] [--seconds 560]      measure, compare, train (see gpu_session.py)
    python -m benchmarks.gpu prepare                        write Omniglot as one small file, to take along
    python -m benchmarks.gpu report FILE.json               the JSON as Markdown tables, beside it

Parity of the modes, milliseconds and memory of every mode, precision and work, other libraries where they are
installed, then as much of omniglot-5way-1shot's 60,000 iterations as fits, with its accuracy. It needs Python
and PyTorch 2.11 or later, nothing else. Without the prepared data the training is on generated characters.
`--device cpu --quick` goes through all of it at a tiny size.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks import gpu_data
from benchmarks.gpu_modes import PRECISIONS, ModeName
from benchmarks.gpu_report import markdown
from benchmarks.gpu_session import Plan, Session
from benchmarks.works import WORKS, Sizes

RESULTS = Path(__file__).parent / "results"
FIRST = ("omniglot 5-way 1-shot", "mini 5-way 1-shot", "sinusoid")
"""The most important works come first, in case the time does not suffice for all."""
TINY: dict[str, Sizes] = {
    "omniglot 5-way 1-shot": {"tasks": 2, "width": 4, "inner_lr": 0.5},
    "sinusoid": {"tasks": 3, "width": 8},
}
"""Works of a quick run, with their sizes."""
TINY_TRAINING = {
    "few_glyphs": True,
    "iterations": 6,
    "meta_batch": 2,
    "filters": 4,
    "validate_every": 3,
    "val_tasks": 4,
    "test_tasks": 6,
    "reserve_s": 2.0,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, prepare or report."""
    options = parser().parse_args(arguments)
    match options.command:
        case "prepare":
            print(gpu_data.prepare(options.data))
        case "report":
            out = options.file.with_suffix(".md")
            out.write_text(markdown(json.loads(options.file.read_text())))
            print(out)
        case _:
            measure(options)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
    top.add_argument("--out", type=Path, default=out, help="folder for the results; $OUT, or benchmarks/results")
    top.add_argument("--seconds", type=float, default=560.0, help="for everything")
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    top.add_argument("--quick", action="store_true", help="two works and the training, all at a tiny size")
    top.add_argument("--works", nargs="+", choices=WORKS, metavar="WORK", help=f"of: {', '.join(WORKS)}")
    top.add_argument("--modes", nargs="+", choices=get_args(ModeName), default=get_args(ModeName), metavar="MODE")
    top.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="PRECISION")
    top.add_argument("--data", type=Path, default=gpu_data.PREPARED, help="prepared images")
    commands = top.add_subparsers(dest="command")
    commands.add_parser("prepare", help="write the prepared images")
    commands.add_parser("report", help="write Markdown").add_argument("file", type=Path)
    return top


def measure(options: argparse.Namespace) -> None:
    """The session."""
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here. `--device cpu --quick` tries everything else.")
    name = f"gpu-{date.today().isoformat()}{'-quick' if options.quick else ''}.json"
    session = Session(plan_of(options), options.out / name, about(options.device))
    result = session.run()
    report = (options.out / name).with_suffix(".md")
    report.write_text(markdown(result))
    print(report.read_text())


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for."""
    names = options.works or (TINY if options.quick else dict.fromkeys((*FIRST, *WORKS)))
    works = {name: TINY.get(name, {}) if options.quick else {} for name in names}
    training = {"data": str(options.data)} | (TINY_TRAINING if options.quick else {})
    effort: dict[str, Any] = {"repeats": 2, "block_s": 0.01, "at_once": 1} if options.quick else {}
    return Plan(
        device=options.device,
        seconds=options.seconds,
        works=works,
        modes=tuple(options.modes),
        precisions=tuple(options.precisions),
        training=training,
        **effort,
    )


def about(device: str) -> dict[str, Any]:
    """Date, machine and versions."""
    machine = {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "device": "CPU",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        machine |= {
            "device": properties.name,
            "device_mib": round(properties.total_memory / 2**20),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {"date": date.today().isoformat(), "environment": machine}


if __name__ == "__main__":
    main()
