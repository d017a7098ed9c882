from pathlib import Path

import pytest

from headstart import serve_command
from headstart.serve_command import Serve
from headstart.usage import UsageError


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_number_of_sixteen_bits(port):
    with pytest.raises(UsageError, match=f"--port must be from 0 to 65535, got {port}"):
        Serve(port=port).run()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"static": Path("site")}, "give both or neither"),
        ({"runtime": Path("dist")}, "give both or neither"),
        ({"static": Path("site"), "runtime": Path("dist"), "run_folder": Path("run")}, "needs the server"),
        ({"static": Path("site"), "runtime": Path("dist"), "host": "127.0.0.1"}, "are of the server"),
        ({"static": Path("site"), "runtime": Path("dist"), "port": 8000}, "are of the server"),
        ({"static": Path("site"), "runtime": Path("dist"), "open": True}, "are of the server"),
    ],
)
def test_static_is_written_from_a_runtime_without_a_run(given, told):
    with pytest.raises(UsageError, match=told):
        Serve(**given).run()


def test_a_runtime_that_is_none_is_told(tmp_path):
    pytest.importorskip("starlette", reason="the extra serve is not installed")
    with pytest.raises(FileNotFoundError, match="npm install onnxruntime-web"):
        Serve(static=tmp_path / "site", runtime=tmp_path).run()
    assert not (tmp_path / "site").exists()


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(serve_command, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ImportError, match=r"pip install 'headstart\[serve\]'"):
        Serve().run()
