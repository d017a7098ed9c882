"""The trained runs that come with the package: small ones, for the page of `headstart serve` and for trying things out.

Each is an ordinary run folder with its best checkpoint, its settings and how it was evaluated.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from headstart.adapted import Trained, load_run
from headstart.training.files import read_json
from headstart.training.run import Run

ShippedName = Literal["characters", "curve-maml", "curve-pretrained"]
SHIPPED: tuple[ShippedName, ...] = get_args(ShippedName)

_FOLDER = Path(__file__).parent / "shipped_runs"


def shipped_run(name: ShippedName) -> Run:
    """The run folder of a shipped run.

    Raises:
        ValueError: There is none of that name.
    """
    if name not in SHIPPED:
        raise ValueError(f"No run named {name!r} comes with Headstart: choose one of {', '.join(SHIPPED)}.")
    return Run(_FOLDER / name)


def shipped(name: ShippedName) -> Trained:
    """A shipped run's model, ready to adapt.

    >>> shipped("curve-maml").about["recipe"]
    'sinusoid-5shot'
    """
    return load_run(shipped_run(name))


def shipped_evaluation(name: ShippedName, norm: str) -> dict[str, Any] | None:
    """How a shipped run did on sampled test tasks as those trained on, on the most of them; None if unmeasured.

    Args:
        name: Of the run.
        norm: Norm policy it was evaluated under.
    """
    run = shipped_run(name)
    asked = {"protocol": "sampled", "norm": norm, "shots": run.config()["settings"]["shots"]}
    files = (run.path / "evaluations").glob("*.json")
    found = [evaluation for evaluation in map(read_json, files) if _is_plain(evaluation, asked)]
    return max(found, key=lambda evaluation: evaluation["num_tasks"], default=None)


def _is_plain(evaluation: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether it is as asked, with as many classes as trained with, and the queries predicted together."""
    plain = "ways" not in evaluation and not evaluation.get("one_at_a_time")
    return plain and all(evaluation[name] == value for name, value in asked.items())
