"""One system on one work, in a process of its own, told what to do line by line.

Started by `session.py` as `python -m benchmarks.worker`: reads one JSON command a line, answers each with one
line. Only what is asked for runs, so any number of workers can be alive while one of them is timed.

    prepare(system, work, overrides, threads)   import the library, build everything, measure what is to be measured
    first()                                     the first meta-iteration, with the compilation that is left
    block(iterations, warm_up)                  seconds per meta-iteration, and the peak of memory
    gradient(save | reference)                  save the meta-gradient, or its error against a saved one
"""

import importlib
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers import GROWING, SYSTEMS, Prepared
from benchmarks.works import Sizes, work_named
from headstart.allocator import give_back, keep_memory
from headstart.training.files import read_tensors, write_tensors
from headstart.types import Params

REFERENCE = "reference"
"""Name of the plain loop in float64 as a system of its own."""


class Worker:
    """What the commands act on."""

    def __init__(self) -> None:
        self.prepared: Prepared | None = None
        self.baseline_mib = 0.0
        self.context = ExitStack()

    def prepare(
        self, system: str, work: str, overrides: Sizes, threads: int, first_order: bool = False
    ) -> dict[str, Any]:
        """Import the library and build the work; memory is counted from here."""
        torch.set_num_threads(threads)
        began = time.perf_counter()
        if system == REFERENCE:
            module, options = "plain", {"dtype": torch.float64, "first_order": first_order}
        else:
            module, options, _, first_order = (SYSTEMS | GROWING)[system]
            options = {**options, "first_order": True} if first_order else options
        prepare = importlib.import_module(f"benchmarks.peers.{module}").prepare
        importlib.import_module("torch._dynamo")  # the first torch optimiser would, and be charged its memory
        imported = time.perf_counter()
        if module != "using_headstart":
            # Fused attention has no second derivative; Headstart replaces it by itself.
            self.context.enter_context(sdpa_kernel(SDPBackend.MATH))
        give_back()
        self.baseline_mib = status_mib("VmRSS")
        self.prepared = prepare(work_named(work, overrides), **options)
        return {"import_s": imported - began, "prepare_s": time.perf_counter() - imported}

    def first(self) -> dict[str, float]:
        """Seconds and peak memory of the first meta-iteration."""
        seconds, peak_mib = self._timed(1)
        return {"first_call_s": seconds, "first_call_peak_mib": peak_mib}

    def block(self, iterations: int, warm_up: bool) -> dict[str, float]:
        """Seconds per meta-iteration over a block of them, and its peak memory above what imports took."""
        if warm_up:  # other workers had the caches, and memory given back after the last block is paged in again
            self._ready().step()
        seconds, peak_mib = self._timed(iterations)
        give_back()
        return {"seconds": seconds / iterations, "peak_mib": peak_mib}

    def gradient(self, save: str | None = None, reference: str | None = None) -> dict[str, float | None]:
        """The meta-gradient, saved; or its relative error, in norm over all parameters."""
        params = self._ready().gradient()
        if save is not None:
            write_tensors(Path(save), params, None)
        return {"error": None if reference is None else relative_error(params, read_tensors(Path(reference))[0])}

    def _timed(self, iterations: int) -> tuple[float, float]:
        step = self._ready().step
        reset_peak()
        began = time.perf_counter()
        for _ in range(iterations):
            step()
        seconds = time.perf_counter() - began
        return seconds, max(0.0, status_mib("VmHWM") - self.baseline_mib)

    def _ready(self) -> Prepared:
        if self.prepared is None:
            raise ValueError("Nothing is prepared: the first command must be `prepare`.")
        return self.prepared


def relative_error(given: Params, expected: Params) -> float | None:
    """Norm of the difference over norm of what is expected; None where it is not finite.

    Raises:
        ValueError: Other parameters than expected.
    """
    if given.keys() != expected.keys():
        raise ValueError(f"Gradients are of other parameters: {sorted(given.keys() ^ expected.keys())}.")
    a, b = (torch.cat([params[name].double().flatten() for name in sorted(expected)]) for params in (given, expected))
    error = float((a - b).norm() / b.norm())
    return error if error < float("inf") else None


def status_mib(field: str) -> float:
    """`VmRSS` (memory held) or `VmHWM` (its peak) of this process; 0 where the kernel does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def reset_peak() -> None:
    """Let `VmHWM` start again from what is held now."""
    control = Path("/proc/self/clear_refs")
    if control.exists():
        control.write_text("5")


def main() -> None:
    """Answer commands until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    keep_memory()
    worker = Worker()
    commands = {"prepare": worker.prepare, "first": worker.first, "block": worker.block, "gradient": worker.gradient}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = commands[command.pop("do")](**command)
        except Exception as error:  # noqa: BLE001 (a library that cannot do a work is a result, not an end)
            text = str(error).strip()
            answer = {"failed": f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
