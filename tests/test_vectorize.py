import logging
import math

import pytest
import torch
from reference import unstack
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from headstart import Batch, Task
from headstart.vectorize import count_tasks, over_tasks, stack


def tasks_of(count: int, shots: int = 3, queries: int = 2) -> Task:
    generator = torch.Generator().manual_seed(count + shots + queries)
    shapes = (shots, queries)
    return Task(*(Batch(*torch.randn(2, count, n, 4, generator=generator)) for n in shapes))


def summed(task: Task) -> dict[str, Tensor]:
    return {"sum": (task.support.inputs * task.support.targets).sum(0), "count": task.query.inputs.sum().exp()}


def refuses_vmap(task: Task) -> Tensor:
    noise = torch.rand(())  # moves the random state before it fails
    return task.support.inputs.sum() + noise if float(task.support.inputs.sum()) < 1e9 else noise


EXPECTED = stack([summed(task) for task in unstack(tasks_of(5))])


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("how", ["auto", "vmap"])
def test_chunks_of_any_size_give_the_same(how, chunk_size):
    calls = []

    def counted(task: Task) -> dict[str, Tensor]:
        calls.append(task)
        return summed(task)

    given, again = over_tasks(counted, tasks_of(5), how, chunk_size)
    assert_close(given, EXPECTED)
    assert again == how
    assert len(calls) == math.ceil(5 / (chunk_size or 5))


@pytest.mark.parametrize("chunk_size", [5, 7])
def test_a_single_part_is_recorded_as_no_parts_are(chunk_size):
    """Otherwise the parts' copies would be in the graph, and a run would compile another than was measured."""

    def code(chunk_size: int | None) -> str:
        return make_fx(lambda task: over_tasks(summed, task, "vmap", chunk_size)[0])(tasks_of(5)).code

    assert code(chunk_size) == code(None) != code(3)


@pytest.mark.parametrize(("count", "chunk_size"), [(1, None), (3, 1)])
def test_a_task_alone_is_computed_without_vmap(count, chunk_size, caplog):
    def refuses_vmap(task: Task) -> Tensor:
        return torch.tensor(task.support.inputs.sum().item())

    given, again = over_tasks(refuses_vmap, tasks_of(count), "auto", chunk_size)
    assert_close(given, tasks_of(count).support.inputs.flatten(1).sum(1))
    assert again == "auto"
    assert not caplog.records
    with pytest.raises(RuntimeError, match="vmap"):
        over_tasks(refuses_vmap, tasks_of(count), "vmap", chunk_size)


def test_a_loop_gives_the_same():
    given, again = over_tasks(summed, tasks_of(5), "loop", chunk_size=2)
    assert_close(given, EXPECTED)
    assert again == "loop"


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_tasks_of_unequal_sizes_keep_their_order(how):
    sizes = [(3, 2), (1, 2), (3, 2), (3, 5), (1, 2)]
    tasks = [unstack(tasks_of(5, *size))[i] for i, size in enumerate(sizes)]
    calls = []

    def counted(task: Task) -> dict[str, Tensor]:
        calls.append(task.support.inputs.shape)
        return summed(task)

    given, _ = over_tasks(counted, tasks, how)
    assert_close(given, stack([summed(task) for task in tasks]))
    assert len(calls) == (3 if how == "vmap" else 5)  # one vectorised call for each of three shapes


def test_tasks_of_unequal_kinds_are_grouped_apart():
    one, other = torch.ones(2), torch.ones(2, dtype=torch.float64)
    tasks = [Task(one, {"a": one}), Task(other, {"a": other}), Task(one, {"b": one}), Task(one, {"a": one})]
    calls = []

    def counted(task: Task) -> Tensor:
        calls.append(task.support.dtype)
        return task.support.double().sum()

    given, _ = over_tasks(counted, tasks, "vmap")
    assert_close(given, torch.full((4,), 2.0, dtype=torch.float64))
    assert calls == [torch.float32, torch.float64, torch.float32]


class TestFallingBackToALoop:
    def test_the_numbers_are_those_of_a_loop_that_never_tried(self):
        torch.manual_seed(0)
        expected, _ = over_tasks(refuses_vmap, tasks_of(3), "loop")
        after = torch.get_rng_state()
        torch.manual_seed(0)
        given, again = over_tasks(refuses_vmap, tasks_of(3))
        assert_close(given, expected, rtol=0, atol=0)
        assert torch.equal(torch.get_rng_state(), after)
        assert again == "loop"

    def test_it_is_said_once_for_a_list_of_many_shapes(self, caplog):
        tasks = [*unstack(tasks_of(2)), *unstack(tasks_of(2, shots=1)), *unstack(tasks_of(2, shots=4))]
        with caplog.at_level(logging.WARNING, logger="headstart"):
            over_tasks(refuses_vmap, tasks)
        (record,) = caplog.records
        assert record.message.startswith(
            "This module cannot be vectorised over tasks; looping over them instead (vmap: "
        )

    def test_of_a_long_reason_the_first_line_is_said(self, caplog):
        attempts = iter([RuntimeError("\nthe reason\nand what else PyTorch has to say")])

        def fails_at_first(task: Task) -> Tensor:
            for attempt in attempts:
                raise attempt
            return task.support.inputs

        with caplog.at_level(logging.WARNING, logger="headstart"):
            over_tasks(fails_at_first, tasks_of(2))
        assert caplog.messages == [
            "This module cannot be vectorised over tasks; looping over them instead (the reason)."
        ]

    def test_what_works_today_may_fail_tomorrow(self):
        """A first call that vectorises (in evaluation mode, say) does not forbid the loop later."""
        _, how = over_tasks(summed, tasks_of(2))
        _, how = over_tasks(refuses_vmap, tasks_of(2), how)
        assert how == "loop"

    def test_vmap_that_was_asked_for_raises(self):
        with pytest.raises(RuntimeError, match=r"\.item\(\)"):
            over_tasks(refuses_vmap, tasks_of(2), "vmap")

    def test_an_error_of_the_caller_shows_as_it_is(self):
        def wrong(task: Task) -> Tensor:
            return task.support.inputs @ torch.ones(5)

        with pytest.raises(RuntimeError) as expected:
            wrong(unstack(tasks_of(2))[0])
        with pytest.raises(RuntimeError) as given:
            over_tasks(wrong, tasks_of(2))
        assert str(given.value) == str(expected.value)

    def test_too_little_memory_is_no_reason_to_loop(self):
        calls = []

        def exhausts_at_first(task: Task) -> Tensor:
            calls.append(task)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("out of memory")
            return task.support.inputs

        with pytest.raises(torch.OutOfMemoryError):
            over_tasks(exhausts_at_first, tasks_of(2))


@pytest.mark.parametrize(
    ("tasks", "match"),
    [
        ([], "The meta-batch is empty"),
        (tasks_of(0), r"of one task at least; got lengths \[0\]"),
        (Task(torch.ones(2, 3), torch.ones(4, 3)), r"got lengths \[2, 4\]. Pass tasks of unequal sizes as a list"),
        (Task(torch.ones(()), torch.ones(4)), r"got lengths \[0, 4\]"),
    ],
)
def test_meta_batches_without_a_tasks_axis(tasks, match):
    with pytest.raises(ValueError, match=match):
        over_tasks(summed, tasks)


def test_count_tasks():
    assert count_tasks(tasks_of(3)) == count_tasks(unstack(tasks_of(3))) == 3


@pytest.mark.parametrize("how", ["vmap", "loop"])
def test_gradients_flow_to_what_the_function_closes_over(how):
    weight = torch.ones(4, requires_grad=True)
    losses, _ = over_tasks(lambda task: (task.support.inputs @ weight).sum(), tasks_of(3), how)
    (given,) = torch.autograd.grad(losses.sum(), weight)
    assert_close(given, tasks_of(3).support.inputs.sum((0, 1)))
