"""One process of the GPU session: told what to do line by line, it answers each JSON command with one line.

    reference(work, file)                       write the float64 meta-gradient
    check(work, system, precision, reference)   first call, memory, and error of the meta-gradient
    time(system, precision, repeats, block_s)   milliseconds and memory of what was checked
    choice(work)                                what the engine's own measurement chooses
    train(settings)                             see `gpu_train.py`; tells of its progress in lines before the last

A process per group of measurements keeps a broken one (a failed capture, a fault of the GPU) to itself.
"""

import gc
import importlib
import json
import logging
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

import headstart
from benchmarks.gpu_files import read_params, write_params
from benchmarks.gpu_modes import ModeName, Update, gradient, peak_memory, set_precision, update
from benchmarks.gpu_train import Settings, train
from benchmarks.peers import SYSTEMS, Prepared, plain
from benchmarks.works import Sizes, Work, initial, work_named
from headstart.training.engine import Engine
from headstart.training.tuning import choose
from headstart.types import Params, Task

REFERENCE_S = 30.0
"""Seconds to wait for a reference at most."""

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PlacedWork(Work):
    """A work whose network and tasks are on a device; they are drawn on the CPU, to be the same everywhere."""

    device: str = "cpu"

    def model(self) -> torch.nn.Module:
        """The network with its initial parameters."""
        with torch.device("cpu"):
            return super().model().to(self.device)

    def sample(self) -> Task:
        """The meta-batch."""
        with torch.device("cpu"):
            tasks = super().sample()
        return pytree.tree_map(lambda leaf: leaf.to(self.device), tasks)


class Worker:
    """What the commands act on."""

    def __init__(self, device: str, tell: Tell):
        self.device, self.tell = device, tell
        self.prepared: dict[tuple[str, str], Prepared] = {}
        self.held = ExitStack()
        self.compiled: dict[Any, tuple[headstart.MAML, Engine]] = {}
        self.warnings = _Warnings()
        logging.getLogger("headstart").addHandler(self.warnings)

    def reference(self, work: str, overrides: Sizes, file: str) -> dict[str, Any]:
        """Write the meta-gradient of the plain loop in double precision: none of the engine's code takes part."""
        self._release()
        began = time.perf_counter()
        placed = self._work(work, overrides)
        with torch.device(self.device):
            write_params(Path(file), plain.prepare(placed, dtype=torch.float64).gradient())
        return {"seconds": time.perf_counter() - began}

    def check(
        self,
        work: str,
        overrides: Sizes,
        system: str,
        precision: str,
        reference: str | None = None,
        alongside: bool = False,
    ) -> dict[str, Any]:
        """Prepare a system, make its first call, and compare its meta-gradient.

        `alongside`: what was prepared before stays, and the reference may still be in the making elsewhere.
        """
        if not alongside:
            self._release()
        placed = self._work(work, overrides)
        with peak_memory(self.device) as peak:
            began = time.perf_counter()
            prepared = self._prepare(system, work, placed, precision)
            prepared_at = time.perf_counter()
            prepared.step()
            self._wait()
            answer: dict[str, Any] = {
                "prepare_s": prepared_at - began,
                "first_call_s": time.perf_counter() - prepared_at,
            }
        answer["first_call_peak_mib"] = peak["mib"]
        if reference is not None and _there(Path(f"{reference}.json"), REFERENCE_S if alongside else 0.0):
            answer["error"] = relative_error(prepared.gradient(), read_params(Path(reference)))
        self.prepared[system, precision] = prepared
        if self.device != "cpu":
            torch.cuda.empty_cache()  # others need room too
        return answer

    def time(self, system: str, precision: str, repeats: int, block_s: float) -> dict[str, Any]:
        """Median and range over blocks, each of as many updates as take `block_s` (one at least)."""
        step = self.prepared[system, precision].step
        with peak_memory(self.device) as peak:
            seconds = self._block(step, 1)
            iterations = max(1, round(block_s / seconds))
            seconds = self._block(step, iterations)  # one alone waits longer than it runs; and this one warms up
            iterations = max(1, round(block_s / seconds))
            blocks = [self._block(step, iterations) for _ in range(repeats)]
        median = statistics.median(blocks)
        return {
            "ms": 1e3 * median,
            "ms_range": [1e3 * min(blocks), 1e3 * max(blocks)],
            "iterations_per_block": iterations,
            "blocks": repeats,
            "peak_mib": peak["mib"] if system != "JAX" else None,  # it allocates by itself
            "reserved_mib": torch.cuda.memory_reserved() / 2**20 if self.device != "cpu" else None,
        }

    def choice(self, work: str, overrides: Sizes) -> dict[str, Any]:
        """The engine's own measurement of modes and chunk sizes, for a run of 60,000 iterations, as recipes use it."""
        self._release()
        set_precision("float32")
        placed = self._work(work, overrides)
        chosen = choose(_learner(placed, vectorize="auto"), placed.sample(), iterations=60_000)
        return chosen._asdict()

    def train(self, **settings: Any) -> dict[str, Any]:
        """As much training as fits."""
        self._release()
        return train(Settings(**settings), self.device, self.tell)

    def _work(self, name: str, overrides: Sizes) -> PlacedWork:
        return PlacedWork(**asdict(work_named(name, overrides)), device=self.device)

    def _prepare(self, system: str, name: str, work: PlacedWork, precision: str) -> Prepared:
        if system in get_args(ModeName):
            return self._headstart(system, (name, precision), work)  # pyright: ignore[reportArgumentType]
        set_precision(precision)
        module, options, *_ = SYSTEMS[system]
        prepare = importlib.import_module(f"benchmarks.peers.{module}").prepare
        self.held.enter_context(sdpa_kernel(SDPBackend.MATH))  # fused attention has no second derivative
        if module == "using_jax":  # places its arrays itself
            fields = {key: value for key, value in asdict(work).items() if key != "device"}
            return prepare(Work(**fields), **options)
        with torch.device(self.device):  # what a peer makes beside network and tasks
            return prepare(work, **options)

    def _headstart(self, mode: ModeName, key: tuple[str, Any], work: PlacedWork) -> Prepared:
        self.warnings.messages.clear()
        learner, engine = self.compiled.get(key, (_learner(work), None))
        start, tasks = initial(work.model()), work.sample()
        taken = update(learner, mode, key[1], engine if "compiled" in mode else None)
        if "compiled" in mode:
            self.compiled[key] = learner, taken.engine

        def step() -> None:
            taken.step(tasks)
            self._require(taken, mode)

        return Prepared(step, lambda: gradient(taken, learner, start, tasks))

    def _require(self, taken: Update, mode: str) -> None:
        if taken.engine.mode != mode.split()[0]:
            raise RuntimeError(f"went on in mode {taken.engine.mode}: {' '.join(self.warnings.messages)}")

    def _block(self, step: Callable[[], None], iterations: int) -> float:
        self._wait()
        began = time.perf_counter()
        for _ in range(iterations):
            step()
        self._wait()
        return (time.perf_counter() - began) / iterations

    def broken(self) -> bool:
        """Whether the GPU no longer answers this process, as after a fault."""
        try:
            self._wait()
            torch.zeros(1, device=self.device).sum().item()
        except RuntimeError:
            return True
        return False

    def _wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def _release(self) -> None:
        self.prepared.clear()
        self.compiled.clear()
        self.held.close()
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()


def _there(path: Path, seconds: float) -> bool:
    """Whether a file is there, or comes within so many seconds."""
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return path.exists()


def _learner(work: Work, vectorize: Any = "vmap") -> headstart.MAML:
    """MAML as the works ask for it; with `vmap` named, nothing is tried that a capture would not allow."""
    inner = headstart.SGD(lr=work.inner_lr)
    return headstart.MAML(work.model(), work.loss, inner=inner, steps=work.steps, norm="batch", vectorize=vectorize)


def relative_error(given: Params, expected: Params) -> float:
    """Norm of the difference over norm of what is expected.

    Raises:
        ValueError: Other parameters than expected.
    """
    if given.keys() != expected.keys():
        raise ValueError(f"Gradients are of other parameters: {sorted(given.keys() ^ expected.keys())}.")
    names = sorted(expected)
    a, b = (
        torch.cat([params[name].detach().cpu().double().flatten() for name in names]) for params in (given, expected)
    )
    return float((a - b).norm() / b.norm())


class _Warnings(logging.Handler):
    """Keeps what the library warns of: why a mode was given up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def failure(error: BaseException) -> dict[str, Any]:
    """An error for the record: its type and message, and the lines of code it came through, innermost last."""
    frames = traceback.extract_tb(error.__traceback__)[-8:]
    message = " ".join(str(error).split()).replace(str(Path(torch.__file__).parent), "torch")
    return {
        "failed": f"{type(error).__name__}: {message}"[:400],
        "where": [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames],
    }


def main() -> None:
    """Answer commands until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer

    def answer(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answers, flush=True)

    worker = Worker(sys.argv[1], lambda told: answer({"progress": told}))
    commands = {name: getattr(worker, name) for name in ("reference", "check", "time", "choice", "train")}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(commands[command.pop("do")](**command))
        except Exception as error:  # noqa: BLE001 (a measurement that fails is a result, not an end)
            # After a failed capture a process is not to be trusted, whatever it says.
            answer(failure(error) | {"broken": "graphed" in command.get("system", "") or worker.broken()})


if __name__ == "__main__":
    main()
