"""Which mode, how many tasks at once and how many threads are fastest here, found by a short measurement."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from headstart.allocator import give_back
from headstart.threads import on_threads
from headstart.training.engine import Engine, Learner, Mode, Precision
from headstart.training.functional import chunks
from headstart.training.fused import Clipping
from headstart.training.gradient import GradientLearner, GradientUpdater
from headstart.training.tracing import CannotCompileError
from headstart.types import Task
from headstart.vectorize import count_tasks

ModeOrAuto = Mode | Literal["auto"]

WORTH_COMPILING_S = 180.0
"""Compiling takes up to three minutes where it is done for the first time: a shorter eager run is not worth it."""
WORTH_MEASURING = 200
"""Iterations below which nothing is measured: finding the best chunk takes about as long as twenty."""
CHUNK = 16
"""Tasks computed together where nothing is measured; about right for small images and for small networks."""
REPEATS = 3
"""Timed calls of each candidate, after one to warm up; the shortest counts, since other work only lengthens them."""
WORTH_COMPILING_AGAIN_S = 60.0
"""A run that would take less than this, compiled for few threads, is not compiled for more of them, too: that takes ten
seconds to two minutes where it is done for the first time, and rarely saves as much."""
HARDLY_SLOWER = 1.1
"""Fewer tasks at once, and then fewer threads, are preferred if that takes at most this times as long as the fastest:
they take less memory, are slowed less by other work on the machine, and which is fastest is then mostly chance."""
LARGE_TASK_MS = 50.0
"""If a task takes this long in eager mode, calling what is compiled costs next to nothing beside it: it is then
measured one task at a time, too, which takes a fraction of the memory."""
HOPELESS = 2.0
"""A candidate whose first timed call is this much slower than the best so far is not timed again."""

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """How to compute meta-gradients, and what was measured to find it, by mode, chunk size and threads.

    That is milliseconds of a meta-gradient, or of the whole update where it was compiled with it.
    """

    mode: Mode
    chunk_size: int
    precision: Precision
    measured: list[dict[str, Any]]
    threads: int | None = None
    """None: as many as PyTorch is set to."""

    def engine(self, learner: Learner) -> Engine:
        """An engine for `learner` with these settings."""
        settings = {"chunk_size": self.chunk_size, "precision": self.precision, "threads": self.threads}
        return Engine(learner, mode=self.mode, **settings)


def choose(
    learner: GradientLearner,
    tasks: Task,
    *,
    mode: ModeOrAuto = "auto",
    chunk_size: int | Literal["auto"] | None = "auto",
    precision: Precision = "float32",
    iterations: int = 1,
    clipping: Clipping | None = None,
) -> Choice:
    """The fastest way to compute the meta-gradient of `tasks`, of those left open.

    The learner is left as it was: parameters, gradients, running statistics, random state.

    >>> import headstart
    >>> learner = headstart.MAML(nn.Linear(1, 1), nn.functional.mse_loss)
    >>> tasks = next(headstart.tasks.Sinusoids(shots=10).batches(size=4))
    >>> choice = choose(learner, tasks, iterations=100)  # too few to be worth a measurement
    >>> choice.mode, choice.chunk_size
    ('eager', 4)
    >>> choice.engine(learner).gradient(tasks).shape
    torch.Size([4])

    Args:
        learner: To be trained.
        tasks: A meta-batch like those it will be trained on.
        mode: A mode, or `"auto"`: `"graphed"` or `"eager"` on a GPU; elsewhere `"compiled"` if the whole run
            would take more than `WORTH_COMPILING_S` in eager mode and compiling makes it faster, else `"eager"`.
        chunk_size: Tasks computed together; None for all, `"auto"` for what is measured to be fastest in eager
            mode, in which every candidate is ready at once, or fewer if hardly slower (`HARDLY_SLOWER`). What is
            compiled takes over that number, or 1 for large tasks (`LARGE_TASK_MS`) if hardly slower, and has the
            optimiser in its graph only if that is all tasks. In runs of less than `WORTH_MEASURING` iterations on a
            CPU it is `CHUNK`, and `mode="auto"` is eager. With `"auto"` a CPU's threads are halved, too, as long as
            that is hardly slower. What is compiled is then measured on both numbers, and compiled for each, if the
            run would take `WORTH_COMPILING_AGAIN_S` on the smaller.
        precision: See `Engine`.
        iterations: Length of the run.
        clipping: Of the updates, if they are to be a `GradientUpdater`'s: a whole one is then measured where it is
            one compiled graph, and found compiled by the run. None: meta-gradients alone are measured.
    """
    measure = _Measurement(learner, tasks, precision, clipping, iterations)
    total = count_tasks(tasks)
    if iterations < WORTH_MEASURING and not measure.on_gpu:
        given = min(CHUNK, total) if chunk_size == "auto" else chunk_size
        return Choice("eager" if mode == "auto" else mode, given or total, precision, [])
    _log.info("Measuring how to compute meta-gradients fastest ...")
    open_chunks = _candidates(total) if chunk_size == "auto" else [total if chunk_size is None else chunk_size]
    if len(open_chunks) > 1 or (mode == "auto" and not measure.on_gpu):
        fastest = min(measure("eager", size) for size in open_chunks)
        chunk = next(size for size in open_chunks if measure("eager", size) <= HARDLY_SLOWER * fastest)
    else:
        chunk = open_chunks[0]
    threads = measure.fewest_threads(chunk) if len(open_chunks) > 1 and not measure.on_gpu else None
    if mode == "auto" and measure.on_gpu:
        mode = "graphed" if measure("graphed", chunk) < measure("eager", chunk) else "eager"
    elif mode == "compiled" or (mode == "auto" and measure.run_s("eager", chunk, threads) > WORTH_COMPILING_S):
        best = measure.compiled_threads(chunk, threads)
        alone = measure.compiled_alone(chunk, best) if len(open_chunks) > 1 else chunk
        if mode == "compiled" or measure("compiled", alone, best) < measure("eager", chunk, threads):
            mode, chunk, threads = "compiled", alone, best
    mode = "eager" if mode == "auto" else mode
    give_back()  # all tasks at once may have taken far more than what was chosen will
    on = "" if threads is None else f", on {threads} of {torch.get_num_threads()} threads"
    _log.info("Computing meta-gradients in mode %s, %d of %d tasks at once%s.", mode, chunk, total, on)
    return Choice(mode, chunk, precision, measure.records, threads)


def _candidates(total: int) -> list[int]:
    """One task, all of them, and powers of two between."""
    powers = [2**i for i in range(total.bit_length()) if 2**i < total]
    return [*powers, total]


class _Measurement:
    """Times meta-gradients, or updates where these are one graph; each mode, chunk size and number of threads once."""

    def __init__(
        self, learner: GradientLearner, tasks: Task, precision: Precision, clipping: Clipping | None, iterations: int
    ):
        self.learner, self.tasks, self.clipping, self.iterations = learner, tasks, clipping, iterations
        self.precision: Precision = precision
        self.device = next(p for _, p in learner.named_parameters()).device
        self.on_gpu = self.device.type == "cuda"
        self.records: list[dict[str, Any]] = []
        self.best = float("inf")

    def fewest_threads(self, chunk_size: int) -> int | None:
        """Half of the threads, a half of these and so on, as long as that is hardly slower in eager mode."""
        found, fastest, threads = None, self("eager", chunk_size), torch.get_num_threads() // 2
        while threads and (ms := self("eager", chunk_size, threads)) <= HARDLY_SLOWER * fastest:
            found, fastest, threads = threads, min(fastest, ms), threads // 2
        return found

    def compiled_threads(self, chunk_size: int, threads: int | None) -> int | None:
        """`threads`, or all if these are faster: what is fused may gain from threads where eager mode does not."""
        if threads is None:
            return None
        ms = self("compiled", chunk_size, threads)
        if math.isinf(ms) or self.run_s("compiled", chunk_size, threads) < WORTH_COMPILING_AGAIN_S:
            return threads
        return threads if ms <= HARDLY_SLOWER * self("compiled", chunk_size) else None

    def compiled_alone(self, chunk_size: int, threads: int | None) -> int:
        """1 if tasks are large and it is hardly slower, in a run that is worth compiling again; else `chunk_size`."""
        eager_ms = self("eager", chunk_size, threads)
        large = eager_ms >= LARGE_TASK_MS * count_tasks(self.tasks)
        if chunk_size == 1 or not large or self.run_s("eager", chunk_size, threads) <= WORTH_COMPILING_S:
            return chunk_size
        ms = self("compiled", chunk_size, threads)
        return 1 if math.isfinite(ms) and self("compiled", 1, threads) <= HARDLY_SLOWER * ms else chunk_size

    def run_s(self, mode: Mode, chunk_size: int, threads: int | None) -> float:
        """Seconds that the whole run would take."""
        return self(mode, chunk_size, threads) * self.iterations / 1e3

    def __call__(self, mode: Mode, chunk_size: int, threads: int | None = None) -> float:
        """Milliseconds of the meta-batch; infinite where the mode is not possible."""
        for record in self.records:
            if (record["mode"], record["chunk_size"], record["threads"]) == (mode, chunk_size, threads):
                return float("inf") if record["ms"] is None else record["ms"]
        gpus = [self.device] if self.on_gpu else []
        with torch.random.fork_rng(gpus), _KeptGradients(self.learner):
            ms = self._time(mode, chunk_size, threads)
        self.best = min(self.best, ms)
        known = round(ms, 3) if math.isfinite(ms) else None  # JSON knows no infinity
        self.records.append({"mode": mode, "chunk_size": chunk_size, "threads": threads, "ms": known})
        return ms

    def _time(self, mode: Mode, chunk_size: int, threads: int | None) -> float:
        engine = Choice(mode, chunk_size, self.precision, [], threads).engine(self.learner)
        if self.clipping is None or not engine.single_graph(self.tasks):
            part = next(chunks(self.tasks, chunk_size))  # the others take as long, a last smaller one its share
            return self._shortest(engine, engine.compute, part) * count_tasks(self.tasks) / count_tasks(part)
        # In eager mode the optimiser would come on top of what is timed: that favours eager mode by a little.
        with _KeptValues(self.learner):
            return self._shortest(engine, self._update(engine, self.clipping), self.tasks)

    def _shortest(self, engine: Engine, compute: Callable[[Task], Any], tasks: Task) -> float:
        mode = engine.mode
        try:
            compute(tasks)
        except torch.OutOfMemoryError:
            return float("inf")
        except CannotCompileError as error:
            engine.fall_back(error)
        if engine.mode != mode:
            return float("inf")
        times: list[float] = []
        self._wait()
        hopeless = HOPELESS * self.best * count_tasks(tasks) / count_tasks(self.tasks)
        while len(times) < REPEATS and not (times and times[0] > hopeless):
            began = time.perf_counter()
            compute(tasks)
            self._wait()
            times.append(1e3 * (time.perf_counter() - began))
        return min(times)

    def _update(self, engine: Engine, clipping: Clipping) -> Callable[[Task], Any]:
        """The update that is one graph with the meta-gradient, made as the run makes it."""
        updater = GradientUpdater(self.learner, engine, clip_value=clipping.value, clip_norm=clipping.norm)

        def on_its_threads(tasks: Task) -> Any:
            with on_threads(engine.threads):
                return updater.compiled(tasks)

        return on_its_threads

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


class _KeptGradients:
    """Gradients put aside, and back again."""

    def __init__(self, learner: Learner):
        self.parameters: list[nn.Parameter] = [p for _, p in learner.named_parameters()]

    def __enter__(self) -> None:
        self.grads = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None

    def __exit__(self, *_: Any) -> None:
        for p, grad in zip(self.parameters, self.grads, strict=True):
            p.grad = grad


class _KeptValues:
    """Meta-parameters copied, and put back if an update moved them."""

    def __init__(self, learner: Learner):
        self.parameters = [p for _, p in learner.named_parameters() if p.requires_grad]

    def __enter__(self) -> None:
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def __exit__(self, *_: Any) -> None:
        for p, value in zip(self.parameters, self.values, strict=True):
            if not torch.equal(p, value):
                p.copy_(value)
