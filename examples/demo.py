"""The main job, small: meta-train, evaluate on held-out tasks, and draw models before and after adaptation.

Trains the paper's sinusoid regressor (with the pretrained network it is compared with) and a 5-way 1-shot
character classifier: on real Omniglot where it can be had, on generated glyphs where not.
"""

import argparse
import sys
from pathlib import Path

from headstart.cli import main as headstart
from headstart.tasks import omniglot
from headstart.tasks.archives import DataNotFound


def call(*arguments: object) -> None:
    """Run one `headstart` command as a person would type it."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ headstart {' '.join(words)}", flush=True)
    code = headstart(words)
    if code:
        sys.exit(code)


def characters() -> str:
    """The name of the character recipe that can be trained here."""
    try:
        omniglot.load()
    except (DataNotFound, ValueError) as error:
        print(f"No Omniglot here, so the classifier learns generated characters instead.\n({error})")
        return "glyphs-5way-1shot"
    print("Omniglot found: the classifier learns real characters.")
    return "omniglot-5way-1shot"


def main() -> None:
    """Train, evaluate, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for runs and page")
    parser.add_argument("--smoke", action="store_true", help="a few iterations only")
    options = parser.parse_args()
    iterations = {"sinusoid-5shot": 15_000, "sinusoid-5shot-pretrained": 5_000, characters(): 800}
    for name, count in iterations.items():
        run = options.out / name
        size = ["--smoke"] if options.smoke else ["--iterations", count, "--validate-every", count // 5]
        call("train", name, "--out", run, "--resume", *size)
        call("evaluate", run, "--num-tasks", 20 if options.smoke else 600)
    call("report", *(options.out / name for name in iterations), "--out", options.out / "report")
    print(f"\nOpen {(options.out / 'report' / 'index.html').resolve()}")


if __name__ == "__main__":
    main()
