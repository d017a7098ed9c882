"""How fast does `headstart serve` answer, what does it bear, and does its memory grow?

The real server in a process of its own, asked over HTTP from this one, on the same machine:

- one visitor, request after request: 5-way 1-shot adaptation and prediction (`POST /api/characters`);
- fifty visitors at once for a minute, each thinking 1 to 2 s between an answer and the next request;
- ten thousand requests, characters and curves in turn: the server's resident memory before and after.

    python -m benchmarks.serve [--quick] [--out FILE]
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx2

from headstart.training.files import write_json
from headstart.training.run import environment

RESULTS = Path(__file__).parent / "results"
START = "import sys; from headstart.cli import main; sys.exit(main(['serve', '--port', '0']))"
LIMIT_S = 60.0
"""After which a request counts as an error."""


@dataclass(frozen=True)
class Effort:
    """How much is asked of the server."""

    alone: int = 300
    """Requests of the one visitor."""
    visitors: int = 50
    duration_s: float = 60.0
    think_s: tuple[float, float] = (1.0, 2.0)
    """Shortest and longest time between an answer and the next request, drawn uniformly."""
    requests: int = 10_000
    """For memory."""
    warm: int = 300
    """Before the first measurement of memory."""


QUICK = Effort(alone=5, visitors=4, duration_s=1.0, think_s=(0.1, 0.2), requests=20, warm=4)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few requests, to see that it works")
    parser.add_argument("--out", type=Path, help="benchmarks/results/serve.json unless given")
    options = parser.parse_args(arguments)
    effort = QUICK if options.quick else Effort()
    out = options.out or RESULTS / f"serve{'-quick' if options.quick else ''}.json"
    result = {"date": date.today().isoformat(), "environment": environment(), "effort": asdict(effort)}
    with started() as (address, process):
        result |= asyncio.run(measure(address, process.pid, effort))
    write_json(out, result)
    print(table(result))


@contextmanager
def started() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The address of a server that runs meanwhile, and its process."""
    process = subprocess.Popen([sys.executable, "-c", START], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"http://\S+/", line)
        if found is None:
            raise SystemExit(f"The server did not start: {line}{process.stderr.read()}")
        yield found[0], process
    finally:
        process.terminate()
        process.communicate()


async def measure(address: str, pid: int, effort: Effort) -> dict[str, Any]:
    """All three."""
    limits = httpx2.Limits(max_connections=effort.visitors)
    async with httpx2.AsyncClient(base_url=address, timeout=LIMIT_S, limits=limits, trust_env=False) as client:
        visit = Visits(client)
        for _ in range(5):
            await visit.characters()
        visit.clear()
        for _ in range(effort.alone):
            await visit.characters()
        alone = visit.clear()
        end = time.perf_counter() + effort.duration_s
        await asyncio.gather(*(_visitor(visit, number, end, effort) for number in range(effort.visitors)))
        together = visit.clear()
        return {"alone": alone, "together": together, "memory": await _memory(visit, pid, effort)}


class Visits:
    """Requests, and how they went."""

    def __init__(self, client: httpx2.AsyncClient):
        rng = random.Random(0)
        self._client = client
        self._tasks = [json.dumps(_characters(rng)).encode() for _ in range(50)]
        self._curves = [json.dumps(_points(rng)).encode() for _ in range(50)]
        self._rng = rng
        self._whole_ms: list[float] = []
        self._adaptation_ms: list[float] = []
        self._errors: list[str] = []

    def clear(self) -> dict[str, Any]:
        """What was measured since the last time, which is then forgotten."""
        found = self._summary()
        for each in (self._whole_ms, self._adaptation_ms, self._errors):
            each.clear()
        return found

    async def characters(self) -> None:
        """Ask about a drawing."""
        await self._ask("api/characters", self._rng.choice(self._tasks))

    async def curve(self) -> None:
        """Ask about points."""
        await self._ask("api/curve", self._rng.choice(self._curves))

    async def _ask(self, path: str, body: bytes) -> None:
        begun = time.perf_counter()
        try:
            response = await self._client.post(path, content=body, headers={"content-type": "application/json"})
            if response.status_code != 200:
                raise httpx2.HTTPError(f"{response.status_code} {response.text[:100]}")
        except httpx2.HTTPError as error:
            self._errors.append(f"{type(error).__name__} {error}")
            return
        self._whole_ms.append((time.perf_counter() - begun) * 1000)
        self._adaptation_ms.append(response.json()["adaptation_ms"])

    def _summary(self) -> dict[str, Any]:
        return {
            "answers": len(self._whole_ms),
            "errors": len(self._errors),
            "first_error": self._errors[0] if self._errors else None,
            "adaptation_ms": quantiles(self._adaptation_ms),
            "whole_ms": quantiles(self._whole_ms),
        }


def quantiles(values: Sequence[float]) -> dict[str, float] | None:
    """Median and 95th percentile.

    >>> quantiles([1.0] * 19 + [3.0])
    {'median': 1.0, 'p95': 1.0}
    """
    if not values:
        return None
    ranked = sorted(values)
    return {"median": round(statistics.median(ranked), 2), "p95": round(ranked[int(0.95 * (len(ranked) - 1))], 2)}


async def _visitor(visit: Visits, number: int, end: float, effort: Effort) -> None:
    """One of many: thinks, asks, thinks ..."""
    rng = random.Random(f"visitor {number}")
    while True:
        await asyncio.sleep(rng.uniform(*effort.think_s))
        if time.perf_counter() > end:
            return
        await visit.characters()


async def _memory(visit: Visits, pid: int, effort: Effort) -> dict[str, Any]:
    """Resident memory along the way, four requests at a time."""
    await _many(visit, effort.warm)
    resident = [resident_mib(pid)]
    for _ in range(10):
        await _many(visit, effort.requests // 10)
        resident.append(resident_mib(pid))
    done = visit.clear()
    return {"requests": effort.requests, "errors": done["errors"], "resident_mib": resident}


async def _many(visit: Visits, requests: int) -> None:
    left = iter(range(requests))

    async def one() -> None:
        for number in left:
            await (visit.curve() if number % 2 else visit.characters())

    await asyncio.gather(*(one() for _ in range(4)))


def resident_mib(pid: int) -> float:
    """Resident memory of a process, which Linux tells."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1)


def _characters(rng: random.Random) -> dict[str, Any]:
    """Five classes of one drawing each: ink on a sixth of the paper."""
    drawings = [[255 if rng.random() < 1 / 6 else 0 for _ in range(784)] for _ in range(6)]
    return {"support": drawings[:5], "labels": list(range(5)), "query": drawings[5]}


def _points(rng: random.Random) -> dict[str, Any]:
    return {"points": [[round(rng.uniform(-5, 5), 2), round(rng.uniform(-4, 4), 2)] for _ in range(10)], "steps": 10}


def table(result: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    memory, effort = result["memory"], result["effort"]
    rows = [
        "| | answers | errors | adaptation, median (95 %) | whole request, median (95 %) |",
        "| --- | --- | --- | --- | --- |",
    ]
    named = {"alone": "one visitor", "together": f"{effort['visitors']} visitors, {effort['duration_s']:g} s"}
    for name, told in named.items():
        part = result[name]
        times = [_ms(part[kind]) for kind in ("adaptation_ms", "whole_ms")]
        rows.append(f"| {told} | {part['answers']} | {part['errors']} | {' | '.join(times)} |")
    resident = memory["resident_mib"]
    rows.append("")
    rows.append(
        f"Resident memory: {resident[0]} MiB, after {memory['requests']} requests ({memory['errors']} errors) "
        f"{resident[-1]} MiB."
    )
    return "\n".join(rows)


def _ms(found: dict[str, float] | None) -> str:
    return "-" if found is None else f"{found['median']:.0f} ms ({found['p95']:.0f} ms)"


if __name__ == "__main__":
    main()
