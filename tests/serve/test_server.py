import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
import torch

from headstart.adapted import Adapted
from headstart.inputs import InputError, Support
from headstart.serve.server import image_model, listening
from headstart.shipped import shipped, shipped_run
from headstart.types import Batch

STARTED = """
import logging, sys
from headstart.serve_command import Serve
logging.basicConfig(level=logging.INFO, format="%(message)s")
sys.exit(Serve(port=0).run())
"""


def test_a_server_answers_until_it_is_interrupted():
    process = subprocess.Popen([sys.executable, "-c", STARTED], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.fullmatch(r"Serving (http://127\.0\.0\.1:(\d+)/); Ctrl-C stops it\.\n", line)
        assert found, line + process.stderr.read()
        with contextlib.closing(socket.create_connection(("127.0.0.1", int(found[2])))) as slow:
            head = "POST /api/curve HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())  # and never the rest
            assert httpx2.get(f"{found[1]}api/models").json()["run"] is None
            process.send_signal(signal.SIGINT)
            rest = process.communicate(timeout=60)[1]
        assert process.returncode == 0
        assert rest.endswith("Stopped.\n")
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_a_port_that_is_taken_is_told():
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"port {port} of 127.0.0.1 \({os.strerror(errno.EADDRINUSE)}\): choose another --port"
        ):
            listening("127.0.0.1", port)


def test_answers_are_not_held_back():
    """The second part of an answer does not wait for the first to be acknowledged."""
    with listening("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_run_that_takes_no_images_is_refused():
    with pytest.raises(InputError, match="sinusoid-5shot, whose inputs are no images"):
        image_model(shipped_run("curve-maml").path)
    assert image_model(shipped_run("characters").path).recipe.kind == "characters"


def test_an_adapted_model_is_taken_unless_it_is_of_no_images(tmp_path):
    for name, classes, targets in (("characters", ("a", "b"), torch.arange(2)), ("curve-maml", (), torch.zeros(2, 1))):
        trained = shipped(name)
        support = Support(Batch(trained.inputs.blank(2), targets), classes)
        trained.adapt(support).save(tmp_path / name)
    model = image_model(tmp_path / "characters")
    assert isinstance(model, Adapted)
    assert model.classes == ("a", "b")
    with pytest.raises(InputError, match="inputs are no images"):
        image_model(tmp_path / "curve-maml")
