"""The training loop, one for every learner and every domain."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from headstart.training.checkpoint import load_state, save_parameters, save_state
from headstart.training.run import Run
from headstart.types import Metrics, NonFiniteError, TaskSource, Updater, generator

_log = logging.getLogger(__name__)


class Validation(NamedTuple):
    """How good the learner is now: a score (more is better) to choose the best by, and numbers to log."""

    score: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class TrainerSettings:
    """How long, and how often what is done."""

    iterations: int
    meta_batch: int
    seed: int
    validate_every: int
    checkpoint_every: int
    log_every: int


class TrainingStoppedError(RuntimeError):
    """Training cannot go on; the message names the iteration and the task."""


class Trainer:
    """Drives an updater over meta-batches, and keeps everything a run is made of.

    Args:
        updater: The learner with its update.
        parameters: The learner's state dict, now: what the checkpoints hold for use.
        source: Where training tasks come from.
        validate: Scores the learner on validation tasks.
        run: Folder of the run.
        settings: Lengths and intervals.
        device: Where tasks are drawn.
    """

    def __init__(
        self,
        updater: Updater,
        parameters: Callable[[], dict[str, torch.Tensor]],
        source: TaskSource,
        validate: Callable[[], Validation],
        run: Run,
        settings: TrainerSettings,
        device: torch.device | str = "cpu",
    ):
        self.updater, self.parameters, self.source, self.validate = updater, parameters, source, validate
        self.run, self.settings = run, settings
        self.sampler = generator(settings.seed, "training tasks", device=device)
        self.iteration, self.seconds, self.best = 0, 0.0, float("-inf")
        self.recent: list[Metrics] = []

    def resume(self) -> None:
        """Take up the state of the run's last checkpoint, to go on with the same numbers."""
        state = load_state(self.run.checkpoints)
        self.updater.load_state_dict(state["updater"])
        self.sampler.set_state(state["sampler"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self.iteration, self.seconds, self.best = state["iteration"], state["seconds"], state["best"]
        self.best = float("-inf") if self.best is None else self.best
        self.recent = state["recent"]
        self.run.rewind(self.iteration)

    def train(
        self, *, observe: Callable[[int, Metrics], None] = lambda *_: None, stop: Callable[[], bool] = lambda: False
    ) -> bool:
        """Train until the end or until `stop()`; returns whether the end was reached.

        Raises:
            TrainingStoppedError: A loss or gradient was not finite. The last checkpoint is kept as it was.
            FileError: The run folder cannot be written.
        """
        last = self.settings.iterations
        if last == self.iteration == 0:  # nothing to learn: the initialisation is what is kept
            self._bookkeeping(final=True)
        while self.iteration < last and not stop():
            began = time.perf_counter()
            tasks = self.source.sample(self.settings.meta_batch, self.sampler)
            try:
                metrics = self.updater.update(tasks)
            except NonFiniteError as error:
                raise TrainingStoppedError(
                    f"Stopped at iteration {self.iteration + 1}: {error}. An earlier checkpoint, if there is one, "
                    "is kept. Smaller steps may help: inner_lr, meta_lr, clip_norm or max_kl, as the recipe has them."
                ) from error
            self.iteration += 1
            self.seconds += time.perf_counter() - began
            self.recent.append(metrics)
            observe(self.iteration, metrics)
            self._bookkeeping(final=self.iteration == last)
        if self.iteration < last:
            self.save()
        return self.iteration >= last

    def save(self) -> None:
        """Write the last checkpoint: parameters to use, and the state to resume from."""
        save_parameters(self.run.checkpoints, "last", self.parameters(), self._about())
        state = {
            "updater": self.updater.state_dict(),
            "sampler": self.sampler.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": None if self.best == float("-inf") else self.best,
            "recent": self.recent,
        }
        save_state(self.run.checkpoints, state)

    def _bookkeeping(self, final: bool) -> None:
        due = {name: final or self.iteration % every == 0 for name, every in self._intervals().items()}
        if due["log"] and self.recent:
            means = {key: sum(m[key] for m in self.recent) / len(self.recent) for key in self.recent[0]}
            self.run.log({"kind": "train", "iteration": self.iteration, "seconds": round(self.seconds, 3), **means})
            self.recent = []
        if due["validate"]:
            score, metrics = self.validate()
            self.run.log(
                {"kind": "validation", "iteration": self.iteration, "seconds": round(self.seconds, 3), **metrics}
            )
            _log.info("Iteration %d: validation %s", self.iteration, ", ".join(f"{k} {v}" for k, v in metrics.items()))
            if score > self.best:
                self.best = score
                save_parameters(
                    self.run.checkpoints, "best", self.parameters(), {**self._about(), "validation": metrics}
                )
        if due["checkpoint"]:
            self.save()

    def _intervals(self) -> dict[str, int]:
        settings = self.settings
        return {"log": settings.log_every, "validate": settings.validate_every, "checkpoint": settings.checkpoint_every}

    def _about(self) -> dict[str, Any]:
        return {"iteration": self.iteration, "seconds": round(self.seconds, 3)}
