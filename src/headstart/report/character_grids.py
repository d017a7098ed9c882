"""A few tasks of character classification, drawn: what was learned from, what was asked, what was answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from headstart.recipes import CharacterRecipe
from headstart.recipes.work import trained
from headstart.report import words
from headstart.report.commands import commands
from headstart.report.picture import Look, Picture
from headstart.report.records import RunRecord
from headstart.tasks.archives import DataNotFound
from headstart.types import Task, generator

SEED = 0
"""Seed of the tasks shown; they are the first it gives, not chosen."""
TASKS = 2
_MARGIN, _LINE, _GAP = 0.95, 0.27, 0.42  # in widths of an image: row labels, a line of text, between blocks


@dataclass(frozen=True)
class Answers:
    """Tasks and what the learner says of their queries."""

    tasks: Task
    steps: tuple[int, int]
    """Before adaptation, and after so many steps."""
    predicted: Tensor
    """Class indices `[tasks, 2, queries]`."""
    probability: Tensor
    """Of the predicted class, `[tasks, 2, queries]`."""

    def right(self, task: int, moment: int) -> int:
        """How many queries are answered rightly."""
        return int((self.predicted[task, moment] == self.tasks.query.targets[task]).sum())


def pictures(records: Sequence[RunRecord], data: Path | None) -> tuple[list[Picture], list[str]]:
    """One figure for each classification run with a checkpoint; and why, where there is none for want of data."""
    made, notes = [], []
    for record in records:
        if record.kind == "characters" and record.checkpoint:
            try:
                made.append(_picture(record, data))
            except DataNotFound as error:
                notes.append(f"No characters are shown for {record.label}, because the images are not here: {error}")
    return made, notes


def name(record: RunRecord) -> str:
    """Name of the run's figure."""
    return f"characters-{record.label}"


def answers(record: RunRecord, data: Path | None) -> tuple[CharacterRecipe, Answers, int]:
    """The run's recipe, what its learner answers on a few held-out tasks, and its iteration.

    Raises:
        DataNotFound: The recipe's images are not here.
    """
    assert record.checkpoint is not None
    recipe, learner, iteration = trained(record.run, record.checkpoint)
    assert isinstance(recipe, CharacterRecipe)
    source = recipe.source("test", data, queries=recipe.eval_queries)
    tasks = source.sample(TASKS, generator(SEED, "characters of the report"))
    steps = (0, recipe.eval_steps)
    scores = learner.predict(tasks, recipe.eval_steps)[:, list(steps)]
    probability, predicted = scores.softmax(-1).max(-1)
    return recipe, Answers(tasks, steps, predicted, probability), iteration


def _picture(record: RunRecord, data: Path | None) -> Picture:
    recipe, found, iteration = answers(record, data)
    shown = _shown(recipe)
    few = f" Of each class {shown} of {recipe.shots} support drawings and of {recipe.eval_queries} queries are shown."
    few = few if max(recipe.shots, recipe.eval_queries) > shown else ""
    after = words.steps(found.steps[1])
    return Picture(
        name=name(record),
        title=f"Support and queries: {record.label}",
        alt=_alt(recipe, found),
        caption=(
            f"{TASKS} tasks of characters never seen in training. A column is a class: its support drawings, and "
            f"queries of it. Under a query: the class predicted before adaptation and {after}, with its probability; "
            f"✓ is right, ✗ and a dashed frame are wrong. {record.label} at iteration {iteration:,}. The tasks are the "
            f"first that seed {SEED} gives, not chosen.{few}"
        ),
        commands=commands([record]),
        draw=lambda look: _draw(look, recipe, found),
    )


def _alt(recipe: CharacterRecipe, found: Answers) -> str:
    count = recipe.ways * recipe.eval_queries
    told = [
        f"Task {task + 1}: {found.right(task, 0)} of {count} queries right before adaptation, "
        f"{found.right(task, 1)} {words.steps(found.steps[1])}."
        for task in range(TASKS)
    ]
    return f"Drawings of {recipe.ways} characters per task, with predictions. {' '.join(told)}"


def _shown(recipe: CharacterRecipe) -> int:
    """How many drawings of each class are shown, at most, of the support and of the query set."""
    return 2 if recipe.ways <= 5 else 1


def _draw(look: Look, recipe: CharacterRecipe, found: Answers) -> Figure:
    columns = min(recipe.ways, 5 if look.narrow or recipe.ways <= 5 else 10)
    side_by_side = not look.narrow and recipe.ways <= 5
    across = TASKS if side_by_side else 1
    layout = _Layout(recipe, columns)
    inch = look.width / (across * (layout.width + 0.3))
    figure = Figure(figsize=(look.width, inch * layout.height * TASKS / across))
    for task in range(TASKS):
        column, row = (task, 0) if side_by_side else (0, task)
        down = TASKS // across
        ax = figure.add_axes((column / across, 1 - (row + 1) / down, 1 / across, 1 / down))
        ax.set(xlim=(0, layout.width + 0.3), ylim=(layout.height, 0), aspect="equal")
        ax.set_axis_off()
        _task(ax, look, layout, found, task)
    return figure


class _Layout:
    """Where things are in one task's drawing; the unit is the width of an image, y goes down."""

    def __init__(self, recipe: CharacterRecipe, columns: int):
        self.ways, self.shots, self.queries, self.columns = recipe.ways, recipe.shots, recipe.eval_queries, columns
        self.support_rows, self.query_rows = min(self.shots, _shown(recipe)), min(self.queries, _shown(recipe))
        self.query_height = 1 + 2 * _LINE + 0.12
        self.block_height = 0.3 + self.support_rows * 1.06 + 0.14 + self.query_rows * self.query_height + _GAP
        self.width = _MARGIN + 1.08 * columns
        self.height = 0.65 + self.block_height * -(-self.ways // columns) - _GAP

    def x(self, way: int) -> float:
        """Left edge of a class's column."""
        return _MARGIN + 1.08 * (way % self.columns)

    def top(self, way: int) -> float:
        """Upper edge of the block that holds a class."""
        return 0.5 + self.block_height * (way // self.columns)

    def support_y(self, way: int, row: int) -> float:
        """Upper edge of a support image."""
        return self.top(way) + 0.3 + 1.06 * row

    def query_y(self, way: int, row: int) -> float:
        """Upper edge of a query image."""
        return self.support_y(way, self.support_rows) + 0.14 + row * self.query_height


def _task(ax: Axes, look: Look, layout: _Layout, found: Answers, task: int) -> None:
    total = layout.ways * layout.queries
    told = f"{found.right(task, 0)} of {total} right before, {found.right(task, 1)} {words.steps(found.steps[1])}"
    ax.text(_MARGIN, 0.22, f"Task {task + 1}: {told}", fontsize=8.5, fontweight="bold", va="center")
    for way in range(layout.ways):
        x = layout.x(way)
        ax.text(x + 0.5, layout.top(way) + 0.13, ascii_uppercase[way], fontweight="bold", ha="center", va="center")
        for row in range(layout.support_rows):
            _image(ax, look, found.tasks.support.inputs[task, way * layout.shots + row], x, layout.support_y(way, row))
        for row in range(layout.query_rows):
            _query(ax, look, layout, found, task, way, row)
        if way % layout.columns == 0:
            _row_labels(ax, look, layout, found, way)


def _row_labels(ax: Axes, look: Look, layout: _Layout, found: Answers, way: int) -> None:
    labels = [(layout.support_y(way, 0) + 0.5, "support")]
    for row in range(layout.query_rows):
        y = layout.query_y(way, row)
        labels += [
            (y + 0.5, "query"),
            (y + 1 + 0.6 * _LINE, "before"),
            (y + 1 + 1.6 * _LINE, f"{found.steps[1]} steps"),
        ]
    for y, text in labels:
        ax.text(_MARGIN - 0.12, y, text, fontsize=7.5, color=look.muted, ha="right", va="center")


def _query(ax: Axes, look: Look, layout: _Layout, found: Answers, task: int, way: int, row: int) -> None:
    query = way * layout.queries + row  # queries are ordered by class
    x, y = layout.x(way), layout.query_y(way, row)
    _image(ax, look, found.tasks.query.inputs[task, query], x, y)
    for moment in range(2):
        guess = int(found.predicted[task, moment, query])
        right = guess == int(found.tasks.query.targets[task, query])
        sign, colour = ("✓", look.ink) if right else ("✗", look.bad)
        text = f"{sign} {ascii_uppercase[guess]} {100 * float(found.probability[task, moment, query]):.0f}%"
        ax.text(x + 0.5, y + 1 + (moment + 0.6) * _LINE, text, fontsize=7.5, color=colour, ha="center", va="center")
        if moment == 1 and not right:
            frame = Rectangle((x, y), 1, 1, fill=False, edgecolor=look.bad, linestyle="--", linewidth=1.8, zorder=3)
            ax.add_patch(frame)


def _image(ax: Axes, look: Look, image: Tensor, x: float, y: float) -> None:
    ink = image.mean(0) if image.shape[0] > 1 else image[0]
    paper_to_ink = LinearSegmentedColormap.from_list("ink", [look.paper, look.ink])
    ax.imshow(ink.numpy(), cmap=paper_to_ink, vmin=0, vmax=1, extent=(x, x + 1, y + 1, y))
    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=look.faint, linewidth=0.8, zorder=2))
