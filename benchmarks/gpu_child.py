"""The other side of `gpu_worker.py`: a process that is asked, and given up on when its time is over."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class ChildError(RuntimeError):
    """A process could not do what it was asked; `record` is what to keep of it."""

    def __init__(self, record: dict[str, Any], dead: bool):
        super().__init__(record["failed"])
        self.record, self.dead = record, dead


class Child:
    """A worker process, in a process group of its own so that what it starts ends with it.

    Args:
        device: `cuda` or `cpu`.
        settings: Environment variables besides this process's own.
    """

    def __init__(self, device: str, settings: dict[str, str]):
        paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"} | settings
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_worker", device],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pending, self.stopped = b"", False

    def ask(
        self, do: str, deadline: float, tell: Callable[[dict[str, Any]], None] = lambda _: None, /, **arguments: Any
    ) -> dict[str, Any]:
        """The worker's answer; what it tells of its progress is passed on.

        Args:
            do: The command.
            deadline: By `time.monotonic()`.
            tell: Called with each report of progress.
            **arguments: Of the command.

        Raises:
            ChildError: It failed, died, or did not answer in time. If `dead`, the process has been stopped.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps({"do": do, **arguments}) + "\n").encode())
            self.process.stdin.flush()
            while "progress" in (answer := json.loads(self._line(deadline))):
                tell(answer["progress"])
        except TimeoutError:
            self.stop()
            raise ChildError({"failed": f"{do}: not done within its time"}, dead=True) from None
        except (OSError, EOFError, ValueError) as error:
            self.stop()
            raise ChildError({"failed": f"{do}: the process ended ({self.process.wait()})"}, dead=True) from error
        broken = answer.pop("broken", False)
        if "failed" in answer:
            if broken:
                self.stop()
            raise ChildError(answer, dead=broken)
        return answer

    def stop(self) -> None:
        """End the process, and what it started."""
        if self.stopped:
            return
        self.stopped = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _line(self, deadline: float) -> bytes:
        assert self.process.stdout is not None
        handle = self.process.stdout.fileno()
        while b"\n" not in self.pending:
            if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError
            read = os.read(handle, 1 << 16)
            if not read:
                raise EOFError
            self.pending += read
        line, self.pending = self.pending.split(b"\n", 1)
        return line
