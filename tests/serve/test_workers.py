import asyncio
import threading

import pytest
import torch
from starlette.requests import ClientDisconnect

from headstart.serve.errors import RequestError
from headstart.serve.workers import Workers


class Visitor:
    """What `Workers` asks of a request."""

    def __init__(self, gone: bool = False):
        self.gone = gone

    async def is_disconnected(self) -> bool:
        return self.gone


@pytest.fixture
def workers(models):
    made = []

    def make(**settings):
        made.append(Workers(models, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_a_visitor_who_left_asked_is_not_computed(workers):
    asked = []

    async def visit():
        one = workers(threads=1)
        with pytest.raises(ClientDisconnect):
            await one.answer(Visitor(gone=True), lambda own: asked.append("gone") or {})
        return await one.answer(Visitor(), lambda own: asked.append("there") or {"answered": True})

    assert asyncio.run(visit()) == {"answered": True}
    assert asked == ["there"]


def test_each_thread_has_models_of_its_own_and_one_torch_thread(workers, models):
    met = threading.Barrier(2)

    def job(own):
        met.wait(20)  # so that both threads take one
        return {"learner": own.characters.learner, "threads": torch.get_num_threads()}

    async def visit():
        two = workers(threads=2)
        return await asyncio.gather(*(two.answer(Visitor(), job) for _ in range(2)))

    one, other = asyncio.run(visit())
    learners = {id(one["learner"]), id(other["learner"]), id(models.characters.learner)}
    assert len(learners) == 3
    assert one["threads"] == other["threads"] == 1


def test_after_an_error_or_a_cancelled_request_the_thread_goes_on(workers):
    go_on = threading.Event()

    async def visit():
        one = workers(threads=1, waiting=1)
        with pytest.raises(ZeroDivisionError):
            await one.answer(Visitor(), lambda own: 1 / 0)
        running = asyncio.create_task(one.answer(Visitor(), lambda own: {"waited": go_on.wait(20)}))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(one.answer(Visitor(), lambda own: {}))
        await asyncio.sleep(0)
        with pytest.raises(RequestError, match="Too many"):
            await one.answer(Visitor(), lambda own: {})
        waiting.cancel()
        await asyncio.sleep(0)
        after = asyncio.create_task(one.answer(Visitor(), lambda own: {"after": True}))  # the place is free again
        await asyncio.sleep(0)
        go_on.set()
        return await running, await after

    assert asyncio.run(visit()) == ({"waited": True}, {"after": True})
