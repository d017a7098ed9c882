"""Several systems on one work, alternating: block by block, only one of them running at a time."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import GROWING, SYSTEMS
from benchmarks.session import WorkerError, WorkerProcess
from benchmarks.worker import REFERENCE
from benchmarks.works import Sizes, Work, work_named

Report = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much time to spend."""

    repeats: int = 5
    """Timed blocks per system, where `budget_s` allows."""
    block_s: float = 1.0
    """Length of a block; one iteration at least."""
    budget_s: float = 25.0
    """Timed seconds per system and work, beyond which there are fewer repeats."""
    limit_s: float = 400.0
    """After this long without an answer a system is given up on."""
    threads: int = 2

    def plan(self, seconds: float) -> tuple[int, int, bool]:
        """Blocks, iterations in each, and whether to warm up before it, for iterations of so many seconds."""
        iterations = max(1, round(self.block_s / max(seconds, 1e-6)))
        warm_up = seconds <= self.budget_s / 2
        cost_s = seconds * (iterations + warm_up)
        return max(1, min(self.repeats, int(self.budget_s / cost_s))), iterations, warm_up


class Subject:
    """A system on a work: its process, and what was measured so far."""

    def __init__(self, system: str, work: Work, overrides: Sizes, effort: Effort, stack: ExitStack):
        self.system, self.effort = system, effort
        self.record: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.peaks_mib: list[float] = []
        self.process = stack.enter_context(WorkerProcess(effort.threads))
        self.setting = {"work": work.name, "overrides": overrides, "threads": effort.threads}
        self.plan = (0, 1, False)

    def start(self) -> None:
        """Prepare, make the first call, and see how long an iteration takes."""
        self._attempt("prepare", system=self.system, **self.setting)
        self._attempt("first")
        probe = self._attempt("block", iterations=1, warm_up=False)
        if "failed" not in self.record:
            self.plan = self.effort.plan(probe["seconds"])
            self.record["probe_s"] = probe["seconds"]
            self.peaks_mib.append(probe["peak_mib"])

    def repeat(self, number: int) -> None:
        """One timed block, if this system is to have so many."""
        blocks, iterations, warm_up = self.plan
        if number < blocks and "failed" not in self.record:
            answer = self._attempt("block", iterations=iterations, warm_up=warm_up)
            if "failed" not in self.record:
                self.seconds.append(answer["seconds"])
                self.peaks_mib.append(answer["peak_mib"])

    def finish(self, reference: str | None) -> None:
        """Compare the meta-gradient, and end the process."""
        if reference is not None and "failed" not in self.record:
            self._attempt("gradient", reference=reference)
        self.process.stop()

    def result(self, tasks: int) -> dict[str, Any]:
        """What was measured, in the units of the tables."""
        if not self.seconds:
            return self.record
        median = statistics.median(self.seconds)
        return self.record | {
            "ms": 1e3 * median,
            "ms_range": [1e3 * min(self.seconds), 1e3 * max(self.seconds)],
            "ms_blocks": [1e3 * seconds for seconds in self.seconds],
            "iterations_per_block": self.plan[1],
            "tasks_per_s": tasks / median,
            "peak_mib": max(self.peaks_mib),
        }

    def _attempt(self, do: str, **arguments: Any) -> dict[str, Any]:
        if "failed" in self.record:
            return {}
        try:
            answer = self.process.ask(do, self.effort.limit_s, **arguments)
        except WorkerError as error:
            self.record["failed"] = str(error)
            self.process.stop()
            return {}
        if do != "block":
            self.record |= answer
        return answer


def compare(
    systems: Sequence[str],
    name: str,
    effort: Effort,
    *,
    overrides: Sizes | None = None,
    errors: bool = True,
    report: Report = print,
) -> dict[str, Any]:
    """What each of `systems` takes for a work.

    Args:
        systems: Keys of `SYSTEMS`.
        name: A key of `WORKS`.
        effort: How often, and for how long.
        overrides: Other sizes than the work's own.
        errors: Whether to compare meta-gradients with a float64 loop's, of first or second order as each is.
        report: Is told what is happening, a line at a time.
    """
    work = work_named(name, overrides)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        references: dict[bool, str] = {}
        failed: dict[str, str] = {}
        for first_order in sorted({(SYSTEMS | GROWING)[system].first_order for system in systems}) if errors else ():
            file = str(Path(folder) / f"{first_order}.safetensors")
            try:
                _reference(name, overrides or {}, effort, first_order, file)
                references[first_order] = file
            except WorkerError as error:
                failed[str(first_order)] = str(error)
        subjects = [Subject(system, work, overrides or {}, effort, stack) for system in systems]
        for subject in subjects:
            subject.start()
            report(f"  {subject.system}: {_first(subject.record)}")
        for number in range(effort.repeats):
            for subject in subjects:
                subject.repeat(number)
        for subject in subjects:
            subject.finish(references.get((SYSTEMS | GROWING)[subject.system].first_order))
        return {
            "description": work.describe(),
            "setting": asdict(work),
            "failed_references": failed,
            "systems": {subject.system: subject.result(work.tasks) for subject in subjects},
        }


def _reference(name: str, overrides: Sizes, effort: Effort, first_order: bool, file: str) -> None:
    """Write the float64 loop's meta-gradient."""
    with WorkerProcess(effort.threads) as worker:
        setting = {"work": name, "overrides": overrides, "threads": effort.threads, "first_order": first_order}
        worker.ask("prepare", effort.limit_s, system=REFERENCE, **setting)
        worker.ask("gradient", effort.limit_s, save=file)


def _first(record: dict[str, Any]) -> str:
    if "failed" in record:
        return record["failed"]
    start_s = record["prepare_s"] + record["first_call_s"]
    return f"start {start_s:.1f} s, then {1e3 * record['probe_s']:.1f} ms"
