"""The command `headstart`: list, train, compare, evaluate, adapt, predict, export, report, serve.

Exit codes: 0 done, 1 failed at work, 2 wrong usage, 130 interrupted. Errors at work are one sentence on
standard error; `--debug` shows where they came from.
"""

import difflib
import functools
import json
import logging
import operator
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import torch
import tyro
from platformdirs import user_cache_dir
from tqdm.contrib.logging import logging_redirect_tqdm

from headstart import adapt_command, compare_command, export_command, recipes, serve_command, terminal
from headstart.allocator import keep_memory
from headstart.layers import Norm
from headstart.recipes import Recipe, work
from headstart.recipes.recipe import TEST_SEED
from headstart.recipes.supervised import Protocol
from headstart.rl.rollout import Budget
from headstart.training.run import Run
from headstart.training.trainer import Trainer
from headstart.usage import (
    Device,
    UsageError,
    check_data,
    check_idle,
    check_named,
    check_same_settings,
    device_for,
    flag,
    usual_recipe,
    with_learner,
)

R = TypeVar("R", bound=Recipe[Any])
Flag = tyro.conf.FlagCreatePairsOff[bool]

_DESCRIPTION = "Meta-learn an initialisation that gives any model a head start on a new task."

_log = logging.getLogger("headstart")


@dataclass(frozen=True)
class List:
    """List the recipes, with the published numbers of each."""

    json: Flag = False
    """Print one JSON array instead of a table."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Print them."""
        known = list(recipes.experiments().values())
        described = [terminal.described(e) for e in known]
        print(json.dumps(described, indent=2) if self.json else terminal.recipes_text(known))
        return 0


@dataclass(frozen=True)
class Train(Generic[R]):
    """Meta-train a recipe into a run folder. Its settings can be overridden, but not what its name stands for."""

    recipe: tyro.conf.Suppress[tyro.conf.Fixed[str]]
    """Name of the recipe."""
    settings: R
    out: Path | None = None
    """Run folder; runs/RECIPE unless given."""
    data: Path | None = None
    """Folder of data sets; the environment variable HEADSTART_DATA unless given."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    resume: Flag = False
    """Go on with the run in the folder; start it if there is no checkpoint yet."""
    smoke: Flag = False
    """A few small iterations of everything, to see that it works."""
    tensorboard: Flag = False
    """Write TensorBoard events too (needs the extra `tensorboard`)."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Train until the end or an interruption."""
        run, recipe, config, device, data = self.prepared()
        with run.alone():
            trainer = recipe.trainer(run, data, device)
            if run.resumable:
                trainer.resume()
                if trainer.iteration >= recipe.iterations:
                    _log.info(
                        "%s is finished: %d iterations. Give more --iterations to go on.", run.path, trainer.iteration
                    )
                    return 0
                _log.info("Resuming %s at iteration %d.", run.path, trainer.iteration)
            else:
                run.rewind(0)  # what a run that was killed before its first checkpoint left behind
            run.start(config)
            return self._train(trainer, run, recipe)

    def _train(self, trainer: Trainer, run: Run, recipe: Recipe[Any]) -> int:
        with (
            terminal.signals() as received,
            logging_redirect_tqdm(),
            terminal.progress(trainer, run, recipe.shown, self.tensorboard) as observe,
        ):
            finished = trainer.train(observe=observe, stop=lambda: bool(received))
        if not finished:
            _log.info("Stopped at iteration %d, saved. Add --resume to the same command to go on.", trainer.iteration)
            return 128 + received[0]
        _log.info("Done. Next: headstart evaluate %s", run.path)
        return 0

    def prepared(self) -> tuple[Run, Recipe[Any], dict[str, Any], torch.device, Path | None]:
        """Where to train what, as a recipe and as JSON, on which device and on which data, all of it checked."""
        run = Run(self.out or Path("runs") / self.recipe)
        usual = usual_recipe(recipes.experiment(self.recipe).recipe, self.settings)
        check_named(self.settings, usual, self.recipe)
        check_idle(self.settings, usual)
        recipe = self.settings.smoke() if self.smoke else self.settings
        resumed = self.resume and run.exists
        data = work.data_of(run, self.data) if resumed else self.data
        check_data(data, recipe, self.recipe)
        try:
            recipe = recipe.refitted(recipes.restore(run.config())) if resumed else recipe.fitted(data)
        except ValueError as error:
            raise UsageError(str(error)) from error
        config = work.config_of(self.recipe, recipe, data)
        device = device_for(self.device, recipe)
        try:
            recipe.check(device)
        except ValueError as error:  # settings that only the network can judge, such as name patterns
            raise UsageError(str(error)) from error
        if run.exists:
            if not self.resume:
                raise UsageError(f"{run.path} already holds a run. Go on with it by --resume, or choose another --out.")
            check_same_settings(run, config, recipe)
        return run, recipe, config, device, data


@dataclass(frozen=True)
class Evaluate:
    """Measure a run on held-out tasks, by the paper's protocol unless told otherwise."""

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""
    num_tasks: int | None = None
    """Number of test tasks; 600, or 40 in control, unless given."""
    steps: int | None = None
    """Inner steps; the recipe's protocol unless given."""
    rollouts: int | None = None
    """Episodes per task and inner step, in control; the recipe's protocol unless given."""
    budget: Budget | None = None
    """What is counted for it, in control: episodes, or the steps of those complete; the recipe's unless given."""
    shots: int | None = None
    """Support examples (per class); the recipe's unless given."""
    queries: int | None = None
    """Query examples (per class); the recipe's protocol unless given."""
    ways: int | None = None
    """Classes per task; the recipe's unless given. Only learners that make a head for each task take others."""
    norm: Norm | None = None
    """Batch norm's statistics: batch (as published), support, support+query, running; the recipe's unless given."""
    one_at_a_time: Flag = False
    """Predict each query as if it were the only one."""
    beside: Norm | None = None
    """A second norm, to be measured on the same tasks and reported beside the first."""
    checkpoint: work.Checkpoint = "best"
    """Best on validation tasks, or the last."""
    seed: int = TEST_SEED
    """Which fixed list of test tasks."""
    protocol: Protocol | None = None
    """Tasks drawn by the recipe (sampled), or Omniglot's own 20 runs of 20-way one-shot classification."""
    data: Path | None = None
    """Folder of data sets; the environment variable HEADSTART_DATA unless given."""
    device: Device = "auto"
    """Where to compute; auto takes a GPU if there is one."""
    json: Flag = False
    """Print exactly one JSON object on standard output."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Evaluate and print."""
        for name in ("num_tasks", "rollouts", "ways", "shots", "queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{flag(name)} must be at least 1, got {value}.")
        if self.steps is not None and self.steps < 0:
            raise UsageError(f"--steps must be 0 or more, got {self.steps}.")
        asked = self._asked()
        measured = [self._measured(asked)]
        shown = dict(measured[0])
        if self.beside is not None:
            measured.append(self._measured({**asked, "norm": self.beside}))
            shown["beside"] = {"norm": measured[1]["norm"], "per_step": measured[1]["per_step"]}
        try:  # neither a full disk nor a reader that has gone must cost the numbers
            print(json.dumps(shown, allow_nan=False) if self.json else terminal.evaluation_text(shown), flush=True)
        finally:
            for result in measured:
                work.keep_evaluation(Run(self.run_folder), result)
        return 0

    def _asked(self) -> dict[str, Any]:
        """The conditions that were given; all of them must mean something to the run's recipe."""
        config = Run(self.run_folder).config()
        recipe = recipes.restore(config)
        known = [field.name for field in fields(recipe.conditions)]
        names = ("num_tasks", "steps", "rollouts", "budget", "ways", "shots", "queries", "norm", "protocol", "seed")
        asked = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        asked |= {"one_at_a_time": True} if self.one_at_a_time else {}
        wrong = [name for name in asked if name not in known]
        wrong += ["beside"] if self.beside is not None and "norm" not in known else []
        if wrong:
            raise UsageError(
                f"{', '.join(map(flag, wrong))}: {self.run_folder} is a run of {config['recipe']}, "
                f"whose evaluation knows {', '.join(map(flag, known))}. Leave the others out."
            )
        check_data(work.data_of(Run(self.run_folder), self.data), recipe, config["recipe"])
        return asked

    def _measured(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = Run(self.run_folder)
        device = device_for(self.device, recipes.restore(run.config()))
        return work.evaluate_run(run, checkpoint=self.checkpoint, data=self.data, device=device, **asked)


@dataclass(frozen=True)
class Report:
    """Write a page with tables and figures of one or several runs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of runs, drawn together where of one problem, such as MAML, pretrained and oracle; or of comparisons."""
    out: Path
    """Folder for the page."""
    data: Path | None = None
    """Folder of data sets; the environment variable HEADSTART_DATA unless given."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Write the page."""
        from headstart.report import write_report  # an extra: imported where it is used

        if not self.runs:
            raise UsageError("Give at least one run folder.")
        print(write_report([Run(path) for path in self.runs], self.out, self.data))
        return 0


COMMANDS: dict[str, Any] = {
    "list": List,
    "train": Train,
    "compare": compare_command.Compare,
    "evaluate": Evaluate,
    "adapt": adapt_command.Adapt,
    "predict": adapt_command.Predict,
    "export": export_command.Export,
    "report": Report,
    "serve": serve_command.Serve,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    _log.setLevel(logging.INFO)  # what other libraries do is not for a person to read
    debug = "--debug" in arguments
    keep_memory()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(user_cache_dir("headstart")) / "compiled"))
    try:
        return _parsed(arguments).run()
    except UsageError as error:
        _log.error("headstart: %s", error)
        return 2
    except KeyboardInterrupt:
        _log.error("Interrupted.")
        return 130
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 (the boundary: whatever failed is told in one sentence)
        _log.error("headstart: %s", str(error) or type(error).__name__, exc_info=debug)
        return 1


def _parsed(arguments: list[str]) -> Any:
    """The command that `arguments` ask for; ends the process for `--help` (0) and wrong usage (2)."""
    name = arguments[0] if arguments else "--help"
    if name == "train":
        return _parsed_train(arguments[1:])
    if name == "compare":
        return compare_command.parsed(arguments[1:], _parsed_train)
    if name in COMMANDS:
        return tyro.cli(COMMANDS[name], args=arguments[1:], prog=f"headstart {name}")
    if name not in ("-h", "--help"):
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no command {name!r}.{hint} The commands are {', '.join(COMMANDS)}.")
    shown = {**COMMANDS, "train": Train[recipes.SinusoidRecipe]}
    named = [Annotated[command, tyro.conf.subcommand(key)] for key, command in shown.items()]
    command: Any = functools.reduce(operator.or_, named)
    return tyro.cli(command, args=[name], prog="headstart", description=_DESCRIPTION)


def _parsed_train(arguments: list[str]) -> Any:
    """The train command: which settings there are depends on the recipe, so that is looked up first."""
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            print("usage: headstart train RECIPE [OPTIONS]   (`headstart list` shows the recipes)\n")
            print("The options depend on the recipe; these are those of sinusoid-5shot.\n")
            arguments = ["sinusoid-5shot", "--help"]
        else:
            raise UsageError("Name a recipe first: `headstart train RECIPE ...`; `headstart list` shows them.")
    name = arguments[0]
    try:
        recipe = recipes.experiment(name).recipe
    except ValueError as error:
        raise UsageError(str(error)) from error
    if isinstance(recipe, recipes.SupervisedRecipe):
        recipe = with_learner(recipe, arguments[1:])
    return tyro.cli(
        Train[type(recipe)],
        default=Train(recipe=name, settings=recipe),
        args=arguments[1:],
        prog=f"headstart train {name}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
