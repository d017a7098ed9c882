"""The server process: its address, its models, and its end."""

import ipaddress
import logging
import os
import socket
import webbrowser

import uvicorn

from headstart.adapted import Trained, load_run
from headstart.inputs import InputError
from headstart.inputs.images import ImageInputs
from headstart.serve.app import LOOPBACK_NAMES, application
from headstart.serve.limits import CONNECTIONS
from headstart.serve.workers import Models
from headstart.shipped import shipped
from headstart.training.run import Run

_log = logging.getLogger(__name__)


def serve(run: Run | None, host: str, port: int, open_browser: bool) -> None:
    """Serve the page and its API until interrupted.

    Args:
        run: A run of image classification, to be served beside the shipped models.
        host: Name or address of the network interface.
        port: Of it; 0 for any that is free.
        open_browser: Show the page in the browser.

    Raises:
        InputError: The run's inputs are no images.
        FileError: The run cannot be read.
        OSError: The port is taken, or the host is not one of this machine's.
    """
    own = None if run is None else image_run(run)
    with listening(host, port) as listener:
        models = Models(shipped("characters"), shipped("curve-maml"), shipped("curve-pretrained"), own)
        local = is_loopback(listener.getsockname()[0])
        config = uvicorn.Config(
            application(models, LOOPBACK_NAMES | {host.lower()} if local else None),
            http="h11",
            ws="none",
            loop="asyncio",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        if not local:
            _log.warning("Whoever can reach this machine can use %s: there is no password and no encryption.", address)
        _log.info("Serving %s; Ctrl-C stops it.", address)
        if open_browser:
            webbrowser.open(address)  # the connection waits until the server takes it
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            _log.info("Stopped.")


def image_run(run: Run) -> Trained:
    """The run's model, ready to adapt to images.

    Raises:
        InputError: It takes something else.
    """
    trained = load_run(run)
    if not isinstance(trained.inputs, ImageInputs):
        raise InputError(
            f"{run.path} is a run of {trained.about['recipe']}, whose inputs are no images: the page takes runs of "
            "image classification. Use `headstart adapt` and `headstart predict`."
        )
    return trained


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: The port is taken, or the host is not one of this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it. Without it an answer, sent in two parts, waits 40 ms for the first to be acknowledged;
        # asyncio sees to that only where a socket says that its protocol is TCP, which those of `create_server` do not.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:  # of which a name that nobody knows is one
        code = error.errno or 0
        reason = os.strerror(code) if code > 0 else error.strerror  # to which Python adds the address
        raise OSError(f"Cannot serve at port {port} of {host} ({reason}): choose another --port or --host.") from error


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
