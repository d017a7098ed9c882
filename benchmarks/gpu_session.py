"""The parts of a GPU session, one after the other, each within its share of the time.

    checks      the float64 meta-gradient of every work; first calls and errors of everything; meanwhile, on the
                other cores, one process for each work and precision compiles
    timing      milliseconds and memory, with nothing else running
    choices     what the engine's own measurement would choose
    training    omniglot-5way-1shot with the fastest exact mode, in all the time that is left

What no longer fits is skipped, and the record says so. The JSON is written anew after every measurement.
"""

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from benchmarks.gpu_child import Child, ChildError
from benchmarks.gpu_files import write_json
from benchmarks.gpu_modes import COMPILED, PRECISIONS, ModeName, unavailable
from benchmarks.peers import SYSTEMS
from benchmarks.works import Sizes, work_named

TRAINED = "omniglot 5-way 1-shot"
"""Work whose timing decides in which mode to train."""
STAND_IN = "plain loop float32"
"""The peers' way of computing, with PyTorch alone: always there to compare with."""
EXACT = 1e-4
"""Largest relative error of a meta-gradient in single precision that is called exact."""
CHECKS_UNTIL, TIMING_UNTIL, CHOICES_UNTIL = 0.28, 0.47, 0.49
"""Shares of the time, counted from the start, after which a part ends; what it does not need is left to the next."""
LONGEST_S = 60.0
"""Seconds after which a single measurement is given up."""
SHUTDOWN_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    device: str
    seconds: float
    works: dict[str, Sizes]
    """Names, most important first, and other sizes than their own."""
    modes: Sequence[str] = get_args(ModeName)
    precisions: Sequence[str] = PRECISIONS
    repeats: int = 5
    block_s: float = 0.1
    at_once: int = max(1, (os.cpu_count() or 1) - 2)
    """Processes that compile at the same time."""
    training: dict[str, Any] = field(default_factory=dict)
    """Other settings than `gpu_train.Settings` has."""


Job = tuple[str, str, str]
"""Work, system, precision."""


class Session:
    """The session's result, its processes, and its clock."""

    def __init__(self, plan: Plan, out: Path, about: dict[str, Any]):
        self.plan, self.out, self.began = plan, out, time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="gpu-session-", ignore_cleanup_errors=True)
        self.lock = threading.Lock()
        self.serial: Child | None = None
        self.started: list[Child] = []
        self.children: dict[Job, Child] = {}
        works = {name: self._described(name) for name in plan.works}
        self.result = about | {"seconds": plan.seconds, "parts": {}, "works": works, "training": {}}
        self.jobs = self._plan_jobs()
        self._write()

    def run(self) -> dict[str, Any]:
        """All parts."""
        try:
            self._part("checks", self._checks)
            self._part("timing", self._timing)
            self._part("choices", self._choices)
            self._end()  # the training has the machine to itself
            self._part("training", self._training)
        finally:
            self._end()
            self.folder.cleanup()
            self._write()
        return self.result

    def _part(self, name: str, part: Any) -> None:
        began = time.monotonic()
        print(f"{name}, from second {began - self.began:.0f}", flush=True)
        part()
        self.result["parts"][name] = {"began_s": began - self.began, "seconds": time.monotonic() - began}
        self._write()

    def _checks(self) -> None:
        deadline = self._at(CHECKS_UNTIL)
        with ThreadPoolExecutor(self.plan.at_once) as pool:
            compiling = [pool.submit(self._compile, group, deadline) for group in self._groups()]
            for name in self.plan.works:
                self._ask_serial("reference", deadline, name, "reference", file=self._reference(name))
            for name, system, precision in [job for job in self.jobs if _quick(job[1])]:
                arguments = {"system": system, "precision": precision, "reference": self._reference(name)}
                self._ask_serial("check", deadline, name, f"{system}, {precision}", **arguments)
        for future in compiling:
            future.result()  # raises what was raised there: a mistake of this program

    def _compile(self, group: list[Job], deadline: float) -> None:
        """In a thread: start a process for a work and precision, and let it compile; it stays, to be timed."""
        child: Child | None = None
        for job in group:
            name, system, precision = job
            key = f"{system}, {precision}"
            if time.monotonic() > deadline - SHUTDOWN_S:
                self._note(name, key, {"skipped": "no time was left to compile"})
                continue
            child = child or self._child(precision)
            arguments = {"system": system, "precision": precision, "reference": self._reference(name)}
            try:
                answer = child.ask("check", deadline, **self._work(name), **arguments, alongside=True)
                self._note(name, key, answer)
                self.children[job] = child
            except ChildError as error:
                self._note(name, key, error.record)
                child = None if error.dead else child

    def _timing(self) -> None:
        deadline = self._at(TIMING_UNTIL)
        effort = {"repeats": self.plan.repeats, "block_s": self.plan.block_s}
        for job in self.jobs:
            name, system, precision = job
            key = f"{system}, {precision}"
            noted = self._noted(name, key)
            if "failed" in noted or (job not in self.children and not _quick(system)):
                continue
            about = {"system": system, "precision": precision}
            if job not in self.children:  # alone now, so that first calls are measured again
                self._ask_serial("check", deadline, name, key, **about)
            self._ask("time", deadline, job, **about, **effort)

    def _choices(self) -> None:
        for name in self.plan.works if self.plan.device == "cuda" else ():
            self._ask_serial("choice", self._at(CHOICES_UNTIL), name, "choice")

    def _training(self) -> None:
        """Train in the fastest exact mode; in the next one where that fails."""
        record = self.result["training"]
        deadline = self.began + self.plan.seconds - SHUTDOWN_S
        usual = ("graphed", "eager") if self.plan.device == "cuda" else ("eager",)
        for mode in dict.fromkeys((*self._fastest(), *usual)):
            left = deadline - time.monotonic() - SHUTDOWN_S
            if left < SHUTDOWN_S:
                record["skipped"] = "no time was left"
                return
            stem = self.out.with_suffix("")
            settings: dict[str, Any] = {
                "seconds": left,
                "mode": mode,
                "out": str(stem.with_name(f"{stem.name}-parameters")),
            }
            child = self._child("float32")
            try:
                answer = child.ask("train", deadline, self._progress, **(settings | self.plan.training))
            except ChildError as error:
                record.setdefault("failures", []).append({"mode": mode, **error.record})
            else:
                record.update(answer)
                return
            finally:
                child.stop()
                self._write()

    def _progress(self, told: dict[str, Any]) -> None:
        self.result["training"].update(told)
        self._write()
        point = told["curve"][-1]
        print(f"  iteration {point['iteration']}: validation accuracy {point['accuracy']}", flush=True)

    def _fastest(self) -> list[str]:
        """Exact modes in single precision, by their measured speed on the work that is trained."""
        systems = self.result["works"].get(TRAINED, {"systems": {}})["systems"]
        modes = {mode: systems.get(f"{mode}, float32", {}) for mode in self.plan.modes}
        good = [mode for mode, r in modes.items() if r.get("ms") and (r.get("error") or 0.0) < EXACT]
        return sorted((mode for mode in good if mode != "eager"), key=lambda mode: modes[mode]["ms"])

    def _plan_jobs(self) -> list[Job]:
        """What is to be measured, the most important first; what cannot be is noted."""
        jobs = []
        for precision in self.plan.precisions:
            for name in self.plan.works:
                for mode in self.plan.modes:
                    reason = unavailable(mode, precision, self.plan.device)
                    if reason is None:
                        jobs.append((name, mode, precision))
                    else:
                        self.result["works"][name]["systems"][f"{mode}, {precision}"] = {"skipped": reason}
                jobs += [(name, peer, precision) for peer in peers(precision, self.plan.device)]
        return jobs

    def _groups(self) -> list[list[Job]]:
        """Jobs that compile: those of one work and precision share a process, another library has its own."""
        groups: dict[Any, list[Job]] = {}
        for name, system, precision in self.jobs:
            if not _quick(system):
                groups.setdefault((precision, name, system in COMPILED), []).append((name, system, precision))
        return list(groups.values())

    def _ask_serial(self, do: str, deadline: float, name: str, key: str, **arguments: Any) -> None:
        """A command to the process for what is ready in a moment, which is started again after a failure."""
        if time.monotonic() > deadline:
            self._note(name, key, {"skipped": f"no time was left ({do})"})
            return
        self.serial = self.serial or self._child("float32")
        self._answered(self.serial, do, deadline, name, key, arguments | self._work(name))

    def _ask(self, do: str, deadline: float, job: Job, **arguments: Any) -> None:
        """A command to the process that has a job ready."""
        child = self.children.get(job, self.serial)
        key = f"{job[1]}, {job[2]}"
        if time.monotonic() > deadline:
            self._note(job[0], key, {"skipped": f"no time was left ({do})"})
        elif child is not None and "failed" not in self._noted(job[0], key):
            self._answered(child, do, deadline, job[0], key, arguments)

    def _answered(self, child: Child, do: str, deadline: float, name: str, key: str, arguments: dict[str, Any]) -> None:
        try:
            answer = child.ask(do, min(deadline, time.monotonic() + LONGEST_S), **arguments)
            self._note(name, key, answer)
        except ChildError as error:
            self._note(name, key, error.record)
            if error.dead:
                self.serial = None if child is self.serial else self.serial
                self.children = {job: other for job, other in self.children.items() if other is not child}

    def _note(self, name: str, key: str, answer: dict[str, Any]) -> None:
        with self.lock:
            work = self.result["works"][name]
            record = (work["systems"] if ", " in key else work).setdefault(key, {})
            record.pop("skipped", None)  # for lack of time, in an earlier part
            record.update(answer)
            self._write()
        told = {k: v for k, v in answer.items() if k in ("first_call_s", "error", "ms", "failed", "skipped")}
        print(f"  {name}: {key}: {told}", flush=True)

    def _noted(self, name: str, key: str) -> dict[str, Any]:
        return self.result["works"][name]["systems"].get(key, {})

    def _child(self, precision: str) -> Child:
        cache = str(Path(self.folder.name) / "inductor")
        matmul = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "bfloat16"}[precision]
        settings = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "2"}
        settings |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "JAX_DEFAULT_MATMUL_PRECISION": matmul}
        if self.plan.device != "cpu":  # they are many, and their work is elsewhere
            settings["OMP_NUM_THREADS"] = "2"
        child = Child(self.plan.device, settings)
        self.started.append(child)
        return child

    def _work(self, name: str) -> dict[str, Any]:
        return {"work": name, "overrides": self.plan.works[name]}

    def _described(self, name: str) -> dict[str, Any]:
        work = work_named(name, self.plan.works[name])
        return {"description": work.describe(), "tasks": work.tasks, "systems": {}}

    def _reference(self, name: str) -> str:
        return str(Path(self.folder.name) / f"{name}.f64")

    def _at(self, share: float) -> float:
        return self.began + share * self.plan.seconds

    def _end(self) -> None:
        for child in self.started:
            child.stop()
        self.serial, self.children, self.started = None, {}, []

    def _write(self) -> None:
        write_json(self.out, self.result)


def _quick(system: str) -> bool:
    """Whether a system is ready in a moment, and can share a process with others."""
    return system not in (*COMPILED, "JAX")


def peers(precision: str, device: str) -> list[str]:
    """Other systems to measure in a precision: the stand-in, and libraries that are installed."""
    names = [STAND_IN, *(name for name in SYSTEMS if not name.startswith("Headstart") and name != STAND_IN)]
    if precision == "bfloat16" or (precision == "tf32" and device == "cpu"):
        return []
    if precision == "tf32":
        names = [STAND_IN, "JAX"]  # by default these compute so
    return [name for name in names if installed(name)]


def installed(system: str) -> bool:
    """Whether what a system needs is there."""
    try:
        metadata.version(SYSTEMS[system].package)
    except metadata.PackageNotFoundError:
        return False
    return True
