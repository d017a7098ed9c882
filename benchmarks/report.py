"""Tables and plots of what `speed.py` and `scaling.py` measured; nothing is measured here.

    python -m benchmarks.report [README.md ...]

reads the newest `speed-*.json` and `growth-*.json` of `benchmarks/results/`, writes `speed.md`, `growth.md`,
`summary.md` and plots beside them, and puts the summary between the markers `<!-- benchmarks:begin -->` and
`<!-- benchmarks:end -->` of each file named.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from headstart.training.files import read_json, write_atomically

RESULTS = Path(__file__).parent / "results"
YARDSTICK = "plain loop float32"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
SUMMARY = (
    "Headstart compiled",
    "Headstart eager",
    "TorchOpt",
    "TorchOpt vmap",
    "parallel-metalearn",
    "learn2learn",
    "higher",
    "JAX",
)
NOTE = "† meta-gradient further from the float64 loop's than ten times what single precision explains."


def suspicious(work: dict[str, Any], system: str) -> bool:
    """Whether the meta-gradient's error is over ten times that of a plain loop in float32 (and over 1e-5)."""
    if "error" not in work["systems"][system]:
        return False
    error = work["systems"][system]["error"]
    yardstick = work["systems"].get(YARDSTICK, {}).get("error") or 0.0
    return error is None or error > max(1e-5, 10 * yardstick)


def heading(result: dict[str, Any]) -> str:
    """Where and with what was measured."""
    machine = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"Measured {result['date']} on {machine['processor']}, {machine['threads']} threads, {machine['platform']}; "
        f"Python {machine['python']}, torch {machine['torch']}; {versions}. Made by `make bench`."
    )


def speed_table(result: dict[str, Any]) -> str:
    """Every number of every work."""
    lines = [
        "# Speed of a meta-iteration",
        "",
        heading(result),
        "",
        "Milliseconds are the median over blocks, with their range; peak memory is what the process held at most",
        "while it was timed, above what it held after importing; start is the time from there to the end of the first",
        "iteration: building, measuring, compiling; the error is that of the meta-gradient, relative, against a plain",
        "loop in float64 of the same order.",
        "",
        "![Milliseconds per meta-iteration](speed.png)",
    ]
    for name, work in result["works"].items():
        lines += ["", f"## {name}", "", work["description"].capitalize() + ".", "", *_rows(work)]
    return "\n".join([*lines, "", NOTE]) + "\n"


def _rows(work: dict[str, Any]) -> list[str]:
    rows = [
        "| system | ms | range | tasks/s | peak MiB | start s | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for system, r in work["systems"].items():
        if "ms" not in r:
            rows.append(f"| {system} | {r.get('failed', 'not measured').replace('|', '/')} | | | | | |")
            continue
        low, high = r["ms_range"]
        error = "not finite" if r.get("error", 0) is None else f"{r['error']:.1e}" if "error" in r else ""
        rows.append(
            f"| {system} | {figure(r['ms'])} | {figure(low)} to {figure(high)} | {figure(r['tasks_per_s'])} "
            f"| {r['peak_mib']:,.0f} | {r['prepare_s'] + r['first_call_s']:.1f} "
            f"| {error}{' †' if suspicious(work, system) else ''} |"
        )
    return rows


def summary(result: dict[str, Any]) -> str:
    """Milliseconds per meta-iteration, a row per work and a column per system."""
    systems = [s for s in SUMMARY if any(s in work["systems"] for work in result["works"].values())]
    lines = [
        f"Milliseconds per second-order meta-iteration, {result['date']}, {result['environment']['processor']}, "
        f"{result['environment']['threads']} threads (less is better):",
        "",
        f"| work | {' | '.join(systems)} |",
        f"| --- |{' ---: |' * len(systems)}",
    ]
    for name, work in result["works"].items():
        cells = [_cell(work, system) for system in systems]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    marked = any("†" in line for line in lines)
    return "\n".join(lines + (["", NOTE] if marked else [])) + "\n"


def _cell(work: dict[str, Any], system: str) -> str:
    measured = work["systems"].get(system, {})
    if "ms" not in measured:
        return "failed" if "failed" in measured else ""
    fastest = min(r["ms"] for s, r in work["systems"].items() if s in SUMMARY and "ms" in r)
    text = figure(measured["ms"])
    return (f"**{text}**" if measured["ms"] == fastest else text) + (" †" if suspicious(work, system) else "")


def growth_table(result: dict[str, Any]) -> str:
    """Time and memory at every point of every axis."""
    lines = ["# How cost grows", "", heading(result), "", "![Time and memory](growth.png)"]
    for name, axis in result["works"].items():
        systems = list(dict.fromkeys(s for point in axis["points"].values() for s in point))
        lines += ["", f"## {name}", "", f"All else as in {axis['work']}: {axis['description']}.", ""]
        lines += [f"| {name} | {' | '.join(systems)} |", f"| --- |{' ---: |' * len(systems)}"]
        for value, point in axis["points"].items():
            cells = (_grown(point.get(system, {})) for system in systems)
            lines.append(f"| {value} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "Each cell: milliseconds per meta-iteration, and peak MiB."]) + "\n"


def _grown(measured: dict[str, Any]) -> str:
    if "ms" in measured:
        return f"{figure(measured['ms'])} ms, {measured['peak_mib']:,.0f} MiB"
    return measured.get("failed", "").replace("|", "/")


def figure(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def replace_summary(text: str, table: str) -> str:
    """`text` with what is between the markers replaced.

    Raises:
        ValueError: There is not exactly one pair of markers.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"The text needs the markers {BEGIN} and {END}, once each and in this order.")
    return f"{text[: text.index(BEGIN)]}{BEGIN}\n{table}{text[text.index(END) :]}"


def newest(kind: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The newest result of a kind, a full one rather than a quick one."""
    files = sorted(folder.glob(f"{kind}-*.json"), key=lambda path: ("quick" not in path.stem, path.stem))
    return read_json(files[-1]) if files else None


def main(arguments: Sequence[str], folder: Path = RESULTS) -> None:
    """Write all tables and plots, and the summary into the files named."""
    speed, growth = newest("speed", folder), newest("growth", folder)
    if speed is None:
        raise SystemExit(f"There is no speed-*.json in {folder}: run `make bench` first.")
    table = summary(speed)
    write_atomically(folder / "speed.md", speed_table(speed).encode())
    write_atomically(folder / "summary.md", table.encode())
    wrong = {name: {s for s in work["systems"] if suspicious(work, s)} for name, work in speed["works"].items()}
    plots.speed(speed, wrong, folder / "speed.png")
    if growth is not None:
        write_atomically(folder / "growth.md", growth_table(growth).encode())
        plots.growth(growth, folder / "growth.png")
    for file in map(Path, arguments):
        try:
            write_atomically(file, replace_summary(file.read_text(), table).encode())
        except (OSError, ValueError) as error:
            raise SystemExit(f"{file}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
