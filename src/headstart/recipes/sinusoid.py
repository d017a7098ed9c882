"""The paper's regression problem: sine waves of unknown amplitude and phase (section 5.1, Table 2, Figures 2, 3, 6).

Differs: the pretrained and the oracle network learn from 10 points of each wave, whatever the number of shots;
the released code trains them on the support points.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from headstart.inputs.points import PointInputs
from headstart.models import MLP
from headstart.models.adapters import WithContext
from headstart.recipes.learners import LearnerName
from headstart.recipes.recipe import Experiment, Part, Published
from headstart.recipes.supervised import SupervisedRecipe
from headstart.tasks import Sinusoids


@dataclass(frozen=True, kw_only=True)
class SinusoidRecipe(SupervisedRecipe):
    """Regression of sine waves from a few points."""

    hidden: tuple[int, ...] = (40, 40)
    """Sizes of the hidden layers."""
    oracle: bool = False
    """Give the network amplitude and phase as inputs: the bound that adaptation is compared with."""

    kind: ClassVar[str] = "sinusoid"
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]] = "mse"

    @property
    def idle(self) -> dict[str, str]:
        """Settings of other learners, and what there is no batch norm for."""
        return super().idle | dict.fromkeys(("step_norms", "norm"), "the network has no batch norm")

    def usual(self, learner: LearnerName) -> dict[str, Any]:
        """As MAML, but for these; each is chosen on validation tasks after its own number of steps."""
        steps = {"maml++": 5, "reptile": 8, "imaml": 16}.get(learner)
        found: dict[str, Any] = {} if steps is None else {"steps": steps, "select_step": steps}
        special: dict[LearnerName, dict[str, Any]] = {
            "cavia": {"inner_lr": 1.0},  # Zintgraf et al. 2019, section 4.1
            "maml++": {"schedule": "cosine"},
            "imaml": {"eval_steps": 16},
        }
        return found | special.get(learner, {})

    def model(self) -> nn.Module:
        """The fully connected network; for CAVIA with a context vector among its inputs."""
        if self.learner == "cavia":
            return WithContext(MLP(1 + self.context_size, 1, self.hidden), self.context_size)
        return MLP(3 if self.oracle else 1, 1, self.hidden)

    def source(
        self,
        part: Part,
        data: Path | None = None,
        shots: int | None = None,
        queries: int | None = None,
        ways: int | None = None,
    ):
        """Sine waves; parts differ in their random streams alone."""
        shots, queries = self.examples(shots, queries)
        return Sinusoids(shots=shots, queries=queries, oracle=self.oracle)

    def inputs(self, seen: Mapping[str, Any]) -> PointInputs:
        """Points of a wave."""
        return PointInputs()


def experiments() -> list[Experiment]:
    """5, 10 and 20 shots; for each MAML, the pretrained network, the oracle and the context vector."""
    table2 = "Finn et al. 2017, Table 2"
    published_maml = {5: ((1, 0.67), (5, 0.38), (10, 0.35))}
    published_pretrained = {5: ((1, 2.41), (5, 2.23), (10, 2.19))}
    found = []
    for shots in (5, 10, 20):
        name = f"sinusoid-{shots}shot"
        maml = SinusoidRecipe(
            iterations=70_000, meta_batch=25, shots=shots, queries=10, steps=1, inner_lr=0.01, eval_queries=shots
        )
        joint = replace(maml, steps=0, select_step=0)
        oracle = replace(joint, oracle=True, eval_steps=0)
        tuned = replace(joint, tune_inner_lr=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1))
        found += [
            Experiment(
                name,
                f"Sine waves from {shots} points, 70,000 iterations",
                maml,
                tuple(Published(step, value, table2) for step, value in published_maml.get(shots, ())),
            ),
            Experiment(
                f"{name}-pretrained",
                "The same network trained on all waves jointly, then fine-tuned with the best step size",
                tuned,
                tuple(Published(step, value, table2) for step, value in published_pretrained.get(shots, ())),
            ),
            Experiment(f"{name}-oracle", "The same network given amplitude and phase", oracle),
            Experiment(
                f"{name}-context",
                "The same network with a context vector among its inputs, which alone adapts",
                maml.with_learner("cavia"),
            ),
        ]
    return found
