import copy

import pytest
import torch
import torch.nn.functional as F
from reference import normed, tasks_of
from torch import nn
from torch.testing import assert_close

from headstart import MAML, SGD, Task
from headstart.training import tracing, tuning
from headstart.training.fused import Clipping, FusedAdam
from headstart.training.gradient import GradientUpdater
from headstart.training.tracing import CannotCompileError
from headstart.training.tuning import (
    CHUNK,
    LARGE_TASK_MS,
    WORTH_COMPILING_AGAIN_S,
    WORTH_COMPILING_S,
    WORTH_MEASURING,
    choose,
)
from headstart.vectorize import count_tasks

TASKS = 6
FAST, SLOW = 1.0, 100.0
LONG = round(WORTH_COMPILING_S / SLOW * 1e3)


class Clock:
    """A clock that moves only when a meta-gradient is computed, by what that costs."""

    def __init__(self, cost_ms):
        self.now_s, self.cost_ms, self.calls, self.threads = 0.0, cost_ms, [], []
        self.factors: dict[tuple[str, int | None], float] = {}
        """What a number of threads does to the cost of a mode; None is all of them."""

    def perf_counter(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    """Gives what sets the costs: `clock(lambda mode, chunk_size: milliseconds)`; compiling fails at infinity."""

    def install(cost_ms) -> Clock:
        made = Clock(cost_ms)

        class Engine:
            def __init__(self, learner, *, mode, chunk_size, precision, threads):
                self.learner, self.mode, self.chunk_size, self.threads = learner, mode, chunk_size, threads

            def compute(self, tasks: Task) -> None:
                made.calls.append((self.mode, self.chunk_size))
                made.threads.append(self.threads)
                cost = made.cost_ms(self.mode, self.chunk_size) * made.factors.get((self.mode, self.threads), 1.0)
                if cost == float("inf"):
                    self.mode = "eager"
                else:
                    made.now_s += cost / 1e3 * count_tasks(tasks) / TASKS  # a part takes its part of the time

        monkeypatch.setattr(tuning, "Engine", Engine)
        monkeypatch.setattr(tuning, "time", made)
        return made

    return install


def learner_of() -> MAML:
    model = nn.Sequential(normed(), nn.Dropout(0.3), nn.Linear(1, 1).double())
    return MAML(model, F.mse_loss, inner=SGD(0.1))


def choose_for(iterations=300, **settings):
    return choose(learner_of(), tasks_of(TASKS), iterations=iterations, **settings)


class TestChoice:
    @pytest.mark.parametrize(("tasks", "chunk"), [(6, 6), (40, CHUNK)])
    def test_a_run_of_a_few_iterations_is_not_measured(self, clock, tasks, chunk):
        times = clock(lambda mode, size: FAST)
        choice = choose(learner_of(), tasks_of(tasks), iterations=10)
        assert (choice.mode, choice.chunk_size, choice.measured, times.calls) == ("eager", chunk, [], [])

    def test_the_fastest_chunk_size(self, clock):
        clock(lambda mode, size: abs(size - 4) + 1.0)
        choice = choose_for()
        assert (choice.mode, choice.chunk_size, choice.precision) == ("eager", 4, "float32")
        assert [(r["mode"], r["chunk_size"], r["ms"]) for r in choice.measured] == [
            ("eager", 1, 4.0),
            ("eager", 2, 3.0),
            ("eager", 4, 1.0),
            ("eager", 6, 3.0),
        ]

    @pytest.mark.parametrize(("two_ms", "chunk"), [(10.9, 2), (11.1, 6)])
    def test_fewer_tasks_if_hardly_slower(self, clock, two_ms, chunk):
        clock(lambda mode, size: {1: SLOW, 2: two_ms, 4: SLOW, 6: 10.0}[size])
        assert choose_for().chunk_size == chunk

    def test_memory_that_measuring_took_is_given_back(self, clock, monkeypatch):
        measured = clock(lambda mode, chunk_size: FAST)
        at = []
        monkeypatch.setattr(tuning, "give_back", lambda: at.append(len(measured.calls)))
        choose_for()
        assert at == [len(measured.calls)]

    def test_a_short_run_stays_eager_and_compiles_nothing(self, clock):
        times = clock(lambda mode, size: SLOW if mode == "eager" else FAST)
        assert choose_for(iterations=1799).mode == "eager"  # 179.9 s
        assert {mode for mode, _ in times.calls} == {"eager"}

    @pytest.mark.parametrize(("compiled_ms", "mode"), [(99.0, "compiled"), (101.0, "eager"), (float("inf"), "eager")])
    def test_a_long_run_is_compiled_if_that_is_faster(self, clock, compiled_ms, mode):
        times = clock(lambda mode, size: SLOW if mode == "eager" else compiled_ms)
        choice = choose_for(iterations=1801)
        assert choice.mode == mode
        recorded = None if compiled_ms == float("inf") else compiled_ms  # JSON knows no infinity
        assert choice.measured[-1] == {
            "mode": "compiled",
            "chunk_size": choice.chunk_size,
            "threads": None,
            "ms": recorded,
        }
        assert len([call for call in times.calls if call[0] == "compiled"]) == (1 if compiled_ms == float("inf") else 4)

    def test_what_is_compiled_takes_over_the_chunk_size(self, clock):
        times = clock(lambda mode, size: SLOW + 20 * abs(size - 2) if mode == "eager" else FAST)
        choice = choose_for(iterations=10**6)
        assert (choice.mode, choice.chunk_size) == ("compiled", 2)
        assert {size for mode, size in times.calls if mode == "compiled"} == {2}

    @pytest.mark.parametrize(
        ("eager_ms", "alone_ms", "iterations", "chunk"),
        [
            (6 * LARGE_TASK_MS, 109.0, 10**6, 1),
            (6 * LARGE_TASK_MS, 111.0, 10**6, 2),
            (6 * LARGE_TASK_MS - 1, 1.0, 10**6, 2),
            (6 * LARGE_TASK_MS, 1.0, WORTH_MEASURING, 2),
        ],
        ids=["as fast", "slower", "small tasks", "short run"],
    )
    @pytest.mark.parametrize("mode", ["auto", "compiled"])
    def test_large_tasks_are_compiled_one_at_a_time_if_hardly_slower(
        self, clock, mode, eager_ms, alone_ms, iterations, chunk
    ):
        costs = {("compiled", 1): alone_ms, ("compiled", 2): 100.0, ("eager", 2): eager_ms}
        clock(lambda mode, size: costs.get((mode, size), 2 * eager_ms))
        choice = choose_for(mode=mode, iterations=iterations)
        short = iterations == WORTH_MEASURING and mode == "auto"
        assert (choice.mode, choice.chunk_size) == ("eager" if short else "compiled", chunk)

    def test_only_the_first_chunk_is_computed(self, clock, monkeypatch):
        counts = []
        times = clock(lambda mode, size: FAST)
        compute = tuning.Engine.compute
        monkeypatch.setattr(
            tuning.Engine, "compute", lambda self, tasks: (counts.append(count_tasks(tasks)), compute(self, tasks))[1]
        )
        choice = choose_for()
        assert {(size, count) for (_, size), count in zip(times.calls, counts, strict=True)} == {
            (1, 1),
            (2, 2),
            (4, 4),
            (6, 6),
        }
        assert [r["ms"] for r in choice.measured] == [FAST] * 4

    def test_a_hopeless_candidate_is_timed_once(self, clock):
        times = clock(lambda mode, size: {1: 10.0, 2: 19.0, 4: 21.0, 6: 5.0}[size])
        assert choose_for().chunk_size == 6
        timed = [times.calls.count(("eager", size)) - 1 for size in (1, 2, 4, 6)]  # one is to warm up
        assert timed == [3, 3, 1, 3]

    def test_the_shortest_counts_but_not_the_first(self, clock):
        costs = {1: iter([50.0, 10.0, 19.0, 11.0]), 6: iter([1.0, 12.0, 12.0, 12.0])}  # the first one is to warm up
        clock(lambda mode, size: next(costs[size]) if size in costs else SLOW)
        choice = choose_for()
        assert choice.chunk_size == 1
        assert choice.measured[0]["ms"] == 10.0
        assert choice.measured[-1]["ms"] == 12.0

    @pytest.mark.parametrize(("given", "chosen"), [(3, 3), (None, TASKS)])
    @pytest.mark.parametrize("mode", ["eager", "compiled"])
    def test_what_is_given_is_not_measured(self, clock, mode, given, chosen):
        times = clock(lambda mode, size: FAST)
        choice = choose_for(mode=mode, chunk_size=given, precision="bfloat16")
        assert choice == (mode, chosen, "bfloat16", [], None)
        assert not times.calls

    def test_a_chunk_size_is_measured_for_a_mode_that_is_given(self, clock):
        times = clock(lambda mode, size: float(size))
        assert choose_for(mode="compiled")[:2] == ("compiled", 1)
        assert {mode for mode, _ in times.calls} == {"eager"}

    @pytest.mark.parametrize(
        ("factors", "threads", "tried"),
        [
            ({4: 0.9, 2: 0.5, 1: 0.6}, 2, {None, 4, 2, 1}),
            ({4: 1.2, 2: 0.5, 1: 0.5}, None, {None, 4}),
            ({4: 1.05, 2: 1.07, 1: 1.09}, 1, {None, 4, 2, 1}),
            ({4: 1.08, 2: 1.15, 1: 1.15}, 4, {None, 4, 2}),
        ],
        ids=["some", "all", "one", "half"],
    )
    def test_threads_are_halved_as_long_as_that_is_hardly_slower(self, clock, monkeypatch, factors, threads, tried):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
        times = clock(lambda mode, size: FAST)
        times.factors = {("eager", count): factor for count, factor in factors.items()}
        choice = choose_for()
        assert (choice.mode, choice.threads, set(times.threads)) == ("eager", threads, tried)
        assert choose_for(chunk_size=3).threads is None  # no measurement is asked for

    @pytest.mark.parametrize(("all_ms", "one_ms", "threads"), [(4.0, 3.0, 1), (4.0, 4.3, 1), (4.0, 4.5, None)])
    @pytest.mark.parametrize("mode", ["auto", "compiled"])
    def test_what_is_compiled_is_measured_on_all_threads_too(self, clock, monkeypatch, mode, all_ms, one_ms, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        times = clock(lambda mode, size: SLOW if mode == "eager" else all_ms)
        times.factors = {("eager", 1): 0.9, ("compiled", 1): one_ms / all_ms}
        choice = choose_for(iterations=LONG * 100, mode=mode)
        assert (choice.mode, choice.threads) == ("compiled", threads)
        compiled = {count for (how, _), count in zip(times.calls, times.threads, strict=True) if how == "compiled"}
        assert compiled == {1, None}

    @pytest.mark.parametrize("mode", ["auto", "compiled"])
    def test_a_short_compiled_run_is_compiled_once(self, clock, monkeypatch, mode):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        times = clock(lambda mode, size: SLOW if mode == "eager" else 2.0)
        times.factors = {("eager", 1): 0.9}
        choice = choose_for(iterations=round(0.99e3 * WORTH_COMPILING_AGAIN_S / 2.0), mode=mode)
        assert (choice.mode, choice.threads) == ("compiled", 1)
        assert {count for (mode, _), count in zip(times.calls, times.threads, strict=True) if mode == "compiled"} == {1}

    def test_compiled_is_weighed_on_its_own_best_number_of_threads(self, clock, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        times = clock(lambda mode, size: SLOW if mode == "eager" else SLOW / 2)
        times.factors = {("eager", 1): 0.9, ("compiled", 1): 3.0}
        choice = choose_for(iterations=LONG * 10)
        assert (choice.mode, choice.threads) == ("compiled", None)

    def test_one_task_has_one_candidate(self, clock):
        clock(lambda mode, size: FAST)
        choice = choose(learner_of(), tasks_of(1), iterations=WORTH_MEASURING)
        assert (choice.mode, choice.chunk_size) == ("eager", 1)


def test_a_choice_makes_an_engine():
    learner = learner_of()
    choice = choose(learner, tasks_of(3), mode="compiled", chunk_size=2, precision="bfloat16")._replace(threads=3)
    engine = choice.engine(learner)
    assert engine.learner is learner
    assert (engine.mode, engine.chunk_size, engine.precision, engine.threads) == ("compiled", 2, "bfloat16", 3)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    "how",
    [{}, {"iterations": 10**9, "chunk_size": None, "clipping": Clipping(1.0, None)}, {"mode": "compiled"}],
    ids=str,
)
def test_the_learner_is_left_as_it_was(how):
    """With the real engine: whichever is faster here."""
    learner, tasks = learner_of(), tasks_of(3)
    for i, p in enumerate(learner.parameters()):
        p.grad = None if i == 0 else torch.full_like(p, i)
    state, grads = copy.deepcopy(learner.state_dict()), [p.grad for p in learner.parameters()]
    kept, random_state = copy.deepcopy(grads), torch.get_rng_state()
    settings = (learner.training, learner.steps, learner.chunk_size, learner.inner)
    given = copy.deepcopy(tasks)
    choice = choose(learner, tasks, **{"iterations": WORTH_MEASURING} | how)
    assert choice.mode in ("eager", "compiled")
    assert choice.chunk_size in (1, 2, 3)
    assert choice.measured
    assert all(record["ms"] > 0 for record in choice.measured)
    assert_close(learner.state_dict(), state, rtol=0, atol=0)
    assert all(p.grad is grad for p, grad in zip(learner.parameters(), grads, strict=True))
    assert all(torch.equal(a, b) if a is not None else b is None for a, b in zip(grads, kept, strict=True))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert settings == (learner.training, learner.steps, learner.chunk_size, learner.inner)
    assert_close(tasks, given, rtol=0, atol=0)
    assert count_tasks(tasks) == 3


@pytest.mark.usefixtures("recorded")
def test_the_graph_that_is_measured_is_the_graph_of_the_run(monkeypatch):
    """An update with the run's clipping; without any said, meta-gradients alone."""
    graphs, free_layouts = [], tracing._free_layouts
    monkeypatch.setattr(tracing, "_free_layouts", lambda graph: (graphs.append(graph.code), free_layouts(graph)))
    learner, tasks = learner_of(), tasks_of(3)
    choice = choose(learner, tasks, chunk_size=None, iterations=10**9, clipping=Clipping(0.1, None))
    assert [record["mode"] for record in choice.measured] == ["eager", "compiled"]
    learner.chunk_size = choice.chunk_size  # as recipes do
    engine = choice._replace(mode="compiled").engine(learner)
    GradientUpdater(learner, engine, clip_value=0.1).update(tasks)
    measured, run = graphs
    assert measured == run

    graphs.clear()
    choose(learner, tasks, chunk_size=None, iterations=10**9)
    (alone,) = graphs
    assert alone != measured


def test_in_eager_mode_no_parameter_is_written_to():
    """A loss from before could not be differentiated any more; and an expanded tensor cannot be written to."""
    learner = learner_of()
    learner.model[-1].bias = nn.Parameter(torch.zeros((), dtype=torch.float64).expand(1), requires_grad=False)
    versions = [p._version for p in learner.parameters()]
    choose(learner, tasks_of(3), iterations=WORTH_MEASURING)
    assert [p._version for p in learner.parameters()] == versions


@pytest.mark.usefixtures("recorded")
def test_an_update_is_measured_on_the_threads_it_will_have(monkeypatch):
    seen, call = [], FusedAdam.__call__
    monkeypatch.setattr(FusedAdam, "__call__", lambda *args: (seen.append(torch.get_num_threads()), call(*args))[1])
    before = torch.get_num_threads()
    measure = tuning._Measurement(learner_of(), tasks_of(3), "float32", Clipping(None, None), 10**9)
    measure("compiled", 3, before + 1)
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("recorded")
def test_an_update_that_cannot_be_compiled_is_not_chosen(monkeypatch, caplog):
    def fail(self, tasks: Task):
        raise CannotCompileError("no compiler")

    monkeypatch.setattr(FusedAdam, "__call__", fail)
    choice = choose(learner_of(), tasks_of(3), chunk_size=None, iterations=10**9, clipping=Clipping(None, None))
    assert (choice.mode, choice.measured[-1]["ms"]) == ("eager", None)
    assert "no compiler" in caplog.text
