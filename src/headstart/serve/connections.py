"""One connection to the server."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.serve.limits import HEADER_S


class Connection(H11Protocol):
    """Closes itself when it has waited `HEADER_S` for the whole header of a request.

    uvicorn itself waits for ever, once with nothing sent and again after each byte: a few hundred silent visitors would
    take all connections there are. While a request is answered, other limits hold.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on unless a header is complete; what comes after an answer is the next."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(HEADER_S, self.transport.close)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
