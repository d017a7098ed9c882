"""The ways to take a meta-update that a GPU session compares, beyond what the engine offers as its modes.

    eager              the engine's
    graphed            the engine's: the eager operations, captured and replayed
    graphed products   the same, with convolutions and linear layers as products while it is captured
    compiled           the engine's
    compiled graphed   the compiled meta-gradient, captured and replayed

The last but one and the last are trials: what a CUDA graph adds to what the compiler or the products do.
Every mode takes the whole meta-batch at once: a large GPU has room for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from headstart import MAML
from headstart.training.cuda import Replayed
from headstart.training.engine import Engine, Mode, Precision
from headstart.training.gradient import GradientUpdater
from headstart.training.products import AsProducts
from headstart.types import Params, Task

ModeName = Literal["eager", "graphed", "graphed products", "compiled", "compiled graphed"]
PrecisionName = Literal["float32", "tf32", "bfloat16"]
COMPILED: tuple[ModeName, ...] = ("compiled", "compiled graphed")
"""Modes that compile first; the others are ready in a moment."""
PRECISIONS: tuple[PrecisionName, ...] = ("float32", "bfloat16", "tf32")
"""Of products and convolutions: IEEE single precision, bfloat16 autocast, or single precision's 10-bit mantissa."""


class Update(NamedTuple):
    """A meta-update by one of the modes."""

    step: Callable[[Task], Any]
    """Takes it; does not wait for the GPU."""
    optimizer: torch.optim.Adam
    engine: Engine
    """To be asked afterwards whether its mode is still the one it was given."""


def set_precision(name: str) -> None:
    """TF32 on or off, for products and convolutions alike: PyTorch has it on for convolutions alone."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cudnn.allow_tf32 = name == "tf32"


def unavailable(mode: str, precision: str, device: str) -> str | None:
    """Why a mode and precision make no sense on a device; None where they do.

    >>> unavailable("graphed", "float32", "cpu")
    'CUDA graphs need a GPU'
    """
    if device == "cpu" and "graphed" in mode:
        return "CUDA graphs need a GPU"
    if device == "cpu" and precision == "tf32":
        return "TF32 needs a GPU"
    return None


def update(learner: MAML, mode: ModeName, precision: PrecisionName, engine: Engine | None = None) -> Update:
    """Meta-updates of `learner`, with Adam as in the paper.

    Args:
        learner: On its device.
        mode: See the top of this file.
        precision: See `PRECISIONS`; sets PyTorch's flags too.
        engine: Of the same learner and precision, and compiled already.
    """
    set_precision(precision)
    of_engine: Mode = "compiled" if mode in COMPILED else "graphed" if "graphed" in mode else "eager"
    kind: Precision = "bfloat16" if precision == "bfloat16" else "float32"
    engine = Engine(learner, mode=of_engine, precision=kind) if engine is None else engine
    updater = GradientUpdater(learner, engine)
    if mode == "compiled graphed":
        return Update(_replayed(learner, engine, updater.optimizer), updater.optimizer, engine)
    context = AsProducts() if mode == "graphed products" else None

    def step(tasks: Task) -> None:
        if context is None:
            updater.update(tasks)
        else:
            with context:
                updater.update(tasks)

    return Update(step, updater.optimizer, engine)


def _replayed(learner: MAML, engine: Engine, optimizer: torch.optim.Adam) -> Callable[[Task], Tensor]:
    """The compiled meta-gradient as a CUDA graph, and Adam's step after it."""
    parameters = [p for p in learner.parameters() if p.requires_grad]
    replayed = Replayed(engine.compute, lambda: parameters, engine.static)

    def step(tasks: Task) -> Tensor:
        optimizer.zero_grad()
        if not replayed.captured:  # compile before the capture, in which nothing may be allocated behind its back
            engine.compute(tasks)
            optimizer.zero_grad()
        losses, seen = replayed(tasks)
        learner.keep_statistics(seen)
        optimizer.step()
        return losses

    return step


def gradient(taken: Update, learner: MAML, start: Params, tasks: Task) -> Params:
    """The meta-gradient at `start`, read from Adam's memory of its first update: what training really uses.

    Changed in place only: a captured graph knows where things are.
    """
    with torch.no_grad():
        for name, p in learner.model.named_parameters():
            p.copy_(start[name])
        for state in taken.optimizer.state.values():
            for value in state.values():
                value.zero_()
    taken.step(tasks)
    decay = taken.optimizer.param_groups[0]["betas"][0]
    states = {name: taken.optimizer.state.get(p, {}) for name, p in learner.model.named_parameters()}
    return {
        name: state["exp_avg"] / (1 - decay) if state else torch.zeros_like(start[name])
        for name, state in states.items()
    }


@contextmanager
def peak_memory(device: str) -> Iterator[dict[str, float | None]]:
    """Peak MiB of tensors while the context lasts, above what there was before; None without a GPU."""
    peak: dict[str, float | None] = {"mib": None}
    if device == "cpu":
        yield peak
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield peak
    torch.cuda.synchronize()
    peak["mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
