"""A request's body, read within bounds of size and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from headstart.serve.errors import RequestError
from headstart.serve.limits import BODY_S, JSON_BYTES, NAME_LENGTH, RUN_QUERIES, RUN_SUPPORT, UPLOAD_BYTES

_ONE_BYTE_A_CHARACTER = 4
"""UTF-8 takes up to four."""


async def json_body(request: Request) -> bytes:
    """The body of a request that says it is JSON.

    Raises:
        RequestError: It says otherwise, or the body is too large or too slow.
    """
    _check_type(request, "application/json")
    bounded = _bounded(request, JSON_BYTES, "JSON")
    async with _in_time():
        return await bounded.body()


@asynccontextmanager
async def form_body(request: Request) -> AsyncIterator[FormData]:
    """The form of a multipart request; its files, on disk where they are large, are gone afterwards.

    Raises:
        RequestError: It is no such request, it is damaged, or there is too much of it.
    """
    boundary = _check_type(request, "multipart/form-data")
    bounded = _bounded(request, UPLOAD_BYTES, "upload", end=b"--" + boundary + b"--")
    files = RUN_SUPPORT + RUN_QUERIES
    limits = {"max_files": files, "max_fields": RUN_SUPPORT, "max_part_size": NAME_LENGTH * _ONE_BYTE_A_CHARACTER}
    try:
        async with _in_time():
            form = await bounded.form(**limits)
    except HTTPException as error:  # the parser's, whose words are for programmers
        many = error.detail.startswith("Too many files")
        told = f"An upload may hold {files} files at most: leave some out." if many else _damaged(error.detail)
        raise RequestError(413 if many else 400, told) from error
    try:
        yield form
    finally:
        await form.close()


def _check_type(request: Request, expected: str) -> bytes:
    """Refuse another content type or charset, or a compressed body; returns the boundary of a multipart body."""
    given, options = parse_options_header(request.headers.get("content-type"))
    if given.decode("latin-1").lower() != expected:
        told = f"got {given.decode('latin-1')[:NAME_LENGTH]!r}" if given else "got none"
        raise RequestError(415, f"The content type must be {expected}, {told}.")
    charset = options.get(b"charset", b"utf-8").lower()
    if charset not in (b"utf-8", b"utf8"):  # some of Python's are no charsets, and fail in ways of their own
        raise RequestError(415, f"The charset must be utf-8, got {charset.decode('latin-1')[:NAME_LENGTH]!r}.")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RequestError(415, "Compressed bodies are not taken: send it without a content encoding.")
    return options.get(b"boundary", b"")


def _bounded(request: Request, limit: int, what: str, end: bytes = b"") -> Request:
    """The request, whose body is refused once it is longer than `limit`, or if it does not end in `end`."""
    too_large = RequestError(
        413, f"The {what} is larger than the {limit // 1024} KiB allowed: send less.", {"connection": "close"}
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise too_large
    return Request(request.scope, _counted(request.receive, limit, too_large, end))


def _counted(receive: Receive, limit: int, too_large: RequestError, end: bytes) -> Receive:
    """`receive`, which raises where a body is too long, or is cut short: the parser keeps what it has got of those."""
    total, tail = 0, b""

    async def counted() -> Message:
        nonlocal total, tail
        message = await receive()
        body = message.get("body", b"")
        total += len(body)
        if total > limit:
            raise too_large
        tail = (tail + body)[-len(end) - 2 :] if end else b""
        if end and message["type"] == "http.request" and not message.get("more_body", False) and end not in tail:
            raise RequestError(400, _damaged("it is cut short"))
        return message

    return counted


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(BODY_S):
            yield
    except TimeoutError as error:
        sentence = f"The request took longer than {BODY_S:g} s to arrive: send it again, or send less."
        raise RequestError(408, sentence, {"connection": "close"}) from error


def _damaged(reason: str) -> str:
    return f"The upload is damaged ({reason.rstrip('.')}): send it again, as multipart/form-data."
