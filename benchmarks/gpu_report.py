"""Markdown of what a GPU session measured; nothing is measured here."""

from typing import Any

from benchmarks.gpu_modes import PRECISIONS
from benchmarks.gpu_session import STAND_IN

GOALS = (
    "Goals: ten times the speed of the per-task loop on omniglot and mini; 60,000 iterations of "
    "omniglot 5-way 1-shot within five minutes."
)


def markdown(result: dict[str, Any]) -> str:
    """Tables of all works, and the training.

    >>> machine = {"device": "a GPU", "cores": 2, "platform": "Linux", "python": "3.12", "torch": "2.11"}
    >>> print(markdown({"date": "today", "environment": machine, "works": {}, "training": {}}).splitlines()[0])
    # One GPU: a GPU
    """
    machine = result["environment"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("cuda", "cudnn") if name in machine)
    lines = [
        f"# One GPU: {machine['device']}",
        "",
        f"Measured {result['date']} by `bash benchmarks/gpu.sh`; {machine['cores']} cores, {machine['platform']}; "
        f"Python {machine['python']}, torch {machine['torch']}{', ' + versions if versions else ''}.",
        "",
        "Milliseconds are the median over blocks of meta-iterations on the same tasks, Adam's step included, with",
        "their range; times as fast is against the loop over tasks in the same precision, or in float32; peak memory",
        "is of tensors; reserved memory includes what a captured graph holds; the error is that of the meta-gradient",
        "against the eager one in float64. First calls of what compiles were made several at a time, imports excluded.",
        "",
        GOALS,
    ]
    for name, work in result["works"].items():
        lines += ["", f"## {name}", "", f"{work['description'].capitalize()}.", "", *_rows(work["systems"])]
        lines += _choice(work.get("choice"))
    return "\n".join([*lines, *_training(result["training"])]) + "\n"


def _rows(systems: dict[str, Any]) -> list[str]:
    rows = [
        "| system | ms | range | times as fast | peak MiB | reserved MiB | first call s | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for system, r in sorted(systems.items(), key=lambda item: PRECISIONS.index(item[0].rpartition(", ")[2])):
        if r.get("ms") is None:
            reason = r.get("failed") or r.get("skipped") or "not timed"
            rows.append(
                f"| {system} | {reason.replace('|', '/')} | | | | | {_number(r.get('first_call_s'), '.1f')} | "
                f"{_number(r.get('error'), '.0e')} |"
            )
            continue
        low, high = r["ms_range"]
        loop = systems.get(f"{STAND_IN}, {system.rpartition(', ')[2]}", systems.get(f"{STAND_IN}, float32", {}))
        speed = loop["ms"] / r["ms"] if loop.get("ms") else None
        rows.append(
            f"| {system} | {r['ms']:.3g} | {low:.3g} to {high:.3g} | {_number(speed, '.1f')} | "
            f"{_number(r.get('peak_mib'), '.0f')} | {_number(r.get('reserved_mib'), '.0f')} | "
            f"{_number(r.get('first_call_s'), '.1f')} | {_number(r.get('error'), '.0e')} |"
        )
    return rows


def _choice(choice: dict[str, Any] | None) -> list[str]:
    if not choice or "mode" not in choice:
        return []
    return ["", f"The engine's own choice: {choice['mode']}, {choice['chunk_size']} tasks at once."]


def _training(training: dict[str, Any]) -> list[str]:
    if "iterations" not in training or "settings" not in training:
        reasons = [failure["failed"] for failure in training.get("failures", [])] + [training.get("skipped", "")]
        return ["", "## Training", "", " ".join(filter(None, ["Not done.", *reasons]))]
    settings = training["settings"]
    lines = [
        "",
        "## Training: omniglot-5way-1shot",
        "",
        f"{training['data']}; mode {settings['mode']}, {settings['precision']}: {training['iterations']:,} of "
        f"{settings['iterations']:,} iterations in {training['training_s']:.0f} s, "
        f"{training['ms_per_iteration']:.2f} ms each, tasks drawn on the device; "
        f"60,000 take {training['seconds_for_60000']:.0f} s.",
        "",
        "| parameters | iteration | test tasks | accuracy after 1 step | after 3 steps |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for kind in ("last", "best"):
        if kind in training:
            r = training[kind]
            told = " | ".join(_accuracy(r["per_step"][step]) for step in (1, 3))
            lines.append(f"| {kind} | {r['iteration']:,} | {r['test_tasks']} | {told} |")
    published = training["published"]
    lines += [
        "",
        f"Published: {_accuracy({'mean': published['accuracy'], 'ci95': published['ci95']})} ({published['source']}).",
        "",
        "| iteration | seconds | validation accuracy |",
        "| ---: | ---: | ---: |",
    ]
    lines += [
        f"| {p['iteration']:,} | {p['training_s']:.1f} | {_accuracy({**p, 'mean': p['accuracy']})} |"
        for p in training["curve"]
    ]
    return lines


def _accuracy(r: dict[str, Any]) -> str:
    return "diverged" if r["mean"] is None else f"{100 * r['mean']:.1f} ± {100 * r['ci95']:.1f} %"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
