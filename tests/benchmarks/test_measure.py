import json

import pytest

from benchmarks import measure, scaling, speed
from benchmarks.measure import Effort, compare
from benchmarks.session import WorkerError, WorkerProcess

BRIEF = Effort(repeats=2, block_s=0.0, budget_s=5.0, limit_s=60.0, threads=1)


def test_efforts_plan_few_long_or_many_short_blocks():
    effort = Effort(repeats=5, block_s=1.0, budget_s=25.0)
    assert effort.plan(0.001) == (5, 1000, True)
    assert effort.plan(4.0) == (3, 1, True)
    assert effort.plan(20.0) == (1, 1, False)
    assert effort.plan(100.0) == (1, 1, False)


def test_systems_are_compared_in_processes_of_their_own():
    lines = []
    result = compare(["plain loop float32"], "sinusoid", BRIEF, overrides={"tasks": 2, "width": 4}, report=lines.append)
    measured = result["systems"]["plain loop float32"]
    assert measured["error"] < 1e-4
    assert measured["ms_range"][0] <= measured["ms"] <= measured["ms_range"][1]
    assert measured["tasks_per_s"] == pytest.approx(2000 / measured["ms"])
    assert len(measured["ms_blocks"]) == 2
    assert result["setting"]["width"] == 4
    assert "start" in lines[0]
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_what_a_worker_cannot_do_is_told():
    with WorkerProcess(threads=1) as worker, pytest.raises(WorkerError, match="first command must be `prepare`"):
        worker.ask("first", 60)
    with WorkerProcess(threads=1) as worker, pytest.raises(WorkerError, match="first took over 0 s"):
        worker.ask("first", 0.01)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    asked = []

    def interrupted(systems, name, effort, **_):
        asked.append(name)
        if asked.count(name) == 1 and name == "transformer":
            raise KeyboardInterrupt
        return {"systems": {system: {"ms": 1.0} for system in systems}}

    monkeypatch.setattr(speed, "compare", interrupted)
    out, works = tmp_path / "speed.json", ["sinusoid", "transformer"]
    with pytest.raises(KeyboardInterrupt):
        speed.measure_works(out, works, ["JAX"], BRIEF)
    speed.measure_works(out, works, ["JAX"], BRIEF)
    assert asked == ["sinusoid", "transformer", "transformer"]
    assert set(json.loads(out.read_text())["works"]) == set(works)
    speed.measure_works(out, ["sinusoid"], ["JAX", "higher"], BRIEF)  # another system: the work is measured anew
    assert asked[3:] == ["sinusoid"]
    with pytest.raises(SystemExit, match="other effort"):
        speed.measure_works(out, works, ["JAX"], Effort(repeats=9, threads=1))


def test_growth_stops_where_a_system_gave_up(tmp_path, monkeypatch):
    asked = []

    def grown(systems, name, effort, *, overrides, **_):
        asked.append((tuple(systems), overrides["steps"]))
        failing = {"failed": "first took over 1 s"}
        return {"systems": {s: failing if s == "JAX" and overrides["steps"] > 1 else {"ms": 1.0} for s in systems}}

    monkeypatch.setattr(scaling, "compare", grown)
    out = tmp_path / "growth.json"
    scaling.measure_axis(out, scaling.AXES["steps"], (1, 5, 20), ["TorchOpt", "JAX"], BRIEF)
    assert asked == [(("TorchOpt", "JAX"), 1), (("TorchOpt", "JAX"), 5), (("TorchOpt",), 20)]
    scaling.measure_axis(out, scaling.AXES["steps"], (1, 5, 20), ["TorchOpt", "JAX"], BRIEF)
    assert len(asked) == 3
    assert list(json.loads(out.read_text())["works"]["steps"]["points"]) == ["1", "5", "20"]


class Pretending:
    """A worker process that is none: it answers at once, and fails to compute the reference."""

    def __init__(self, threads):
        self.system = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, limit_s, **arguments):
        if do == "gradient":
            raise WorkerError("no memory")
        self.system = arguments.get("system", self.system)
        if do == "block" and self.system == "JAX":
            raise WorkerError("block took over 60 s")
        answers = {
            "prepare": {"prepare_s": 1.0},
            "first": {"first_call_s": 9.0},
            "block": {"seconds": 0.25, "peak_mib": 7.0},
        }
        return answers.get(do, {})

    def stop(self):
        pass


def test_a_failure_costs_what_failed_and_no_more(monkeypatch):
    monkeypatch.setattr(measure, "WorkerProcess", Pretending)
    lines = []
    result = compare(["TorchOpt", "JAX"], "sinusoid", BRIEF, report=lines.append)
    assert lines[0] == "  TorchOpt: start 10.0 s, then 250.0 ms"
    assert result["failed_references"] == {"False": "no memory"}
    assert result["systems"]["TorchOpt"]["ms"] == 250
    assert result["systems"]["TorchOpt"]["tasks_per_s"] == 100
    assert "error" not in result["systems"]["TorchOpt"]
    assert result["systems"]["JAX"] == {"prepare_s": 1.0, "first_call_s": 9.0, "failed": "block took over 60 s"}
