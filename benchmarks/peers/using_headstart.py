"""Headstart itself: a learner, the engine that computes its meta-gradient, and the updater that takes Adam's step."""

from typing import Literal

import headstart
from benchmarks.peers import Prepared
from benchmarks.works import Work, initial, restore
from headstart.training.engine import Mode, Precision
from headstart.training.fused import Clipping
from headstart.training.gradient import GradientUpdater
from headstart.training.tuning import choose
from headstart.types import Params


def prepare(
    work: Work,
    first_order: bool = False,
    mode: Mode = "eager",
    precision: Precision = "float32",
    recompute: bool | Literal["auto"] = "auto",
) -> Prepared:
    """The work as Headstart's recipes run it."""
    model = work.model()
    learner = headstart.MAML(
        model,
        work.loss,
        inner=headstart.SGD(lr=work.inner_lr),
        steps=work.steps,
        first_order=first_order,
        norm="batch",
        recompute=recompute,
    )
    start, tasks = initial(model), work.sample()
    # How many tasks at once and on how many threads, measured in preparation, as in a long run.
    chosen = choose(learner, tasks, mode=mode, precision=precision, iterations=60_000, clipping=Clipping(None, None))
    updater = GradientUpdater(learner, engine=chosen.engine(learner))

    def step() -> None:
        updater.update(tasks)

    def gradient() -> Params:
        """Read from Adam's first running mean: that of what is timed, whether or not Adam is part of its graph."""
        restore(model, start)
        for state in updater.optimizer.state.values():
            for value in state.values():
                value.zero_()
        updater.update(tasks)
        decay = updater.optimizer.param_groups[0]["betas"][0]
        return {name: updater.optimizer.state[p]["exp_avg"] / (1 - decay) for name, p in model.named_parameters()}

    return Prepared(step, gradient)
