"""What a person at a terminal sees and does: progress, interruption, tables."""

import csv
import io
import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from tqdm import tqdm

from headstart.recipes import Experiment
from headstart.training.run import Run
from headstart.training.trainer import Trainer
from headstart.types import Metrics

_log = logging.getLogger(__name__)


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects Ctrl-C and termination while training, which stops after the iteration; a second one kills."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        _log.info("Stopping after this iteration ...")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(
    trainer: Trainer, run: Run, shown: Mapping[str, str], tensorboard: bool
) -> Iterator[Callable[[int, Metrics], None]]:
    """A progress bar with rate, remaining time and metrics (silent where there is no terminal), and TensorBoard.

    Args:
        trainer: About to train.
        run: Where to.
        shown: Which metrics, and what to call them.
        tensorboard: Write its events too.
    """
    total, every = trainer.settings.iterations, trainer.settings.log_every
    writer = _summary_writer(run) if tensorboard else None
    with tqdm(total=total, initial=trainer.iteration, unit="it", disable=None, dynamic_ncols=True) as bar:

        def observe(iteration: int, metrics: Metrics) -> None:
            # A bar is drawn ten times a second, a small work updated 2,000 times.
            if bar.update() or iteration == total:
                bar.set_postfix({told: f"{metrics[name]:.3f}" for name, told in shown.items()})
            if writer is not None and iteration % every == 0:
                for name, value in metrics.items():
                    writer.add_scalar(f"train/{name}", value, iteration)

        try:
            yield observe
        finally:
            if writer is not None:
                for record in (r for r in run.metrics("validation") if r["mean"] is not None):
                    writer.add_scalar(f"validation/{record['metric']}", record["mean"], record["iteration"])
                writer.close()


def _summary_writer(run: Run) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs the extra: pip install 'headstart[tensorboard]'.") from error
    return SummaryWriter(run.path / "tensorboard")


_CONDITIONS = {
    "ways": "{} ways",
    "shots": "{} shots",
    "queries": "{} queries",
    "one_at_a_time": "one query at a time",
    "norm": "norm {}",
    "rollouts": "{} rollouts per step",
    "budget": "budget {}",
    "inner_lr": "inner step {:g}",
    "inner_lr_later": "later {:g}",
}
"""Conditions of an evaluation, in words; each kind of recipe has some of them."""


def described(e: Experiment) -> dict[str, Any]:
    """A recipe as JSON values."""
    settings = {field.name: getattr(e.recipe, field.name) for field in fields(e.recipe)}
    published = [p._asdict() for p in e.published]
    metric = e.recipe.metric_name
    return {"recipe": e.name, "summary": e.summary, "metric": metric, "published": published, "settings": settings}


def recipes_text(known: Sequence[Experiment]) -> str:
    """A line for each recipe, with the published numbers."""
    width, lines = max(len(e.name) for e in known), []
    for e in known:
        numbers = ", ".join(f"{p.value:g} after {p.step}" for p in e.published)
        published = f" (published {e.recipe.metric_name}: {numbers})" if numbers else ""
        lines.append(f"{e.name:<{width}}  {e.summary}{published}")
    return "\n".join(lines)


def comparison_text(content: dict[str, Any]) -> str:
    """A comparison as a table, a row per learner, best first."""
    from headstart.report import comparisons  # the command line works without the report

    compared = comparisons.from_content(content, "")
    table = comparisons.table(compared, notes=False)
    rows = [list(table.headings), *(list(row) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{row[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows]
    failed = [f"{entry.learner}: {entry.error}" for entry in compared.entries if entry.error]
    return "\n".join([comparisons.headline(compared), *lines, *failed])


def evaluation_text(result: dict[str, Any]) -> str:
    """An evaluation as a heading and a table, a row per inner step."""
    told = (
        f"{result['recipe']}, checkpoint {result['checkpoint']} (iteration {result['iteration']}): {result['metric']}\n"
        f"over {result['num_tasks']} tasks ({result['tasks_digest']}), "
        + ", ".join(words.format(result[name]) for name, words in _CONDITIONS.items() if name in result)
    )
    published = {p["step"]: p["value"] for p in result["published"]}
    other = result.get("beside", {"norm": "", "per_step": []})
    heading = f"{'step':>4} {'mean':>9} {'ci95':>9} {'median':>9} {'diverged':>8} {'published':>9}"
    rows = [heading + (f" | norm {other['norm']}: mean, ci95" if other["norm"] else "")]
    for index, step in enumerate(result["per_step"]):
        numbers = " ".join(f"{_number(step[key]):>9}" for key in ("mean", "ci95", "median"))
        row = f"{step['step']:>4} {numbers} {step['diverged']:>8} {published.get(step['step'], ''):>9}"
        if other["per_step"]:
            row += " | " + " ".join(f"{_number(other['per_step'][index][key]):>9}" for key in ("mean", "ci95"))
        rows.append(row)
    return "\n".join([told, *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:.2e}"


def predictions_text(results: list[dict[str, Any]]) -> str:
    """Predictions as lines of tab-separated values, without what a person does not look at."""
    rows = []
    for result in results:
        shown = {name: value for name, value in result.items() if name not in ("probabilities", "error", "note")}
        if "error" not in result:
            rows.append("\t".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in shown.values()) + "\n")
    return "".join(rows)


def predictions_csv(results: list[dict[str, Any]]) -> str:
    """Predictions as CSV: a row for each, with a column for each probability, or the error of a file."""
    flat: list[dict[str, Any]] = []
    for result in results:
        row = {name: value for name, value in result.items() if name != "probabilities"}
        flat.append(row | {f"probability of {name}": p for name, p in result.get("probabilities", {}).items()})
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return out.getvalue()
