"""The application: which address gives what.

    GET  /                   the page
    GET  /page/...           its files
    GET  /api/models         what the models are, and how much may be asked of them
    POST /api/characters     drawings, some with labels, one without -> probabilities per step
    POST /api/curve          points -> two models' curves per step
    POST /api/run            image files -> predictions of a run, or an adapted model, of one's own

Every request brings all it needs and nothing of it is kept: no visitor sees another's adapted model.
"""

import mimetypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from headstart.serve import answers, uploads
from headstart.serve.bodies import form_body, json_body
from headstart.serve.description import description
from headstart.serve.errors import RequestError
from headstart.serve.guard import Guard
from headstart.serve.limits import UPLOADS
from headstart.serve.workers import Models, Workers

PAGE = Path(__file__).parent / "page"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}
"""Of files whose type the system's own table may have wrong; a browser runs no script of another type."""


def application(
    models: Models, names: frozenset[str] | None = LOOPBACK_NAMES, page: Path = PAGE, workers: Workers | None = None
) -> Guard:
    """The ASGI application.

    Args:
        models: What is served.
        names: By which it may be asked (see `Guard`); None for any.
        page: Folder of the page's files, `index.html` among them.
        workers: With these models; None to make them.
    """
    workers = workers or Workers(models)
    api = _Api(models, workers)
    files = _Files(directory=page)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        workers.close()

    async def index(request: Request) -> Response:
        return await files.get_response("index.html", request.scope)

    routes = [
        Route("/", index),
        Mount("/page", files),
        Route("/api/models", api.models),
        Route("/api/characters", api.characters, methods=["POST"]),
        Route("/api/curve", api.curve, methods=["POST"]),
        Route("/api/run", api.run, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            RequestError: _refused,
            HTTPException: _http_error,
            ClientDisconnect: _left,
            Exception: _failed,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Guard(app, names)


class _Api:
    """The answers to the API's requests."""

    def __init__(self, models: Models, workers: Workers):
        self._models, self._workers = models, workers
        self._description = description(models)
        self._uploads = 0

    async def models(self, request: Request) -> Response:
        return _answer(self._description)

    async def characters(self, request: Request) -> Response:
        body = await json_body(request)
        return _answer(await self._workers.answer(request, lambda own: answers.characters(own.characters, body)))

    async def curve(self, request: Request) -> Response:
        body = await json_body(request)
        return _answer(await self._workers.answer(request, lambda own: answers.curve(own.maml, own.pretrained, body)))

    async def run(self, request: Request) -> Response:
        run = self._models.run
        if run is None:
            raise RequestError(404, "This server has no run of yours: start it as `headstart serve RUN`.")
        if self._uploads >= UPLOADS:
            raise RequestError(
                503, "Too many uploads at this moment: try again in a few seconds.", {"retry-after": "5"}
            )
        self._uploads += 1
        try:
            async with form_body(request) as form:
                given = uploads.upload(form, run)
                return _answer(await self._workers.answer_long(request, partial(_predicted, given)))
        finally:
            self._uploads -= 1


def _predicted(given: uploads.Upload, models: Models, left: Callable[[], bool]) -> dict[str, Any]:
    assert models.run is not None
    return uploads.predictions(models.run, given, left)


class _Files(StaticFiles):
    """The page's files, which a browser keeps but asks about each time: an upgrade shows at once."""

    def file_response(self, full_path: Any, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(full_path, *args, **kwargs)
        response.headers["cache-control"] = "no-cache"
        if response.status_code == 200:
            guessed = mimetypes.guess_type(full_path)[0] or "application/octet-stream"
            kind = _TYPES.get(Path(full_path).suffix, guessed)
            response.headers["content-type"] = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
        return response


def _answer(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {"cache-control": "no-store", **(headers or {})})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return _answer({"error": error.sentence}, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, headers = request.url.path[:100], dict(error.headers or {})
    allowed = " or ".join(sorted(headers.get("Allow", "").split(", ")))
    told = {
        404: f"There is nothing at {path}.",
        405: f"{request.method[:20]} is not for {path}: use {allowed}.",
    }
    return _answer({"error": told.get(error.status_code, str(error.detail))}, error.status_code, headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody receives


async def _failed(request: Request, error: Exception) -> Response:
    """Of our own errors, which the log shows."""
    return _answer({"error": "The server failed at this request; its log says more."}, 500)
