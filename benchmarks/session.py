"""The other side of `worker.py`: starts workers, asks them, gives up on those that take too long."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class WorkerError(RuntimeError):
    """A worker could not do what it was asked; the message is fit for a table."""


class WorkerProcess:
    """A worker in a process of its own; use it as a context manager, so that it ends."""

    def __init__(self, threads: int):
        self.cache = tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
        settings = {"TORCHINDUCTOR_CACHE_DIR": self.cache.name}  # its own: a first call compiles
        settings |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            cwd=ROOT,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pending = b""

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def ask(self, do: str, limit_s: float, **arguments: Any) -> dict[str, Any]:
        """The worker's answer.

        Raises:
            WorkerError: It failed, died, or did not answer within `limit_s` seconds (it is stopped then).
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self.process.stdin.flush()
            answer = json.loads(self._line(time.monotonic() + limit_s, f"{do} took over {limit_s:.0f} s"))
        except (BrokenPipeError, EOFError) as error:
            raise WorkerError(f"{do}: the process ended (exit status {self.process.wait()})") from error
        if "failed" in answer:
            raise WorkerError(answer["failed"])
        return answer

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.cache.cleanup()

    def _line(self, deadline: float, too_late: str) -> bytes:
        assert self.process.stdout is not None
        handle = self.process.stdout.fileno()
        while b"\n" not in self.pending:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.stop()
                raise WorkerError(too_late)
            read = os.read(handle, 1 << 16)
            if not read:
                raise EOFError
            self.pending += read
        line, self.pending = self.pending.split(b"\n", 1)
        return line
