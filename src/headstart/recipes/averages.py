"""Multi-task averages of the paper (appendix C.1, Table 2): regressors of one wave each, averaged, then fine-tuned.

From the paper: 500 models, each randomly initialised, trained on much data of its wave, to an error below 0.02;
unregularised, with weight decay, or pulled to the mean of the models; the average fine-tuned on 5 points, its step
size tuned. The rest is not said there, and chosen here: the network and its initialisation are those of the other
sinusoid recipes, the optimiser is theirs (Adam, 1e-3), with fresh points at each step.

Differs: all regressors train at once and equally long, not one after the other; see `algorithms.averages`.
Differs: training ends after a number of iterations, not when each error is below 0.02. `below_bound` in the metrics
is the share of regressors that are. Of 500, on a grid of 1,001 points at the end (counted by hand), it was 464 without
a regulariser (20,000 iterations), 473 with l2 and 472 pulled to the mean (10,000). The others are slow or stuck, more
of them of large amplitude: without a regulariser the share rose from 0.915 at 15,500 iterations to 0.928.
Differs: the paper makes the regulariser as strong as it can without harm to the regressors, and does not say how
strong that was: `coefficient`.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from headstart.algorithms.averages import Regularizer, SeparateModels, SeparateUpdater
from headstart.recipes.recipe import Experiment, Published, Recipe
from headstart.recipes.sinusoid import SinusoidRecipe
from headstart.tasks.fixed_waves import FixedWaves
from headstart.training.evaluate import evaluate
from headstart.training.run import Run
from headstart.training.trainer import Trainer, Validation

ERROR_BOUND = 0.02
"""A regressor has learned its wave when its mean squared error is below this."""

_IDLE = ["schedule", "clip_value", "clip_norm", "first_order", "mode", "precision", "chunk_size", "recompute"]
"""Settings of how meta-gradients are computed and applied: here there are none."""


@dataclass(frozen=True, kw_only=True)
class AveragedSinusoidRecipe(SinusoidRecipe):
    """Regressors of `meta_batch` sine waves, one each and always the same; their average is fine-tuned."""

    regularizer: Regularizer = "none"
    """What keeps the regressors alike in training: none, l2 (weight decay), or to-mean (pulled to their mean)."""
    coefficient: float = 0.0
    """Weight of the regulariser's sum of squares, beside the mean squared error."""
    shared_start: bool = False
    """Start all regressors from one initialisation; each from its own, as published, otherwise."""

    kind: ClassVar[str] = "averaged-sinusoid"
    shown: ClassVar[dict[str, str]] = {"meta_loss": "loss", "below_bound": f"below {ERROR_BOUND}"}
    named: ClassVar[tuple[str, ...]] = ("regularizer",)

    def __post_init__(self):
        super().__post_init__()
        self._at_least(0, "coefficient")
        needed = {"learner": "maml", "steps": 0, "oracle": False}
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name} must be {value}, got {getattr(self, name)}: each regressor learns one wave by plain "
                    "training, and only their average adapts."
                )

    @property
    def idle(self) -> dict[str, str]:
        """What only meta-gradients and a choice among checkpoints need; the weight of no regulariser."""
        told = super().idle | dict.fromkeys(_IDLE, "each regressor learns its wave by plain Adam")
        told["select_by"] = "the last checkpoint counts, not the best on validation tasks"
        if self.regularizer == "none":
            told["coefficient"] = "regularizer is none"
        return told

    def own_waves(self) -> FixedWaves:
        """What the regressors learn; `source` gives the new waves that their average is measured on."""
        return FixedWaves(self.source("train"), self.seed)

    def regressors(self) -> SeparateModels:
        """One network for each wave, initialised."""
        first = self.model()
        models = [first, *(first if self.shared_start else self.model() for _ in range(self.meta_batch - 1))]
        return SeparateModels(models, self.criterion, regularizer=self.regularizer, coefficient=self.coefficient)

    def trainer(self, run: Run, data: Path | None, device: torch.device | str) -> Trainer:
        """A trainer at iteration 0. Its checkpoints hold the average, its state to resume from every regressor.

        The paper averages once the regressors have learned their waves. So a later average counts as better,
        whatever its validation error, and the checkpoint `best` is that of the last validation, not a moment of
        training at which the average happened to be good.
        """
        torch.manual_seed(self.seed)
        regressors = self.regressors().to(device)
        updater = SeparateUpdater(regressors, lr=self.meta_lr, bound=ERROR_BOUND)
        tasks = self._validation_tasks(data, device)

        def parameters() -> dict[str, torch.Tensor]:
            return self.make_learner(regressors.average()).state_dict()

        def validate() -> Validation:
            learner = self.make_learner(regressors.average())
            chosen = evaluate(learner, iter(tasks), self.metric, self.select_step).per_step[self.select_step]
            return Validation(float(updater.updates), {"metric": self.metric_name, **chosen._asdict()})

        return Trainer(updater, parameters, self.own_waves(), validate, run, self.trainer_settings(), device)

    def trained_alike(self, other: Recipe[Any]) -> bool:
        """As for any recipe; the paper does not say the coefficient, which therefore may differ."""
        if not isinstance(other, AveragedSinusoidRecipe):
            return False
        return super().trained_alike(replace(other, coefficient=self.coefficient))


def experiments() -> list[Experiment]:
    """The three of Table 2: no regulariser, l2, and pulled to the mean."""
    table2 = "Finn et al. 2017, Table 2"
    plain = AveragedSinusoidRecipe(
        iterations=20_000,
        meta_batch=500,
        shots=5,
        queries=20,
        eval_queries=5,
        steps=0,
        select_step=0,
        inner_lr=0.01,
        tune_inner_lr=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2),
    )
    return [
        Experiment(
            f"sinusoid-5shot-averaged{suffix}",
            f"500 networks, each trained on one wave{how}; their mean, fine-tuned with the best step size",
            replace(plain, regularizer=regularizer, coefficient=coefficient, iterations=iterations),
            tuple(Published(step, value, table2) for step, value in zip((1, 5, 10), published, strict=True)),
        )
        for suffix, how, regularizer, coefficient, iterations, published in (
            ("", "", "none", 0.0, 20_000, (4.19, 3.85, 3.69)),
            ("-l2", " with weight decay", "l2", 1e-3, 10_000, (7.18, 5.69, 5.60)),
            ("-to-mean", " and pulled to their mean", "to-mean", 1e-3, 10_000, (2.91, 2.72, 2.71)),
        )
    ]
