"""How numbers and conditions are put into words, the same everywhere."""

import math
from collections.abc import Mapping
from typing import Any

from headstart.report.records import Result, RunRecord, changed_settings, is_smoke

_NORMS = {
    "batch": "norm from the queries",
    "support": "norm from the support set",
    "running": "norm from running averages",
}


def decimals(metric: str, mean: float) -> int:
    """Decimals that give `mean` three digits; two for a percentage or a return."""
    if metric in ("accuracy", "return"):
        return 2
    return min(6, max(0, 2 - math.floor(math.log10(abs(mean))))) if mean else 2


def value(metric: str, mean: float | None, ci95: float | None = None) -> str:
    """A result with its confidence interval; accuracy in percent.

    >>> value("accuracy", 0.98733, 0.0041)
    '98.73 ± 0.41 %'
    >>> value("mse", 0.55576, 0.0491398)
    '0.556 ± 0.049'
    >>> value("mse", 5.66e10)
    '5.7e+10'
    >>> value("return", -11.684, 1.9)
    '−11.68 ± 1.90'
    >>> value("mse", None)
    'diverged'
    """
    if mean is None:
        return "diverged"
    scale, unit = (100, " %") if metric == "accuracy" else (1, "")
    digits = decimals(metric, mean)
    style = f".{digits}f" if max(abs(mean), ci95 or 0) < 1e5 else ".1e"
    spread = "" if ci95 is None else f" ± {scale * ci95:{style}}"
    return f"{_minus(f'{scale * mean:{style}}')}{spread}{unit}"


def brief(error: float) -> str:
    """An error in two digits.

    >>> brief(0.0493), brief(1.0), brief(math.inf)
    ('0.049', '1.0', 'diverged')
    """
    return f"{error:#.2g}" if math.isfinite(error) else "diverged"


def published(metric: str, number: float) -> str:
    """A published number, in the digits it was published with.

    >>> published("accuracy", 0.987), published("mse", 0.35)
    ('98.7 %', '0.35')
    >>> published("return", -12.9)
    '−12.90'
    """
    if metric == "return":
        return _minus(f"{number:.2f}")
    return f"{100 * number:.1f} %" if metric == "accuracy" else f"{number:g}"


def difference(metric: str, mean: float, ci95: float, number: float) -> tuple[str, str]:
    """Ours minus the published number, and whether that is better, worse, or within our interval.

    An interval wider than the mean belongs to a few divergent tasks, and decides nothing.

    >>> difference("accuracy", 0.98733, 0.0041, 0.987)
    ('+0.03 points', 'within ±')
    >>> difference("mse", 0.55576, 0.0491398, 0.67)
    ('−0.114 (−17 %)', 'better')
    >>> difference("mse", 27.1, 47.6, 0.38)
    ('71 times', 'undecided')
    >>> difference("return", -13.68, 1.1, -11.68)
    ('−2.00', 'worse')
    """
    delta = mean - number
    sign = -1 if metric == "mse" else 1
    verdict = "better" if sign * delta > 0 else "worse"
    if abs(delta) <= ci95:
        verdict = "undecided" if metric == "mse" and ci95 >= mean else "within ±"
    if metric == "accuracy":
        return _minus(f"{100 * delta:+.2f} points"), verdict
    if metric == "return":
        return _minus(f"{delta:+.2f}"), verdict
    if mean > 10 * number:
        return f"{mean / number:.2g} times", verdict
    return f"{delta:+.{decimals(metric, mean)}f} ({100 * delta / number:+.0f} %)".replace("-", "−"), verdict


def trained_as(record: RunRecord) -> str:
    """The run's recipe, the folder if it has another name, and the settings that are not the recipe's.

    Settings of evaluation and of speed are left out: the one stands with each result, the other changes none.
    """
    ignored = ("chunk_size", "mode", "recompute", "threads", "log_every", "checkpoint_every")
    changed = {name: v for name, v in changed_settings(record).items() if not name.startswith("eval_")}
    changes = [f"{name} {setting(v)}" for name, v in changed.items() if name not in ignored]
    changes = ["smoke size"] if is_smoke(record) else changes
    folder = [] if record.label == record.recipe else [record.label]
    return f"{record.recipe} ({', '.join([*folder, *changes])})" if folder or changes else record.recipe


_WITH_NORMS = ("characters", "images")
"""Kinds of recipes whose networks have batch norm."""


def conditions(record: RunRecord, result: Result) -> list[str]:
    """What an evaluation was made under, part by part: examples, queries, batch norm; or rollouts, step sizes."""
    told = result.conditions
    if result.metric == "return":
        rates = list(dict.fromkeys((result.inner_lr, told["inner_lr_later"])))
        sizes = " then ".join(f"{rate:g}" for rate in rates[: result.steps])
        counting = " by time steps" if told["budget"] == "steps" else ""
        parts = [counted(told["rollouts"], "rollout") + counting + (" per inner step" if sizes else "")]
        return [*parts, f"step size {sizes}"] if sizes else parts
    ways = told.get("ways", record.settings.get("ways"))
    examples = f"{ways}-way {told['shots']}-shot" if ways else counted(told["shots"], "point")
    if not result.sampled:
        examples = "Omniglot's own 20 one-shot runs"
    parts = [examples, counted(told["queries"], "query", "queries") + (" per class" if ways else "")]
    parts += ["one at a time"] if told.get("one_at_a_time") else []
    return [*parts, str(_NORMS.get(told["norm"], told["norm"]))] if record.kind in _WITH_NORMS else parts


def protocol(record: RunRecord, result: Result) -> str:
    """The conditions of an evaluation and the number of tasks, in one line."""
    return ", ".join([*conditions(record, result), f"{result.num_tasks:,} tasks"])


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number of things.

    >>> counted(1, "point"), counted(15, "query", "queries")
    ('1 point', '15 queries')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def checkpoint(record: RunRecord, result: Result) -> str:
    """Which moment of the run was evaluated."""
    planned = record.settings.get("iterations", result.iteration)
    if planned == 0:
        return "untrained"
    name = "best on validation" if result.checkpoint == "best" else "last"
    return f"iteration {result.iteration:,} of {planned:,} ({name})"


def progress(record: RunRecord) -> str:
    """How far the run has come, and how long that took."""
    done, planned = record.iteration, record.settings.get("iterations", record.iteration)
    if planned == 0:
        return "not at all: the initialisation"
    told = f"{done:,} of {planned:,} iterations"
    return f"{told} in {duration(record.seconds)}" if done else "nothing logged yet"


def environment(record: RunRecord) -> str:
    """Versions and machine of the run."""
    return machine(record.environment)


def machine(found: Mapping[str, Any]) -> str:
    """Versions and machine, from an `environment.json`."""
    parts = [
        f"PyTorch {found['torch']}" if "torch" in found else "",
        f"Python {found['python']}" if "python" in found else "",
    ]
    parts += [str(found.get("gpu") or found.get("processor") or "")]
    parts += [counted(found[name], name[:-1]) for name in ("cores", "threads") if isinstance(found.get(name), int)]
    parts += [str(found.get("platform", ""))]
    return ", ".join(part for part in parts if part) or "not noted"


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> duration(0.26), duration(375), duration(8000)
    ('0.3 s', '6 min 15 s', '2 h 13 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def steps(count: int) -> str:
    """A number of gradient steps, in words.

    >>> steps(0), steps(1), steps(10)
    ('before', 'after 1 step', 'after 10 steps')
    """
    return "before" if count == 0 else f"after {count} step{'s' if count > 1 else ''}"


def _minus(text: str) -> str:
    """`text` with a minus sign where it begins with a hyphen."""
    return "−" + text[1:] if text.startswith("-") else text


def setting(content: Any) -> str:
    """The value of a setting.

    >>> setting((0.1, 0.2)), setting(70_000), setting(None)
    ('0.1 0.2', '70,000', 'None')
    """
    if isinstance(content, (list, tuple)):
        return " ".join(map(str, content))
    return f"{content:,}" if isinstance(content, int) and not isinstance(content, bool) else str(content)
