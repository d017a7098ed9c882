"""Around the whole server: who may ask, and what browsers are told about the answers."""

import asyncio
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; "
        "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every response."""


class Guard:
    """Refuses requests that pages of other sites make, and adds `HEADERS` to every response.

    A name that its owner points at this machine (DNS rebinding) lets a page of that name ask a server on loopback
    as if it were its own: so the name asked must be one of ours. A page of another site may send a form, which names
    its origin: so that must be the name asked.

    Args:
        app: What answers.
        names: By which the server may be asked; None for any.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str] | None):
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        answering = False

        async def send_with_headers(message: Message) -> None:
            nonlocal answering
            if message["type"] == "http.response.start":
                answering = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        problem = self._problem(Headers(scope=scope))
        answer = self.app if problem is None else JSONResponse({"error": problem}, 403)
        try:
            await answer(scope, receive, send_with_headers)
        except asyncio.CancelledError:  # the server is told to stop, and has waited long enough
            if not answering:
                await JSONResponse({"error": "The server is stopping."}, 503)(scope, receive, send_with_headers)

    def _problem(self, headers: Headers) -> str | None:
        """Why a request is refused, or None."""
        host = headers.get("host", "")
        if self.names is not None and _name(host) not in self.names:
            return f"This server is asked as {' or '.join(sorted(self.names))}, not as {host[:100]!r}."
        origin = headers.get("origin")
        if origin is not None and _place(origin) != host.lower():
            return f"A page of {origin[:100]!r} may not ask this server: open its own page."
        return None


def _place(origin: str) -> str | None:
    """Name and port of an origin; None where it has none."""
    try:
        return urlsplit(origin.lower()).netloc or None
    except ValueError:
        return None


def _name(host: str) -> str | None:
    """A host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None
