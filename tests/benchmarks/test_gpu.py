import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_data
from benchmarks.gpu_child import Child, ChildError
from benchmarks.gpu_files import finite, read_params, write_params, write_raw
from benchmarks.gpu_modes import unavailable
from benchmarks.gpu_report import markdown

ROOT = Path(__file__).parents[2]
HIDDEN = "numpy", "PIL", "safetensors", "platformdirs", "tyro", "tqdm", "matplotlib", "jinja2"
HIDE = f"""
import importlib.machinery as machinery

found = machinery.PathFinder.find_spec


def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {HIDDEN} else found(name, path, target)


machinery.PathFinder.find_spec = classmethod(find_spec)
"""


def test_a_quick_session_runs_on_python_and_pytorch_alone(tmp_path):
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide/sitecustomize.py").write_text(HIDE)
    hidden = "; ".join(f"assert importlib.util.find_spec({name!r}) is None" for name in HIDDEN)
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(tmp_path / "hide"),
        "PYTHONWARNINGS": "ignore",
        "OUT": str(tmp_path / "out"),
    }
    subprocess.run([sys.executable, "-c", f"import importlib.util; {hidden}"], env=environment, check=True)
    options = ["--device", "cpu", "--quick", "--seconds", "100", "--data", str(tmp_path / "none.u8")]
    modes = ["--modes", "eager", "graphed", "--precisions", "float32", "tf32"]
    subprocess.run(
        ["bash", "benchmarks/gpu.sh", *options, *modes],
        env=environment,
        cwd=ROOT,
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )

    (file,) = (tmp_path / "out").glob("gpu-*-quick.json")
    result = json.loads(file.read_text())
    assert result["parts"].keys() == {"checks", "timing", "choices", "training"}
    assert result["works"].keys() == {"omniglot 5-way 1-shot", "sinusoid"}
    for work in result["works"].values():
        for system in ("eager, float32", "plain loop float32, float32"):
            measured = work["systems"][system]
            assert measured["error"] < 1e-5
            assert 0 < measured["ms_range"][0] <= measured["ms"] <= measured["ms_range"][1]
            assert measured["first_call_s"] > 0
        assert work["systems"]["graphed, float32"] == {"skipped": "CUDA graphs need a GPU"}
        assert work["systems"]["eager, tf32"] == {"skipped": "TF32 needs a GPU"}
    check_training(result["training"], file)
    assert "# One GPU: CPU" in file.with_suffix(".md").read_text()


def check_training(training, file):
    assert training["iterations"] == 6
    assert training["settings"]["mode"] == "eager"
    assert [point["iteration"] for point in training["curve"]] == [3, 6]
    assert training["ms_per_iteration"] > 0
    for step in training["last"]["per_step"]:
        assert 0 <= step["mean"] <= 1
        assert step["ci95"] >= 0
    params = read_params(file.with_name(training["last"]["parameters"]))
    assert params["head.weight"].shape == (5, 4)
    assert all(p.isfinite().all() for p in params.values())


def test_a_failure_is_a_record_and_an_answer_too_late_ends_the_process():
    child = Child("cpu", {"OMP_NUM_THREADS": "1"})
    try:
        with pytest.raises(ChildError, match="There is no work 'sinus'") as caught:
            child.ask("reference", time.monotonic() + 60, work="sinus", overrides={}, file="")
        assert not caught.value.dead
        assert any("work_named" in line for line in caught.value.record["where"])
        with pytest.raises(ChildError, match="not done within its time") as caught:
            child.ask("reference", time.monotonic(), work="sinusoid", overrides={}, file="")
        assert caught.value.dead
        assert child.process.poll() is not None
    finally:
        child.stop()


def test_parameters_come_back_as_they_were_written(tmp_path):
    params = {"a.weight": torch.randn(2, 3, dtype=torch.float64), "b": torch.tensor(4.0, dtype=torch.float64)}
    write_params(tmp_path / "file.f64", params, {"iteration": 3})
    for name, p in read_params(tmp_path / "file.f64").items():
        torch.testing.assert_close(p, params[name], rtol=0, atol=0)
    assert (tmp_path / "file.f64").stat().st_size == 7 * 8
    (tmp_path / "file.f64").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes, expected 56"):
        read_params(tmp_path / "file.f64")


def test_prepared_images_are_read_back_by_part_and_checked(tmp_path):
    images, path = torch.arange(4 * 2 * 9, dtype=torch.uint8).view(4, 2, 1, 3, 3), tmp_path / "images.u8"
    write_raw(path, images)
    parts = {"train": ["d", "a"], "val": ["b"], "test": ["c"]}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    header = {"shape": list(images.shape), "names": ["a", "b", "c", "d"], "parts": parts, "sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(header))
    read = gpu_data.characters(path)
    assert torch.equal(read.train.images, images[[3, 0]])
    assert (read.val.names, read.test.names, read.source) == (("b",), ("c",), "Omniglot, released split")
    path.write_bytes(bytes(images.numel()))
    with pytest.raises(ValueError, match="is damaged"):
        gpu_data.characters(path)


def test_without_prepared_images_characters_are_generated(tmp_path):
    generated = gpu_data.characters(tmp_path / "none.u8", few=True)
    assert generated.test.images.shape == (20, 20, 1, 28, 28)
    assert generated.source == "generated characters, since none.u8 is not there"


def test_what_is_not_json_is_null_and_what_is_not_possible_has_a_reason():
    assert finite({"ms": (float("nan"), 1.0)}) == {"ms": [None, 1.0]}
    assert unavailable("compiled graphed", "float32", "cpu") == "CUDA graphs need a GPU"
    assert unavailable("compiled", "float32", "cpu") is None
    assert unavailable("compiled graphed", "tf32", "cuda") is None


def test_the_report_compares_with_the_loop_and_tells_what_failed():
    loop = {"ms": 50.0, "ms_range": [49.0, 52.0], "first_call_s": 0.1, "error": 1e-6, "peak_mib": 10.0}
    fast = loop | {"ms": 2.0, "ms_range": [1.9, 2.1], "reserved_mib": 30.0}
    systems = {
        "graphed, bfloat16": fast,
        "plain loop float32, float32": loop,
        "graphed, float32": fast,
        "compiled, float32": {"failed": "RuntimeError: a | b"},
    }
    result = gpu.about("cpu") | {"works": {"a work": {"description": "tasks", "systems": systems}}}
    text = markdown(result | {"training": {"skipped": "no time was left"}})
    assert "| graphed, float32 | 2 | 1.9 to 2.1 | 25.0 | 10 | 30 | 0.1 | 1e-06 |" in text
    assert text.index("compiled, float32 | RuntimeError: a / b") < text.index("graphed, bfloat16")
    assert "Not done. no time was left" in text
