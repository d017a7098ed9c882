"""Connections on which nothing, or not enough, is said."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
from serve.running import running

from headstart.serve.connections import Connection

WAITED_S = 0.3
ANSWERED = b"HTTP/1.1 200"


async def _slow(scope, receive, send):
    """Answers after longer than a header may take."""
    await asyncio.sleep(2 * WAITED_S)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def address(monkeypatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr("headstart.serve.connections.HEADER_S", WAITED_S)
    with running(_slow, http=Connection, lifespan="off") as host_and_port:
        yield host_and_port


def _rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    connection.settimeout(20)
    return b"".join(iter(lambda: connection.recv(1000), b""))


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
def test_one_that_says_no_whole_header_is_closed(address, said):
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(said)
        assert _rest(connection) == b""


def test_one_that_is_answered_is_not_closed_and_half_a_second_request_is(address):
    with closing(socket.create_connection(address)) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"ok"):
            answer += connection.recv(1000) or pytest.fail(f"closed after {answer!r}")
        assert answer.startswith(ANSWERED)
        connection.sendall(b"GET / HT")
        assert _rest(connection) == b""


def test_a_body_that_was_not_asked_for_does_not_keep_it(address):
    with closing(socket.create_connection(address)) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
        connection.settimeout(20)
        assert connection.recv(1000).startswith(ANSWERED)
        connection.sendall(b"x")
        _rest(connection)  # which ends
