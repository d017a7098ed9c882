"""Recipes that learn by acting: their settings, how they are trained, and how they are measured."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from headstart.inner import SGD
from headstart.models.policy import Activation, GaussianPolicy
from headstart.recipes.recipe import TEST_SEED, VALIDATION_SEED, Device, Recipe
from headstart.rl.envs.locomotion import AntDirection, AntVelocity, HalfCheetahDirection, HalfCheetahVelocity
from headstart.rl.envs.navigation import Navigation
from headstart.rl.maml_rl import MAMLRL
from headstart.rl.meta_updates import PPO, MetaUpdate, PolicyGradient
from headstart.rl.objectives import Objective
from headstart.rl.problem import Problem
from headstart.rl.rollout import Budget, Rollouts
from headstart.rl.trpo import TRPO, Hessian
from headstart.training.evaluate import TEST, VALIDATION, fixed_tasks, summary
from headstart.training.run import Run
from headstart.training.trainer import Trainer, Validation
from headstart.types import Params, generator

Control = Literal["navigation-2d", "half-cheetah-velocity", "half-cheetah-direction", "ant-velocity", "ant-direction"]
SIMULATOR = ("frame_skip", "timestep", "velocity", "threads")
"""The settings that simulated robots look at, by the names that their problems have for them too."""


class Family(NamedTuple):
    """How a family of environments is made."""

    make: Callable[..., Problem]
    settings: tuple[str, ...] = ()
    """What it is told besides oracle and horizon."""


FAMILIES: dict[Control, Family] = {
    "navigation-2d": Family(Navigation),
    "half-cheetah-velocity": Family(HalfCheetahVelocity, SIMULATOR),
    "half-cheetah-direction": Family(HalfCheetahDirection, SIMULATOR),
    "ant-velocity": Family(AntVelocity, SIMULATOR),
    "ant-direction": Family(AntDirection, SIMULATOR),
}

MetaUpdateName = Literal["trpo", "policy-gradient", "ppo"]
SETTINGS_OF: dict[MetaUpdateName, tuple[str, ...]] = {
    "trpo": ("max_kl", "cg_iterations", "damping", "backtracks", "backtrack_ratio", "hessian", "fisher_fraction"),
    "policy-gradient": ("meta_lr",),
    "ppo": ("meta_lr", "epochs", "clip", "inner_kl"),
}
"""The settings that each meta-update looks at, by the names that its class has for them too."""


@dataclass(frozen=True)
class Conditions:
    """What can be chosen in an evaluation; None is as the recipe's published protocol has it."""

    num_tasks: int = 40
    steps: int | None = None
    rollouts: int | None = None
    budget: Budget | None = None
    seed: int = TEST_SEED


@dataclass(frozen=True, kw_only=True)
class ControlRecipe(Recipe[MAMLRL]):
    """Settings of a control experiment (Finn et al. 2017, section 5.3 and appendix A.2)."""

    problem: Control
    """Family of environments; the recipe's name stands for it."""
    rollouts: int
    """Episodes per task and inner step, in training: the paper's K."""
    budget: Budget = "steps"
    """What sampling counts: episodes, or steps, as released: episodes until there are rollouts x horizon time steps."""
    horizon: int = 200
    """Time steps of an episode, unless it ends before."""
    oracle: bool = False
    """Let the policy see the task: the bound that adaptation is compared with."""
    context: int = 0
    """Learned numbers appended to each observation; if there are any, they alone adapt. 0: all parameters adapt."""
    frame_skip: Literal[1, 5] = 1
    """Simulator steps per action: 1 as in the paper, 5 as in later environments."""
    timestep: float | None = None
    """Seconds of a simulator step; the robot's own unless given."""
    velocity: Literal["subtree", "position-difference"] = "subtree"
    """Velocity that rewards look at: of the whole body's centre of mass, as in the paper, or of the torso."""
    meta_update: MetaUpdateName = "trpo"
    """How the meta-parameters are updated: trpo as in the paper, policy-gradient or ppo, by Adam."""
    max_kl: float = 0.01
    """TRPO: bound on the mean KL divergence of the adapted policies, before and after the meta-update."""
    cg_iterations: int = 10
    """TRPO: iterations of conjugate gradient."""
    damping: float = 1e-5
    """TRPO: added to the diagonal of the Fisher matrix."""
    backtracks: int = 15
    """TRPO: step sizes tried before a meta-update is given up."""
    backtrack_ratio: float = 0.8
    """TRPO: each step size tried is that share of the one before."""
    hessian: Hessian = "exact"
    """TRPO: how Fisher-vector products are computed; the released code takes finite differences."""
    fisher_fraction: float = 1.0
    """TRPO: share of the states that Fisher-vector products are computed on."""
    meta_lr: float = 1e-3
    """Policy gradient and PPO: step size of Adam."""
    epochs: int = 5
    """PPO: gradient steps on each meta-batch."""
    clip: float = 0.3
    """PPO: how far the likelihood ratio counts from 1."""
    inner_kl: float = 5e-4
    """PPO: weight of the KL divergence between the policies that sampled the inner steps' episodes and the new ones."""
    discount: float = 0.99
    """Discount per time step of the returns that advantages are of; measured returns are not discounted."""
    gae_lambda: float = 1.0
    """Lambda of generalised advantage estimation."""
    objective: Objective = "log-likelihood"
    """Inner loss: mean log-likelihood times advantage, as in the paper, or likelihood ratio times advantage."""
    hidden: tuple[int, ...] = (100, 100)
    """Sizes of the policy's hidden layers."""
    activation: Activation = "relu"
    """Nonlinearity of the policy."""
    threads: int | None = None
    """Threads that step the simulators; as many as PyTorch uses unless given. Changes speed only."""
    eval_rollouts: int = 20
    """Episodes per task and inner step, in validation and evaluation."""
    eval_lr: float = 0.1
    """Step size of the first inner step, in validation and evaluation."""
    eval_lr_later: float = 0.05
    """Step size of the inner steps after the first, in validation and evaluation."""
    eval_steps: int = 3
    """Inner steps in evaluation."""
    val_tasks: int = 40
    """Validation tasks, the same each time."""
    validate_every: int = 10
    """Iterations between validations."""
    checkpoint_every: int = 10
    """Iterations between checkpoints."""
    log_every: int = 1
    """Iterations between lines of metrics."""

    kind: ClassVar[str] = "control"
    named: ClassVar[tuple[str, ...]] = ("problem",)
    speed: ClassVar[tuple[str, ...]] = ("threads",)
    metric_name: ClassVar[Literal["accuracy", "mse", "return"]] = "return"
    shown: ClassVar[dict[str, str]] = {"return_before": "return before", "return_after": "after"}
    devices: ClassVar[tuple[Device, ...]] = ("cpu",)
    reads_data: ClassVar[bool] = False
    conditions: ClassVar[type[Any]] = Conditions

    def __post_init__(self):
        super().__post_init__()
        self._at_least(1, "horizon", "rollouts", "eval_rollouts", "cg_iterations", "epochs", "backtracks")
        self._at_least(0, "iterations", "context")
        if self.threads is not None:
            self._at_least(1, "threads")
        for name in ("max_kl", "damping", "inner_lr", "meta_lr", "eval_lr", "eval_lr_later", "clip", "inner_kl"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, 0 or more, got {getattr(self, name)}.")
        for name in ("discount", "gae_lambda", "fisher_fraction", "backtrack_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        if self.timestep is not None and not 0 < self.timestep < 1:
            raise ValueError(f"timestep must lie between 0 and 1 seconds, got {self.timestep}.")
        if 0 in (self.max_kl, self.fisher_fraction):
            raise ValueError(f"max_kl and fisher_fraction must not be 0, got {self.max_kl}, {self.fisher_fraction}.")
        if self.context and self.steps == 0:
            raise ValueError("A context is for what adapts in training: give steps of at least 1, or no context.")

    @property
    def idle(self) -> dict[str, str]:
        """The other meta-updates' settings, what only simulators have, and the inner step where there is none."""
        told = {
            name: f"meta_update is {self.meta_update}"
            for names in SETTINGS_OF.values()
            for name in names
            if name not in SETTINGS_OF[self.meta_update]
        }
        known = FAMILIES[self.problem].settings
        told |= {name: f"{self.problem} has no simulator" for name in SIMULATOR if name not in known}
        if self.steps == 0:
            told["inner_lr"] = "steps is 0; for evaluation there is eval_lr"
        return told

    def family(self) -> Problem:
        """The environments.

        Raises:
            ImportError: They need the extra `rl`.
        """
        make, names = FAMILIES[self.problem]
        settings = {name: getattr(self, name) for name in names}
        return make(oracle=self.oracle, horizon=self.horizon, **settings)

    def make_learner(self) -> MAMLRL:
        """MAML on a Gaussian policy."""
        problem = self.family()
        return MAMLRL(
            self.make_policy(problem),
            problem,
            inner=SGD(self.inner_lr),
            steps=self.steps,
            rollouts=self.rollouts,
            budget=self.budget,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
            objective=self.objective,
            adapt_only="context" if self.context else "*",
        )

    def make_policy(self, problem: Problem) -> GaussianPolicy:
        """A policy, its weights drawn from PyTorch's own generator."""
        return GaussianPolicy(
            problem.observation_size, problem.action_size, self.hidden, self.activation, context=self.context
        )

    def updater(self, learner: MAMLRL) -> MetaUpdate:
        """The learner with its meta-update."""
        settings = {name: getattr(self, name) for name in SETTINGS_OF[self.meta_update]}
        made = {"trpo": TRPO, "policy-gradient": PolicyGradient, "ppo": PPO}[self.meta_update]
        return made(learner, seed=self.seed, **settings)

    def check(self, device: torch.device) -> None:
        """See that policy and environments can be made, and meta-updates computed as they are to be."""
        if self.meta_update == "trpo" and self.hessian != "exact" and self.fisher_fraction != 1:
            raise ValueError(
                f"{self.hessian} are taken of all states, and fisher_fraction is {self.fisher_fraction} here: "
                f"give both, --hessian {self.hessian} --fisher-fraction 1."
            )
        self.updater(self.make_learner()).learner.problem.environments(1, 1)

    def trainer(self, run: Run, data: Path | None, device: torch.device | str) -> Trainer:
        """A trainer at iteration 0, its policy initialised from the recipe's seed."""
        torch.manual_seed(self.seed)
        learner = self.make_learner()
        updater = self.updater(learner)
        tasks = _listed(learner.problem, self.val_tasks, VALIDATION_SEED, VALIDATION)

        def validate() -> Validation:
            rng = generator(VALIDATION_SEED, "validation rollouts")  # the same each time: less noise in the choice
            table = returns(self.trajectory(learner, tasks, self.select_step, self.eval_rollouts, rng))
            chosen = summary(self.select_step, table[:, -1])
            score = -math.inf if chosen.mean is None else chosen.mean
            return Validation(score, {"metric": self.metric_name, **chosen._asdict()})

        return Trainer(updater, learner.state_dict, learner.problem, validate, run, self.trainer_settings(), device)

    def evaluate(self, learner: MAMLRL, asked: Conditions, data: Path | None) -> dict[str, Any]:
        """Mean undiscounted return per task over the test tasks, after 0 to `steps` inner steps."""
        steps = self.eval_steps if asked.steps is None else asked.steps
        rollouts = self.eval_rollouts if asked.rollouts is None else asked.rollouts
        budget = self.budget if asked.budget is None else asked.budget
        tasks = _listed(learner.problem, asked.num_tasks, asked.seed, TEST)
        path = self.trajectory(learner, tasks, steps, rollouts, generator(asked.seed, "test rollouts"), budget)
        table = returns(path)
        return {
            "num_tasks": len(tasks),
            "rollouts": rollouts,
            "budget": budget,
            "seed": asked.seed,
            "tasks_digest": hashlib.sha256(tasks.contiguous().numpy().tobytes()).hexdigest()[:16],
            "inner_lr": self.eval_lr,
            "inner_lr_later": self.eval_lr_later,
            **({} if self.iterations else {"initialisations": len(tasks)}),
            "per_step": [summary(step, column)._asdict() for step, column in enumerate(table.T)],
        }

    def trajectory(
        self,
        learner: MAMLRL,
        tasks: Tensor,
        steps: int,
        rollouts: int,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Iterator[tuple[Params, Rollouts]]:
        """The learner's `trajectory`, with evaluation's step sizes and its way to count episodes.

        An untrained policy is drawn anew for each task: one alone may happen to run. Differs: most released test
        scripts have the same one for all tasks.
        """
        return learner.trajectory(
            tasks,
            steps,
            rollouts=rollouts,
            generator=rng,
            inners=[SGD(self.eval_lr if step == 0 else self.eval_lr_later) for step in range(steps)],
            budget=budget,
            streams=rollouts,  # as the released test scripts, which step so many environments of a task at once
            starts=None if self.iterations else self._drawn(learner.problem, len(tasks)),
        )

    def _drawn(self, problem: Problem, count: int) -> Params:
        """Initialisations, `[count, ...]`, of the recipe's seed and those after it."""
        policies = []
        with torch.random.fork_rng(devices=[]):
            for seed in range(self.seed, self.seed + count):
                torch.manual_seed(seed)
                policies.append(self.make_policy(problem))
        return {name: p.detach() for name, p in torch.func.stack_module_state(policies)[0].items()}

    def file_name(self, evaluation: Mapping[str, Any]) -> str:
        """Checkpoint, how many tasks and rollouts, what of them was counted, steps, seed."""
        names = ("checkpoint", "num_tasks", "rollouts", "budget", "seed")
        checkpoint, num_tasks, rollouts, budget, seed = (evaluation[name] for name in names)
        steps = len(evaluation["per_step"]) - 1
        return f"{checkpoint}-{num_tasks}tasks-{rollouts}rollouts-by-{budget}-{steps}steps-seed{seed}.json"

    def measured_alike(self, evaluation: Mapping[str, Any]) -> bool:
        """Same rollouts, counted alike, and step sizes."""
        alike = {
            "rollouts": self.eval_rollouts,
            "budget": self.budget,
            "inner_lr": self.eval_lr,
            "inner_lr_later": self.eval_lr_later,
        }
        if not self.iterations and "initialisations" not in evaluation:  # of one untrained policy
            return False
        return all(evaluation[name] == value for name, value in alike.items())

    def trained_alike(self, other: Recipe[Any]) -> bool:
        """Same environments, the same of them adapting or not, trained or untrained: by whatever meta-update."""
        names = ("problem", "horizon", "oracle", "context", "frame_skip", "timestep", "velocity", "steps")
        return (
            isinstance(other, ControlRecipe)
            and all(getattr(other, name) == getattr(self, name) for name in names)
            and (other.iterations == 0) == (self.iterations == 0)
        )

    def smoke(self) -> Self:
        """Two iterations of two tasks and two short episodes."""
        return replace(
            self,
            iterations=min(self.iterations, 2),
            meta_batch=2,
            rollouts=min(self.rollouts, 2),
            horizon=10,
            val_tasks=2,
            eval_rollouts=2,
            validate_every=1,
            checkpoint_every=1,
        )


def returns(path: Iterable[tuple[Params, Rollouts]]) -> Tensor:
    """Mean return of each task at each step of a trajectory, `[tasks, steps + 1]`, float64."""
    return torch.stack([seen.mean_returns().double() for _, seen in path], 1)


def _listed(problem: Problem, num_tasks: int, seed: int, purpose: str) -> Tensor:
    """The tasks that `seed` and `purpose` stand for, `[tasks, task]`."""
    return torch.cat(list(fixed_tasks(problem, num_tasks, seed, purpose)))
