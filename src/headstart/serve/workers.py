"""The models at work on threads of their own, so that the server answers everybody else meanwhile.

A learner notes things in itself while it adapts, so each thread has a copy of its own.
"""

import asyncio
import copy
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch
from starlette.requests import ClientDisconnect, Request

from headstart.adapted import Adapted, Trained
from headstart.serve.errors import RequestError
from headstart.serve.limits import WAITING
from headstart.types import Batch, Task

LEAST_THREADS, MOST_THREADS = 2, 4
"""One is left when the others decode uploads. All share Python's one lock: more than a few gain nothing."""

LOOK_S = 0.5
"""Time between looks whether a visitor is still there."""


@dataclass(frozen=True)
class Models:
    """What is served.

    Attributes:
        characters: Classifies drawings, any number of classes.
        maml: Predicts curves, meta-trained.
        pretrained: Predicts curves, trained on all of them jointly.
        run: A run of one's own, of image classification, or an adapted model of one.
    """

    characters: Trained
    maml: Trained
    pretrained: Trained
    run: Trained | Adapted | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Models":
        """A copy whose learners take one task at a time.

        On one task `vmap` takes twice as long as a loop, and seconds when it is first used.
        """
        trained = [copy.deepcopy(getattr(self, field.name), memo) for field in fields(self)]
        for each in trained:
            if isinstance(each, Trained):
                each.learner.vectorize = "loop"
        return Models(*trained)


Job = Callable[[Models], dict[str, Any]]
"""Makes an answer by the models; runs on a thread."""

LongJob = Callable[[Models, Callable[[], bool]], dict[str, Any]]
"""As `Job`; looks from time to time whether the visitor has left."""


class Workers:
    """Threads that answer, each with models of its own, one torch thread each.

    Args:
        models: To be copied for each thread.
        threads: How many; None for one per core this process may use, within the two bounds above.
        waiting: Requests that may wait for a thread.
    """

    def __init__(self, models: Models, threads: int | None = None, waiting: int = WAITING):
        threads = min(max(_cores(), LEAST_THREADS), MOST_THREADS) if threads is None else threads
        self._idle: queue.SimpleQueue[Models] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(copy.deepcopy(models))
        self._executor = ThreadPoolExecutor(threads, "headstart", initializer=torch.set_num_threads, initargs=(1,))
        self._threads = threads
        self._turns = asyncio.Semaphore(threads)
        self._long_turns = asyncio.Semaphore(max(1, threads - 1))
        self._waiting, self._most_waiting = 0, waiting

    def warm(self) -> None:
        """Run each model once on each thread: the first time takes many times as long as the next."""
        met = threading.Barrier(self._threads)

        def job(models: Models) -> dict[str, Any]:
            met.wait()  # so that every thread takes one
            _try_out(models)
            return {}

        for done in [self._executor.submit(self._run, job) for _ in range(self._threads)]:
            done.result()

    async def answer_long(self, request: Request, job: LongJob) -> dict[str, Any]:
        """As `answer`, of a job that may take seconds: not all threads take such, and it is told when to give up."""
        left = threading.Event()
        async with self._long_turns:
            looking = asyncio.create_task(_look(request, left))
            try:
                return await self.answer(request, lambda models: job(models, left.is_set))
            finally:
                left.set()
                looking.cancel()

    async def answer(self, request: Request, job: Job) -> dict[str, Any]:
        """What `job` returns, once it is its turn; for a visitor who has left by then it is not run.

        Raises:
            RequestError: Too many are waiting, or the job refuses.
            ClientDisconnect: The visitor has left.
        """
        if self._turns.locked() and self._waiting >= self._most_waiting:
            raise RequestError(503, "Too many are asking at this moment: try again in a second.", {"retry-after": "1"})
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1
        try:
            if await request.is_disconnected():
                raise ClientDisconnect
            return await asyncio.get_running_loop().run_in_executor(self._executor, self._run, job)
        finally:
            self._turns.release()

    def _run(self, job: Job) -> dict[str, Any]:
        models = self._idle.get()
        try:
            return job(models)
        finally:
            self._idle.put(models)

    def close(self) -> None:
        """Take no more jobs; those that run end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)


async def _look(request: Request, left: threading.Event) -> None:
    """Set `left` when the visitor has left."""
    while not await request.is_disconnected():
        await asyncio.sleep(LOOK_S)
    left.set()


def _try_out(models: Models) -> None:
    """Adapt each model to a blank task."""
    for trained in (models.characters, models.maml, models.pretrained, models.run):
        if isinstance(trained, Trained):
            inputs = trained.inputs.blank(2)
            targets = torch.arange(2) if trained.recipe.classes else torch.zeros(2, 1)
            batch = Batch(inputs[None], targets[None])
            trained.learner.predict(Task(batch, batch), trained.recipe.eval_steps, norm="support")


def _cores() -> int:
    """Cores that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
