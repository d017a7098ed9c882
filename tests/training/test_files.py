import errno
import os

import pytest
import torch
from torch.testing import assert_close

from headstart.training.checkpoint import RESUME, load_state, save_state
from headstart.training.files import FileError, read_json, read_tensors, write_atomically, write_json, write_tensors


def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_state_comes_back_as_it_was(tmp_path):
    optimizer = torch.optim.Adam([weight := torch.nn.Parameter(torch.ones(3))])
    weight.grad = torch.arange(3.0)
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "best": None,
        "list": [1, (2.5, "x")],
        3: torch.tensor([1], dtype=torch.uint8),
    }
    save_state(tmp_path, state)
    loaded = load_state(tmp_path)
    assert loaded["list"] == [1, [2.5, "x"]]
    assert loaded["best"] is None
    assert loaded[3].dtype == torch.uint8
    assert loaded["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert_close(
        loaded["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"], rtol=0, atol=0
    )


def test_tied_tensors_can_be_saved(tmp_path):
    shared = torch.arange(4.0)
    write_tensors(tmp_path / "tied.safetensors", {"a": shared, "b": shared.view(2, 2)}, {"iteration": 3})
    tensors, meta = read_tensors(tmp_path / "tied.safetensors")
    assert meta == {"iteration": 3}
    assert_close(tensors["b"], shared.view(2, 2))


@pytest.mark.parametrize("keep", [0, 20, -1])
def test_a_damaged_checkpoint_is_named(tmp_path, keep):
    save_state(tmp_path, {"x": torch.ones(100)})
    path = tmp_path / RESUME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FileError, match=RESUME):
        load_state(tmp_path)


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    with pytest.raises(FileError, match=r"no file .*x\.json"):
        read_json(tmp_path / "x.json")
