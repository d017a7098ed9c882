"""The server process: its address, its models, and its end."""

import contextlib
import ipaddress
import logging
import os
import socket
import webbrowser
from pathlib import Path

import uvicorn

from headstart.adapted import Adapted, Trained, load, load_run
from headstart.inputs import InputError
from headstart.inputs.images import ImageInputs
from headstart.serve.app import LOOPBACK_NAMES, application
from headstart.serve.connections import Connection
from headstart.serve.limits import CONNECTIONS
from headstart.serve.workers import Models, Workers
from headstart.shipped import shipped
from headstart.training.run import Run

_log = logging.getLogger(__name__)


def serve(folder: Path | None, host: str, port: int, open_browser: bool) -> None:
    """Serve the page and its API until interrupted.

    Args:
        folder: Of a run of image classification, or of an adapted model of one, to be served beside the shipped models.
        host: Name or address of the network interface.
        port: Of it; 0 for any that is free.
        open_browser: Show the page in the browser.

    Raises:
        InputError: Its inputs are no images.
        FileError: It cannot be read.
        OSError: The port is taken, or the host is not one of this machine's.
    """
    own = None if folder is None else image_model(folder)
    with listening(host, port) as listener:
        models = Models(shipped("characters"), shipped("curve-maml"), shipped("curve-pretrained"), own)
        workers = Workers(models)
        workers.warm()
        local = is_loopback(listener.getsockname()[0])
        config = uvicorn.Config(
            application(models, LOOPBACK_NAMES | {host.lower()} if local else None, workers=workers),
            http=Connection,
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
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again, unless its parent ignores it
            uvicorn.Server(config).run(sockets=[listener])
        _log.info("Stopped.")


def image_model(folder: Path) -> Trained | Adapted:
    """A run's model, ready to adapt to images, or an adapted model of one.

    Raises:
        InputError: It takes something else.
        FileError: The folder holds neither.
    """
    model = load(folder) if (folder / "adapted.json").exists() else load_run(Run(folder))
    if not isinstance(model.inputs, ImageInputs):
        raise InputError(
            f"{folder} is a run of {model.about['recipe']}, whose inputs are no images: the page takes runs of "
            "image classification. Use `headstart adapt` and `headstart predict`."
        )
    return model


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
