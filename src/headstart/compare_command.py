"""The command `headstart compare`: what is asked for, checked for every learner before the first one begins."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import tyro

from headstart import comparison, recipes, terminal
from headstart.comparison import Comparison, Member
from headstart.recipes import Recipe, SupervisedRecipe
from headstart.recipes.learners import LEARNERS, LearnerName
from headstart.training.run import Run
from headstart.usage import UsageError, flag

Flag = tyro.conf.FlagCreatePairsOff[bool]

_HEADER = """usage: headstart compare RECIPE [OPTIONS]   (`headstart list` shows the recipes)

Every option of `headstart train RECIPE` may be given too, but --learner and --resume: it then holds for each learner
that has a use for it, in place of what is usual for that learner.
"""
_SMOKE_TASKS, _TASKS = 20, 600

_log = logging.getLogger(__name__)


class TrainCommand(Protocol):
    """What is asked of the command that trains one of them."""

    @property
    def data(self) -> Path | None:
        """Folder of data sets."""
        ...

    def prepared(self) -> tuple[Run, Recipe[Any], dict[str, Any], torch.device, Path | None]:
        """Where to train what on which device and data; raises `UsageError` where that cannot work."""
        ...


Parse = Callable[[list[str]], TrainCommand]
"""Makes a command of the arguments after `headstart train`; ends the process where they are wrong."""


@dataclass(frozen=True)
class Compare:
    """Train several learners on one recipe, measure each in the same ways, and print a table."""

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    """Name of the recipe."""
    learners: tuple[LearnerName, ...] = ()
    """Which learners; all that go with the recipe unless given."""
    out: Path | None = None
    """Folder of the comparison, with a run folder for each learner; runs/compare-RECIPE unless given."""
    num_tasks: int | None = None
    """Number of test tasks; 600, or 20 with --smoke, unless given."""
    json: Flag = False
    """Print exactly one JSON object on standard output."""
    debug: Flag = False
    """Show the traceback of an error."""
    given: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """The other arguments, for `headstart train`."""
    parse: tyro.conf.Suppress[tyro.conf.Fixed[Any]] = None
    """A `Parse`."""

    def run(self) -> int:
        """Compare them, or go on with it; finished runs are not trained again."""
        compared = self._planned()
        with Run(compared.folder).alone():
            received = comparison.carry_out(compared, terminal.signals)
        content = compared.content()
        print(json.dumps(content, allow_nan=False) if self.json else terminal.comparison_text(content))
        if received is not None:
            _log.info("Stopped. The same command goes on from here.")
            return 128 + received
        if compared.errors:
            _log.error("Failed: %s.", ", ".join(compared.errors))
            return 1
        _log.info("Done. Next: headstart report %s --out page", compared.folder)
        return 0

    def _planned(self) -> Comparison:
        if self.num_tasks is not None and self.num_tasks < 1:
            raise UsageError(f"--num-tasks must be at least 1, got {self.num_tasks}.")
        try:
            recipe = recipes.experiment(self.recipe).recipe
        except ValueError as error:
            raise UsageError(str(error)) from error
        if not isinstance(recipe, SupervisedRecipe):
            raise UsageError(f"{self.recipe} learns to act: the learners compared are those that learn from examples.")
        taken = {"learner": "which learners are compared is said by --learners", "resume": "compare always goes on"}
        for name in _named(self.given):
            if name in taken:
                raise UsageError(f"{flag(name)}: {taken[name]}. Leave it out.")
        learners = tuple(dict.fromkeys(self.learners)) or _fitting(recipe)
        if len(learners) == 1 and not self.learners:
            raise UsageError(f"Only {learners[0]} goes with {self.recipe}: there is nothing to compare.")
        self._check_used(recipe, learners)
        folder = self.out or Path("runs") / f"compare-{self.recipe}"
        if Run(folder).exists:
            raise UsageError(f"{folder} holds a run: a comparison needs a folder of its own. Choose another --out.")
        planned = [self._member(recipe, name, folder) for name in learners]
        for member, _, _ in planned:
            if member.iteration > member.recipe.iterations:
                raise UsageError(
                    f"{member.run.path} is trained for {member.iteration} iterations already, and asked are "
                    f"{member.recipe.iterations}: learners are compared after the same number. Choose another --out."
                )
        smoke = "smoke" in _named(self.given)
        return Comparison(
            recipe=self.recipe,
            folder=folder,
            members=[member for member, _, _ in planned],
            given=_without(self.given, {"data", "debug"}),  # where the data lie is this machine's matter
            num_tasks=self.num_tasks or (_SMOKE_TASKS if smoke else _TASKS),
            data=planned[0][1],
            device=planned[0][2],
        )

    def _member(
        self, recipe: SupervisedRecipe, learner: LearnerName, folder: Path
    ) -> tuple[Member, Path | None, torch.device]:
        """A learner with the command that trains it, the folder of data sets, and the device."""
        idle = set(_with(recipe, learner).idle)
        used = [*_without(self.given, idle), *(["--debug"] if self.debug else [])]
        # First what is ours, so that a setting that takes several values cannot take them for its own.
        arguments = [self.recipe, "--learner", learner, "--out", str(folder / learner), "--resume", *used]
        command: TrainCommand = self.parse(arguments)
        run, settings, _, device, _ = command.prepared()
        assert isinstance(settings, SupervisedRecipe)
        return Member(learner, run, settings, ("train", *arguments)), command.data, device

    def _check_used(self, recipe: SupervisedRecipe, learners: Sequence[LearnerName]) -> None:
        """A setting that was given must mean something to one of them at least."""
        idle = set.intersection(*(set(_with(recipe, learner).idle) for learner in learners))
        unused = [flag(name) for name in _named(self.given) if name in idle]
        if unused:
            raise UsageError(f"{', '.join(unused)} would change nothing for {', '.join(learners)}. Leave it out.")


def parsed(arguments: list[str], parse_train: Parse) -> Compare:
    """The command that the arguments after `headstart compare` ask for; ends the process where they are wrong."""
    help_only = bool(arguments) and arguments[0] in ("-h", "--help")
    if help_only:
        print(_HEADER)
        arguments = ["RECIPE", "--help"]
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("Name a recipe first: `headstart compare RECIPE ...`; `headstart list` shows them.")
    name, rest = arguments[0], arguments[1:]
    known, given = tyro.cli(
        Compare, default=Compare(recipe=name), args=rest, prog=f"headstart compare {name}", return_unknown_args=True
    )
    return replace(known, given=tuple(given), parse=parse_train)


def _fitting(recipe: SupervisedRecipe) -> tuple[LearnerName, ...]:
    """The learners that go with the recipe."""
    found: list[LearnerName] = []
    for learner in LEARNERS:
        try:
            recipe.with_learner(learner).check(torch.device("cpu"))
        except ValueError as error:
            _log.info("Without %s. %s", learner, error)
        else:
            found.append(learner)
    return tuple(found)


def _with(recipe: SupervisedRecipe, learner: LearnerName) -> SupervisedRecipe:
    try:
        return recipe.with_learner(learner)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _named(tokens: Sequence[str]) -> list[str]:
    """The settings that options name.

    >>> _named(["--inner-lr", "0.1", "--mode=eager", "--no-first-order"])
    ['inner_lr', 'mode', 'first_order']
    """
    options = [token[2:].partition("=")[0] for token in tokens if token.startswith("--")]
    return [option.replace("-", "_").removeprefix("no_") for option in options]


def _without(tokens: Sequence[str], names: set[str]) -> list[str]:
    """The options but those that name one of `names`, whose values go too.

    >>> _without(["--smoke", "--adapt-only", "a", "b", "--rank", "2"], {"adapt_only"})
    ['--smoke', '--rank', '2']
    """
    kept: list[str] = []
    dropping = False
    for token in tokens:
        if token.startswith("--"):
            dropping = bool(names.intersection(_named([token])))
        if not dropping:
            kept.append(token)
    return kept
