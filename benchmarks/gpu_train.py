"""Training of `omniglot-5way-1shot` with the paper's settings, as far as the time allows, all on one device.

The settings are those of the recipe of that name, written out here since recipes need more than PyTorch. The
tasks to validate and to test on are the recipe's own; those to train on are drawn on the device.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import headstart
from benchmarks.gpu_data import PREPARED, Characters, characters
from benchmarks.gpu_files import write_params
from benchmarks.gpu_modes import ModeName, PrecisionName, Update, update
from headstart.losses import accuracy
from headstart.models import Conv4
from headstart.tasks import ClassStore, Episodes
from headstart.training.evaluate import TEST, VALIDATION, StepResult, fixed_tasks, per_task, summary
from headstart.types import Params, Task, generator

CHECK_EVERY = 25
"""Iterations between looks at the clock."""


@dataclass(frozen=True)
class Settings:
    """What to train, and for how long."""

    seconds: float
    """Until everything is done, evaluation included."""
    mode: ModeName
    precision: PrecisionName = "float32"
    out: str = ""
    """Where to write parameters: a path to which names are appended; nothing is written where it is empty."""
    data: str = str(PREPARED)
    few_glyphs: bool = False
    iterations: int = 60_000
    meta_batch: int = 32
    filters: int = 64
    validate_every: int = 2000
    val_tasks: int = 200
    test_tasks: int = 600
    reserve_s: float = 15.0
    """Kept for the evaluation."""
    seed: int = 0


class Run:
    """A learner in training, and the curve so far."""

    def __init__(self, settings: Settings, device: str, data: Characters):
        self.settings, self.device = settings, device
        torch.manual_seed(settings.seed)
        self.learner = _learner(settings).to(device)
        self.source = _episodes(data.train.to(device))
        self.sampler = generator(settings.seed, "training tasks", device=device)
        validation = fixed_tasks(_episodes(data.val), settings.val_tasks, 1, VALIDATION, device)
        self.validation_tasks = list(validation)
        self.update: Update = update(self.learner, settings.mode, settings.precision)
        self.iteration, self.training_s, self.best_score, self.best_at = 0, 0.0, -1.0, 0
        self.best: Params = {}
        self.curve: list[dict[str, Any]] = []

    def advance(self, until: int, deadline: float) -> bool:
        """Train up to an iteration; returns False where the time was over first."""
        began = time.perf_counter()
        while self.iteration < until and time.perf_counter() < deadline:
            for _ in range(min(CHECK_EVERY, until - self.iteration)):
                self.update.step(self.source.sample(self.settings.meta_batch, self.sampler))
                self.iteration += 1
            if self.device != "cpu":
                torch.cuda.synchronize()
        self.training_s += time.perf_counter() - began
        if self.update.engine.mode != self.settings.mode.split()[0]:
            raise RuntimeError(f"mode {self.settings.mode} was given up for {self.update.engine.mode}")
        return self.iteration >= until

    def validate(self) -> None:
        """Add a point to the curve, and keep the best parameters so far."""
        result = _evaluated(self.learner, iter(self.validation_tasks), steps=3)[-1]
        score = -1.0 if result.mean is None or result.diverged else result.mean
        if score > self.best_score:
            self.best_score, self.best_at = score, self.iteration
            self.best = {name: value.clone() for name, value in self.learner.state_dict().items()}
        point = {"iteration": self.iteration, "training_s": round(self.training_s, 3)}
        self.curve.append(point | {"accuracy": result.mean, "ci95": result.ci95})


def train(settings: Settings, device: str, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Train, validating on the way, and evaluate the last and the best parameters on the test tasks.

    Raises:
        RuntimeError: The mode could not be used, or training diverged.
    """
    began = time.perf_counter()
    data = characters(Path(settings.data), few=settings.few_glyphs)
    run = Run(settings, device, data)
    deadline = began + settings.seconds - settings.reserve_s
    goes_on = run.advance(1, deadline)  # compiled or captured
    first_s, run.training_s = run.training_s, 0.0
    while goes_on and run.iteration < settings.iterations:
        due = (run.iteration // settings.validate_every + 1) * settings.validate_every
        goes_on = run.advance(min(due, settings.iterations), deadline)
        run.validate()
        tell({"first_call_s": first_s, "iterations": run.iteration, "curve": run.curve})
    answer = {
        "settings": {key: value for key, value in asdict(settings).items() if key not in ("out", "data")},
        "data": data.source,
        "first_call_s": first_s,
        "iterations": run.iteration,
        "training_s": run.training_s,
        "ms_per_iteration": 1e3 * run.training_s / max(1, run.iteration - 1),
        "seconds_for_60000": 60 * 1e3 * run.training_s / max(1, run.iteration - 1),
        "curve": run.curve,
        "published": {"accuracy": 0.987, "ci95": 0.004, "after_steps": 3, "source": "Finn et al. 2017, Table 1"},
    }
    return answer | _tested(run, data)


def _tested(run: Run, data: Characters) -> dict[str, Any]:
    """Test accuracy of the last parameters and of those best in validation, both written to files."""
    if any(not math.isfinite(float(p.detach().abs().max())) for p in run.learner.parameters()):
        raise RuntimeError(f"parameters are not finite after {run.iteration} iterations")
    answer: dict[str, Any] = {}
    last = {name: value.clone() for name, value in run.learner.state_dict().items()}
    for kind, iteration, values in (("last", run.iteration, last), ("best", run.best_at, run.best)):
        if not values:
            continue
        run.learner.load_state_dict(values)
        tasks = fixed_tasks(_episodes(data.test), run.settings.test_tasks, 0, TEST, run.device)
        per_step = [result._asdict() for result in _evaluated(run.learner, tasks, steps=3)]
        answer[kind] = {"iteration": iteration, "test_tasks": run.settings.test_tasks, "per_step": per_step}
        if run.settings.out:
            file = Path(f"{run.settings.out}-{kind}.f32")
            write_params(file, dict(run.learner.model.named_parameters()), {"iteration": iteration})
            answer[kind]["parameters"] = file.name
    return answer


def _evaluated(learner: headstart.MAML, batches: Iterator[Task], steps: int) -> list[StepResult]:
    """As `headstart.training.evaluate.evaluate`, without the digest of the tasks, for which that needs NumPy."""
    table = torch.cat([per_task(learner.predict(t, steps), t.query.targets, accuracy) for t in batches])
    return [summary(step, column) for step, column in enumerate(table.T)]


def _learner(settings: Settings) -> headstart.MAML:
    """The recipe's: batch norm's shift is meta-learned but not adapted."""
    return headstart.MAML(
        Conv4(5, filters=settings.filters),
        F.cross_entropy,
        inner=headstart.SGD(lr=2.0),
        steps=1,
        adapt_only=("*", "!body.*.1.bias"),
        norm="batch",
        vectorize="vmap",
    )


def _episodes(store: ClassStore) -> Episodes:
    return Episodes(store, ways=5, shots=1, queries=1, rotations="draw")
