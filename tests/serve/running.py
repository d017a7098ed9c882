"""An application on a thread of its own, on a free port of loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from headstart.serve.server import listening

STARTED_WITHIN_S = 60


@contextmanager
def running(app: Any, **settings: Any) -> Iterator[tuple[str, int]]:
    """Host and port of an application that is served meanwhile."""
    with listening("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, ws="none", log_config=None, **settings))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until = time.monotonic() + STARTED_WITHIN_S
        try:
            while not server.started:
                assert thread.is_alive(), "the server ended before it had started"
                assert time.monotonic() < until, f"the server has not started within {STARTED_WITHIN_S} s"
                time.sleep(0.01)  # it tells nobody that it has started
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()
