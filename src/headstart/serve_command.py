"""The command `headstart serve`."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from headstart.usage import UsageError

Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass(frozen=True)
class Serve:
    """Show models learning on a page in the browser: those that come with Headstart, and one of yours."""

    run_folder: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = None
    """Folder of a run of image classification, or of an adapted model, to be tried on the page too."""
    host: str | None = None
    """Address to serve at; None for 127.0.0.1, this machine alone. At another, whoever can reach it can use it."""
    port: int | None = None
    """Port to serve at; 0 for one that is free, None for 8000."""
    open: Flag = False
    """Open the page in the browser."""
    static: Path | None = None
    """Write the page as files into this folder, and serve nothing: any static host will do, and the networks learn in
    the visitor's browser."""
    runtime: Path | None = None
    """For --static: the folder dist of the npm package onnxruntime-web."""
    debug: Flag = False
    """Show the traceback of an error."""

    def run(self) -> int:
        """Serve until interrupted, or write the files."""
        if (self.static is None) != (self.runtime is None):
            raise UsageError("--static OUT and --runtime DIR go together: give both or neither.")
        if self.static is not None and self.run_folder is not None:
            raise UsageError(f"{self.run_folder} needs the server: leave it out, or leave out --static.")
        if self.static is not None and (self.host, self.port, self.open) != (None, None, False):
            raise UsageError(
                "--host, --port and --open are of the server, which --static does not start: leave them out."
            )
        port = 8000 if self.port is None else self.port
        if not 0 <= port <= 65535:
            raise UsageError(f"--port must be from 0 to 65535, got {port}.")
        if any(find_spec(name) is None for name in ("starlette", "uvicorn", "python_multipart")):
            raise ImportError("`headstart serve` needs Starlette and uvicorn: pip install 'headstart[serve]'")
        if self.static is not None and self.runtime is not None:
            from headstart.serve.static import build  # an extra: imported where it is used

            build(self.static, self.runtime)
            print(f"{self.static} is the page: any static host serves it.")
            return 0
        from headstart.serve.server import serve

        serve(self.run_folder, self.host or "127.0.0.1", port, self.open)
        return 0
