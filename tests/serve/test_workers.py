import asyncio
import threading
import time

import pytest
import torch
from starlette.requests import ClientDisconnect

from headstart.inputs import Support
from headstart.serve.errors import RequestError
from headstart.serve.workers import Models, Workers
from headstart.types import Batch


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


def test_long_jobs_leave_a_thread_to_the_others(workers):
    go_on = threading.Event()

    async def visit():
        two = workers(threads=2)
        long = [asyncio.create_task(two.answer_long(Visitor(), lambda own, left: {"n": go_on.wait(20)})) for _ in "ab"]
        await asyncio.sleep(0)
        short = await asyncio.wait_for(two.answer(Visitor(), lambda own: {"short": True}), 20)
        go_on.set()
        return short, await asyncio.gather(*long)

    assert asyncio.run(visit()) == ({"short": True}, [{"n": True}, {"n": True}])


@pytest.mark.parametrize("how", ["leaves", "is cancelled"])
def test_a_long_job_is_told_that_nobody_waits_for_it(workers, monkeypatch, how):
    monkeypatch.setattr("headstart.serve.workers.LOOK_S", 0.01)
    begun, told = threading.Event(), threading.Event()

    def job(own, left):
        begun.set()
        for _ in range(2000):
            if left():
                told.set()
                return {}
            time.sleep(0.01)
        raise AssertionError("never told")

    async def visit():
        visitor = Visitor()
        answer = asyncio.create_task(workers(threads=1).answer_long(visitor, job))
        await asyncio.to_thread(begun.wait, 20)
        if how == "leaves":
            visitor.gone = True
        else:
            answer.cancel()
        await asyncio.wait([answer])
        await asyncio.to_thread(told.wait, 20)

    asyncio.run(visit())
    assert told.is_set()


def test_warming_runs_every_model_on_every_thread(workers, models, monkeypatch):
    ran = []
    learners = {type(each.learner) for each in (models.characters, models.maml, models.pretrained, models.run)}
    for kind in learners:
        predict = kind.predict

        def noted(self, *args, predict=predict, **kwargs):
            ran.append((threading.get_ident(), id(self)))
            return predict(self, *args, **kwargs)

        monkeypatch.setattr(kind, "predict", noted)
    workers(threads=2).warm()
    assert len({thread for thread, _ in ran}) == 2
    assert len(set(ran)) == 8
    ran.clear()
    adapted = models.characters.adapt(Support(Batch(torch.rand(2, 1, 28, 28), torch.arange(2)), ("a", "b")))
    one = Workers(Models(models.characters, models.maml, models.pretrained, adapted), threads=1)
    one.warm()
    one.close()
    assert len(set(ran)) == 3  # an adapted model has nothing to learn


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
