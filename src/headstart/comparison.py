"""Several learners on one problem: trained one after the other, each measured in the same ways.

    comparison.json      what was compared and what was measured, valid at any moment
    LEARNER/             the run of each, as `headstart train --learner LEARNER` writes it

Each learner is trained in a process of its own, with clean memory, whose failure does not stop the others. What
is finished is not done again: the numbers are read from the run folders.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from headstart.layers import has_batch_norm
from headstart.recipes import SupervisedRecipe, experiment, work
from headstart.recipes.learners import LearnerName
from headstart.recipes.recipe import TEST_SEED
from headstart.training.files import FileError, read_json, write_json
from headstart.training.run import Run, environment

FILE = "comparison.json"
PUBLISHED, ALONE, COLLAPSED = "published", "one_at_a_time", "one_at_a_time_batch"
"""How each is measured: as the recipe's published protocol has it, one query at a time, and so with the statistics of
that one query, which is what becomes of transductive batch norm then."""

_CHILD = (
    "import sys; from headstart.comparison import become_child; become_child(sys.argv.pop(1)); "
    "from headstart.cli import main; sys.exit(main())"
)
_POLL_S = 0.1

_log = logging.getLogger(__name__)


class Cost(NamedTuple):
    """Of an eager meta-update on the whole meta-batch at once, as `recipes.footprint` measures it; None if unknown."""

    mib: float | None = None
    ms: float | None = None


class ChildError(RuntimeError):
    """A learner could not be trained or measured; the message is one sentence."""


@dataclass(frozen=True)
class Member:
    """One learner of a comparison."""

    learner: LearnerName
    run: Run
    recipe: SupervisedRecipe
    arguments: tuple[str, ...]
    """Those of `headstart` that train it."""

    @property
    def iteration(self) -> int:
        """How far it is trained, by its last checkpoint."""
        about = self.run.checkpoints / "last.json"
        return read_json(about)["iteration"] if about.exists() else 0

    @property
    def finished(self) -> bool:
        """Whether it is trained to the end."""
        return self.run.resumable and self.iteration >= self.recipe.iterations

    def protocols(self) -> dict[str, dict[str, Any]]:
        """Conditions of each evaluation, by name."""
        found: dict[str, dict[str, Any]] = {PUBLISHED: {}}
        if self.recipe.metric_name == "accuracy":
            alone: dict[str, Any] = {"one_at_a_time": True}
            transductive = self.recipe.norm == "batch" and has_batch_norm(self.recipe.model())
            found[ALONE] = alone | ({"norm": "support"} if transductive else {})
            if transductive and self.recipe.normalized_alone:
                found[COLLAPSED] = alone | {"norm": "batch"}
        return found


@dataclass
class Comparison:
    """What is compared, and what of it the run folders do not say."""

    recipe: str
    folder: Path
    members: Sequence[Member]
    device: torch.device
    given: Sequence[str] = ()
    """Options of `headstart train` that hold for all of them, where they mean something."""
    num_tasks: int = 600
    """Test tasks."""
    data: Path | None = None
    errors: dict[str, str] = field(default_factory=dict)
    """One sentence for each learner that failed."""
    costs: dict[str, Cost] = field(default_factory=dict)
    """Of a meta-update of each learner."""

    def content(self) -> dict[str, Any]:
        """What `comparison.json` holds."""
        return {
            "recipe": self.recipe,
            "metric": self.members[0].recipe.metric_name,
            "iterations": self.members[0].recipe.iterations,
            "given": list(self.given),
            "num_tasks": self.num_tasks,
            "device": self.device.type,
            "environment": environment(),
            "learners": [self._entry(member) for member in self.members],
        }

    def write(self) -> None:
        """Write `comparison.json` anew."""
        write_json(self.folder / FILE, self.content())

    def _entry(self, member: Member) -> dict[str, Any]:
        recipe, lines = member.recipe, member.run.metrics("train")
        best = member.run.checkpoints / "best.json"
        kept = {name: kept_evaluation(member, asked, self.num_tasks) for name, asked in member.protocols().items()}
        return {
            "learner": member.learner,
            "run": member.run.path.name,
            "steps": recipe.steps,
            "eval_steps": recipe.eval_steps,
            "select_step": recipe.select_step,
            "settings": _changed(recipe, experiment(self.recipe).recipe),
            "iteration": member.iteration,
            "planned": recipe.iterations,
            "best_iteration": read_json(best)["iteration"] if best.exists() else None,
            "seconds": lines[-1]["seconds"] if lines else 0.0,
            "ms_per_iteration": self.costs.get(member.learner, Cost()).ms,
            "memory_mib": self.costs.get(member.learner, Cost()).mib,
            "results": {name: _result(found, recipe.eval_steps) for name, found in kept.items() if found},
            "error": self.errors.get(member.learner),
        }


def carry_out(comparison: Comparison, interruption: Callable[[], AbstractContextManager[list[int]]]) -> int | None:
    """Train and measure all that is not yet; returns the number of the signal that stopped it, None at the end.

    Args:
        comparison: What to do. Its errors and costs are filled in.
        interruption: Collects the signals that arrive while it is entered.
    """
    comparison.costs |= _measured_before(comparison)
    comparison.write()
    for number, member in enumerate(comparison.members, 1):
        _log.info("%s (%d of %d)", member.learner, number, len(comparison.members))
        try:
            received = None if member.finished else train(member, interruption)
            if received is None:
                evaluate(comparison, member)
        except (ChildError, FileError, ValueError, RuntimeError, OSError) as error:
            comparison.errors[member.learner] = _sentence(str(error) or type(error).__name__)
            _log.error("%s failed: %s", member.learner, comparison.errors[member.learner])
            received = None
        else:
            if received is None and comparison.costs.get(member.learner, Cost()).ms is None:
                comparison.costs[member.learner] = cost(member, comparison.data, comparison.device)
        comparison.write()
        if received is not None:
            return received
    return None


def train(member: Member, interruption: Callable[[], AbstractContextManager[list[int]]]) -> int | None:
    """Train one learner in a process of its own; returns the number of the signal that stopped it, if any.

    The child is outside the terminal's foreground, so that Ctrl-C reaches it once and from here; and it stops by
    itself, saved, when this process ends without a word.

    Raises:
        ChildError: It failed; the message is the child's.
    """
    with tempfile.TemporaryDirectory() as folder, interruption() as received:
        told = Path(folder) / "error.txt"
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(told), *member.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            process_group=0 if os.name == "posix" else None,
        )
        try:
            forwarded = False
            while child.poll() is None:
                if received and not forwarded:
                    child.send_signal(received[0])
                    forwarded = True
                try:
                    child.wait(_POLL_S)
                except subprocess.TimeoutExpired:
                    continue
        finally:  # only a second Ctrl-C comes here before the child has ended
            if child.poll() is None:
                child.kill()
                child.wait()
            if child.stdin is not None:
                child.stdin.close()
        if received:
            return received[0]
        if child.returncode:
            raise ChildError(told.read_text() if told.exists() else _exit(child.returncode))
    return None


def become_child(error_file: str) -> None:
    """Make this process one that tells its last error in a file, and stops as by SIGTERM when its parent ends."""

    class Telling(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            Path(error_file).write_text(record.getMessage().removeprefix("headstart: "))

    def watch() -> None:
        os.read(0, 1)  # nothing is ever written there: it returns when the parent is gone
        os.kill(os.getpid(), signal.SIGTERM)

    logging.getLogger("headstart").addHandler(Telling(logging.ERROR))
    threading.Thread(target=watch, daemon=True).start()


def evaluate(comparison: Comparison, member: Member) -> None:
    """Measure one learner's best checkpoint on the test tasks, in each way in which it has not been measured."""
    for asked in member.protocols().values():
        if kept_evaluation(member, asked, comparison.num_tasks) is None:
            result = work.evaluate_run(
                member.run,
                data=comparison.data,
                device=comparison.device,
                num_tasks=comparison.num_tasks,
                **asked,
            )
            work.keep_evaluation(member.run, result)


def kept_evaluation(member: Member, asked: dict[str, Any], num_tasks: int) -> dict[str, Any] | None:
    """The evaluation of the finished run's best checkpoint under these conditions, if there is one."""
    recipe, best = member.recipe, member.run.checkpoints / "best.json"
    if not member.finished or not best.exists():
        return None
    conditions = {
        "checkpoint": "best",
        "protocol": "sampled",
        "num_tasks": num_tasks,
        "shots": recipe.shots,
        "queries": recipe.eval_queries,
        "norm": recipe.norm,
        "seed": TEST_SEED,
        "per_step": [None] * (recipe.eval_steps + 1),
        **asked,
    }
    path = member.run.path / "evaluations" / recipe.file_name(conditions)
    found = read_json(path) if path.exists() else None
    return found if found and found["iteration"] == read_json(best)["iteration"] else None


def cost(member: Member, data: Path | None, device: torch.device) -> Cost:
    """Memory and time of a few meta-updates, measured in a fresh process."""
    command = [sys.executable, "-m", "headstart.recipes.footprint", str(member.run.path), "--device", device.type]
    command += [] if data is None else ["--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        told = done.stderr.strip().splitlines()[-1:] or [_exit(done.returncode)]
        _log.warning("Memory and time of %s could not be measured: %s", member.learner, told[0])
        return Cost()
    measured = json.loads(done.stdout)
    return Cost(measured["mib"], measured["ms"])


def _measured_before(comparison: Comparison) -> dict[str, Cost]:
    """Costs from an earlier, perhaps interrupted, comparison in the same folder."""
    path = comparison.folder / FILE
    before = read_json(path) if path.exists() else {}
    if before.get("device") != comparison.device.type:
        return {}
    return {entry["learner"]: Cost(entry["memory_mib"], entry["ms_per_iteration"]) for entry in before["learners"]}


def _result(evaluation: dict[str, Any], step: int) -> dict[str, Any]:
    chosen = next(row for row in evaluation["per_step"] if row["step"] == step)
    told = {name: evaluation[name] for name in ("norm", "num_tasks", "tasks_digest")}
    return {**told, **chosen, "per_step": evaluation["per_step"]}


def _changed(recipe: SupervisedRecipe, usual: Any) -> dict[str, Any]:
    before = asdict(usual)
    return {name: v for name, v in asdict(recipe).items() if name != "learner" and before[name] != v}


def _exit(code: int) -> str:
    if code < 0:
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"Killed by {signal.Signals(-code).name}{hint}."
    return f"Ended with exit code {code}."


def _sentence(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), text)
