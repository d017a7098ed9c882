"""The models at work on threads of their own, so that the server answers everybody else meanwhile.

A learner notes things in itself while it adapts, so each thread has a copy of its own.
"""

import asyncio
import copy
import os
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any

import torch
from starlette.requests import ClientDisconnect, Request

from headstart.adapted import Trained
from headstart.serve.errors import RequestError
from headstart.serve.limits import WAITING

MOST_THREADS = 4
"""Threads share Python's one lock: more than a few gain nothing."""


@dataclass(frozen=True)
class Models:
    """What is served.

    Attributes:
        characters: Classifies drawings, any number of classes.
        maml: Predicts curves, meta-trained.
        pretrained: Predicts curves, trained on all of them jointly.
        run: A run of one's own, of image classification.
    """

    characters: Trained
    maml: Trained
    pretrained: Trained
    run: Trained | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Models":
        """A copy whose learners take one task at a time.

        On one task `vmap` takes twice as long as a loop, and seconds when it is first used.
        """
        trained = [copy.deepcopy(getattr(self, field.name), memo) for field in fields(self)]
        for each in trained:
            if each is not None:
                each.learner.vectorize = "loop"
        return Models(*trained)


Job = Callable[[Models], dict[str, Any]]
"""Makes an answer by the models; runs on a thread."""


class Workers:
    """Threads that answer, each with models of its own, one torch thread each.

    Args:
        models: To be copied for each thread.
        threads: How many; None for one per core this process may use, `MOST_THREADS` at most.
        waiting: Requests that may wait for a thread.
    """

    def __init__(self, models: Models, threads: int | None = None, waiting: int = WAITING):
        threads = min(_cores(), MOST_THREADS) if threads is None else threads
        self._idle: queue.SimpleQueue[Models] = queue.SimpleQueue()
        for _ in range(threads):
            self._idle.put(copy.deepcopy(models))
        self._executor = ThreadPoolExecutor(threads, "headstart", initializer=torch.set_num_threads, initargs=(1,))
        self._turns = asyncio.Semaphore(threads)
        self._waiting, self._most_waiting = 0, waiting

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


def _cores() -> int:
    """Cores that this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
