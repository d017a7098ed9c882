"""What reports say of control runs by their files: tables, commands, returns by step and by iteration."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headstart import cli
from headstart.recipes import experiment, work
from headstart.report import (
    return_curves,
    return_histories,
    tables,
    words,
    write_report,
)
from headstart.report.commands import evaluate_command, train_command
from headstart.report.picture import Look
from headstart.report.records import RunRecord, read_records
from headstart.training.run import Run

CHEETAH = "half-cheetah-direction"
MEANS = {
    "": (-50.0, 290.0, 310.0, 320.0),
    "-pretrained": (-40.0, -20.0, -10.0, 20.0),
    "-random": (-30.0, 20.0, 60.0, 90.0),
    "-oracle": (440.0,),
}


def write_run(folder: Path, name: str, means: tuple[float, ...], *, rollouts: int | None = None, **changes) -> Run:
    """A folder of results only, evaluated by the recipe's protocol unless told otherwise."""
    known = experiment(name)
    recipe = replace(known.recipe, **changes)
    run = Run(folder)
    run.start(json.loads(json.dumps(work.config_of(name, recipe))))
    (run.path / "evaluations").mkdir()
    result = {
        "recipe": name,
        "checkpoint": "best",
        "iteration": recipe.iterations,
        "metric": "return",
        "num_tasks": 40,
        "rollouts": rollouts or recipe.eval_rollouts,
        "budget": recipe.budget,
        "seed": 0,
        "tasks_digest": "0" * 16,
        "inner_lr": recipe.eval_lr,
        "inner_lr_later": recipe.eval_lr_later,
        **({} if recipe.iterations else {"initialisations": 40}),
        "per_step": [{"step": s, "mean": m, "ci95": 9.0, "median": m, "diverged": 0} for s, m in enumerate(means)],
        "published": [published._asdict() for published in known.published],
    }
    (run.path / "evaluations" / "x.json").write_text(json.dumps(result))
    return run


def log(run: Run, accepted: tuple[int, ...] = (1, 1, 0, 1), *, adapts: bool = True) -> None:
    """Training lines of so many iterations, and validation at the last."""
    for iteration, taken in enumerate(accepted, start=1):
        before, after = -50.0 - iteration, 10.0 * iteration
        run.log({
            "kind": "train", "iteration": iteration, "seconds": 2.0 * iteration, "meta_loss": 0.0,
            "return_before": before if adapts else after, "return_after": after,
            "kl": 0.008 * taken, "accepted": float(taken),
        })  # fmt: skip
    told = {"metric": "return", "step": int(adapts), "mean": 35.0, "ci95": 3.0, "median": 35.0, "diverged": 0}
    run.log({"kind": "validation", "iteration": len(accepted), "seconds": 9.0, **told})


def records(*runs: Run) -> list[RunRecord]:
    return read_records(runs)


@pytest.fixture
def cheetahs(tmp_path) -> list[RunRecord]:
    """All four methods of one problem; results alone."""
    return records(*(write_run(tmp_path / (CHEETAH + m), CHEETAH + m, means) for m, means in MEANS.items()))


def only_axes(figure: Figure) -> Axes:
    (ax,) = figure.axes
    return ax


def lines(ax: Axes, style: str) -> list[list[float]]:
    """The y values of every line of that style which has any."""
    found = [line for line in ax.get_lines() if line.get_linestyle() == style]
    return [list(map(float, line.get_ydata())) for line in found if len(line.get_ydata())]


# Methods, words, tables, commands


def test_methods_are_told_from_settings(tmp_path, cheetahs):
    assert [record.method for record in cheetahs] == ["MAML", "pretrained", "random", "oracle"]
    run = write_run(tmp_path / "c", f"{CHEETAH}-context", (-40.0, -41.0, -42.0, -43.0))
    assert records(run)[0].method == "context vector"


def test_conditions_name_rollouts_and_step_sizes(cheetahs):
    told = [words.protocol(record, record.results[0]) for record in cheetahs]
    assert told[0] == "20 rollouts by time steps per inner step, step size 0.1 then 0.05, 40 tasks"
    assert told[3] == "20 rollouts by time steps, 40 tasks"  # the oracle takes no step
    assert words.checkpoint(cheetahs[2], cheetahs[2].results[0]) == "untrained"


def test_every_step_stands_in_the_full_table(cheetahs):
    table = tables.full_table(cheetahs)
    source = "Finn et al. 2017, data of Figures 4 and 5"
    assert f"| 1 | 290.00 ± 9.00 |  |  | 293.19 ({source}) | −3.19, within ± |" in table
    assert f"| 3 | 20.00 ± 9.00 |  |  | 19.57 ({source}) | +0.43, within ± |" in table
    assert f"| 0 | −30.00 ± 9.00 |  |  | −35.73 ({source}) | +5.73, within ± |" in table
    assert len(table.splitlines()) == 2 + 3 * 4 + 1


def test_more_return_is_better(tmp_path):
    run = write_run(tmp_path / "a", CHEETAH, (-50.0, 200.0, 400.0, 400.0))
    table = tables.full_table(records(run))
    assert "−93.19, worse |" in table
    assert "+86.52, better |" in table


def test_the_short_table_has_a_column_for_each_step(cheetahs):
    lines = tables.short_table(cheetahs).splitlines()
    assert lines[0] == "| return after so many steps (published) | iterations | 0 | 1 | 2 | 3 |"
    assert len(lines) == 2 + 4
    assert lines[2].startswith(f"| {CHEETAH} | 500 | −50.00 ± 9.00 (−50.69) | 290.00 ± 9.00 (293.19) |")
    assert lines[5] == f"| {CHEETAH}-oracle | 1,000 | 440.00 ± 9.00 (442.69) |  |  |  |"


def test_the_short_table_stands_beside_that_of_other_recipes(cheetahs, tmp_path):
    run = Run(tmp_path / "sinusoid-5shot")
    run.start(work.config_of("sinusoid-5shot", experiment("sinusoid-5shot").recipe))
    text = tables.short_table([*cheetahs, *records(run)])
    first, second = text.split("\n\n")
    assert first.startswith("| recipe | iterations |")
    assert second.startswith("| return after")


def test_a_published_number_stands_beside_its_own_protocol_only(tmp_path):
    (record,) = records(write_run(tmp_path / "a", CHEETAH, MEANS[""], rollouts=5))
    assert "293.19" not in tables.full_table([record])
    (picture,) = return_curves.pictures([record])
    assert "published" not in picture.alt
    assert not lines(only_axes(picture.draw(Look())), "--")


def test_commands_have_what_differs_from_the_usual(tmp_path, cheetahs):
    assert evaluate_command(cheetahs[0], cheetahs[0].results[0]) == f"headstart evaluate runs/{CHEETAH}"
    (record,) = records(write_run(tmp_path / "mine", CHEETAH, MEANS[""][:3], rollouts=5, frame_skip=5))
    told = evaluate_command(record, record.results[0])
    assert told == "headstart evaluate runs/mine --steps 2 --rollouts 5"
    command = shlex.split(train_command(record))
    assert command == ["headstart", "train", CHEETAH, "--frame-skip", "5", "--out", "runs/mine"]
    assert cli._parsed(command[1:]).settings == replace(experiment(CHEETAH).recipe, frame_skip=5)


# Return per gradient step


def test_all_methods_of_a_problem_are_one_figure(cheetahs):
    (picture,) = return_curves.pictures(cheetahs)
    assert picture.name == "return-per-step"
    ax = only_axes(picture.draw(Look()))
    ours, published = lines(ax, "-"), lines(ax, "--")
    for means in list(MEANS.values())[:3]:
        assert list(means) in ours
    assert [440.0, 440.0] in ours  # the oracle is flat
    assert [-50.69, 293.19, 313.48, 315.65] in published
    assert [442.69, 442.69] in published
    assert (len(ours), len(published)) == (4, 4)
    labels = {text.get_text() for legend in ax.figure.legends for text in legend.get_texts()}
    assert labels == {"MAML", "pretrained", "random", "oracle", "published", "95 % interval of the mean"}
    assert "MAML −50.00, 290.00, 310.00, 320.00 (published −50.69, 293.19, 313.48, 315.65)" in picture.alt


def test_published_steps_that_were_not_measured_are_left_out(tmp_path):
    run = write_run(tmp_path / "a", "navigation-2d", (-40.0, -12.0, -4.0, -3.0))  # published up to step 4
    (picture,) = return_curves.pictures(records(run))
    assert lines(only_axes(picture.draw(Look())), "--") == [[-40.41, -11.68, -3.33, -3.23]]


def test_each_problem_has_a_panel_of_the_one_figure(tmp_path, cheetahs):
    point = write_run(tmp_path / "point", "navigation-2d", (-40.0, -12.0, -4.0, -3.0))
    modern = write_run(tmp_path / "modern", CHEETAH, MEANS[""], frame_skip=5, velocity="position-difference")
    (picture,) = return_curves.pictures([*cheetahs, *records(point, modern)])
    figure = picture.draw(Look())
    seen = {ax.get_title(): lines(ax, "-") for ax in figure.axes if ax.get_visible()}
    assert list(seen) == [CHEETAH, "navigation-2d", f"{CHEETAH}, frame skip 5, velocity position-difference"]
    assert [len(drawn) for drawn in seen.values()] == [4, 1, 1]
    assert seen["navigation-2d"] == [[-40.0, -12.0, -4.0, -3.0]]
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["MAML", "pretrained", "random", "oracle", "95 % interval of the mean", "published"]
    assert "return in navigation-2d after 0 to 3 gradient steps. MAML −40.00, −12.00, −4.00, −3.00" in picture.alt


def test_two_runs_of_a_method_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / name, CHEETAH, MEANS[""]) for name in ("first", "second")]
    (picture,) = return_curves.pictures(records(*runs))
    ax = only_axes(picture.draw(Look(narrow=True)))
    assert len(lines(ax, "-")) == len(lines(ax, "-.")) == 1
    assert "MAML (first)" in picture.alt
    assert "MAML (second)" in picture.alt


# Learning curves


def test_returns_before_and_after_adaptation_over_iterations(tmp_path):
    run = write_run(tmp_path / "a", CHEETAH, MEANS[""])
    log(run)
    (picture,) = return_histories.pictures(records(run))
    left, right = picture.draw(Look()).axes
    drawn = lines(left, "-")
    assert [-51.0, -52.0, -53.0, -54.0] in drawn
    assert [10.0, 20.0, 30.0, 40.0] in drawn
    (points,) = [line for line in left.get_lines() if line.get_marker() == "o"]
    assert (list(points.get_xdata()), list(points.get_ydata())) == ([4.0], [35.0])
    (refused,) = [line for line in right.get_lines() if line.get_marker() == "x"]
    assert list(refused.get_xdata()) == [3]
    assert [0.01, 0.01] in lines(right, "--")  # the bound of this recipe
    assert "−51.00 before and 10.00 after adaptation at first" in picture.alt


def test_what_does_not_adapt_has_one_return(tmp_path):
    run = write_run(tmp_path / "a", f"{CHEETAH}-pretrained", MEANS["-pretrained"])
    log(run, adapts=False)
    (picture,) = return_histories.pictures(records(run))
    left, _ = picture.draw(Look()).axes
    assert {tuple(values) for values in lines(left, "-") if len(values) == 4} == {(10.0, 20.0, 30.0, 40.0)}
    assert "before adaptation" not in picture.caption


def test_both_panels_have_room_where_no_update_was_refused(tmp_path):
    run = write_run(tmp_path / "a", CHEETAH, MEANS[""])
    log(run, accepted=(1, 1, 1, 1))
    (picture,) = return_histories.pictures(records(run))
    figure = picture.draw(Look())
    figure.draw_without_rendering()
    assert all(ax.get_position().width > 0.35 for ax in figure.axes)


# The page


def test_results_alone_give_curves_and_a_sentence(cheetahs, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.report.picture._DPI", 50)
    text = write_report([record.run for record in cheetahs], tmp_path).read_text()
    assert "return-per-step.png" in {path.name for path in (tmp_path / "figures").iterdir()}
    assert "no checkpoint is in the folder" in text
