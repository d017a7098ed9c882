import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import headstart
from headstart.export.onnx_file import onnx_bytes
from headstart.export.program import Exported, ExportError, adaptation, predictor
from headstart.models import MLP, Conv4
from headstart.types import Batch, Task

onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")

STEPS = 2


def images(ways, shots, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(ways * shots, 1, 16, 16, generator=rng), torch.arange(ways).repeat(shots))


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(1)
    return headstart.SharedHead(Conv4(1, filters=3), nn.functional.cross_entropy, inner=headstart.SGD(0.4)).eval()


@pytest.fixture(scope="module")
def content(learner) -> bytes:
    exported = adaptation(learner, images(3, 2), images(3, 1).inputs, STEPS)
    return onnx_bytes(exported, {"steps": STEPS, "classes": ["a", "b"]})


def outputs(content, *tensors):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
    return [torch.from_numpy(each) for each in found]


@pytest.mark.parametrize(("shots", "queries"), [(2, 3), (4, 1)])
def test_onnx_runtime_adapts_as_the_learner(learner, content, shots, queries):
    support, asked = images(3, shots, seed=2), images(queries, 1, seed=3).inputs
    expected = learner.predict([Task(support, Batch(asked, ()))], STEPS, "support")[0]
    (found,) = outputs(content, support.inputs, support.targets, asked)
    assert found.shape == (STEPS + 1, queries, 3)
    assert not torch.allclose(found[0], found[-1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_onnx_runtime_fits_a_curve_in_ten_steps():
    torch.manual_seed(0)
    learner = headstart.MAML(MLP(1, 1, (8,)), nn.functional.mse_loss, inner=headstart.SGD(0.05))
    x = torch.linspace(-3, 3, 7).unsqueeze(1)
    content = onnx_bytes(adaptation(learner, Batch(x[:4], x[:4].sin()), x, 10), {})
    for count in (1, 6):
        expected = learner.predict([Task(Batch(x[:count], x[:count].sin()), Batch(x, ()))], 10)[0]
        (found,) = outputs(content, x[:count], x[:count].sin(), x)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_transformer_of_a_fixed_number_of_examples():
    torch.manual_seed(0)
    body = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu", dropout=0.0)
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(12, 2))
    learner = headstart.MAML(model, nn.functional.cross_entropy, inner=headstart.SGD(0.1)).eval()
    support, asked = Batch(torch.randn(4, 3, 4), torch.tensor([0, 1, 0, 1])), torch.randn(3, 3, 4)
    exported = adaptation(learner, support, asked, 1, open_support=False, open_queries=False)
    expected = learner.predict([Task(support, Batch(asked, ()))], 1)[0]
    (found,) = outputs(onnx_bytes(exported, {}), support.inputs, support.targets, asked)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_predictor_predicts_as_the_adapted_model(learner):
    model = learner.adapt(images(3, 2))
    content = onnx_bytes(predictor(model, images(3, 1).inputs, classes=3), {})
    for count in (1, 4):
        asked = images(count, 1, seed=5).inputs
        found, probabilities = outputs(content, asked)
        torch.testing.assert_close(found, model(asked), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(probabilities, model(asked).softmax(-1), atol=1e-5, rtol=1e-4)


def test_the_file_holds_what_is_needed_and_no_more(learner, content):
    """Standard operations, each constant once, the names of axes, what is told of it, and no path of this machine."""
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    assert {each.key: json.loads(each.value) for each in model.metadata_props} == {"steps": 2, "classes": ["a", "b"]}
    weights = [each for each in model.graph.initializer if list(each.dims) == [3, 3, 3, 3]]
    assert len(weights) == 3
    shapes = {
        each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in model.graph.input
    }
    assert shapes["support_inputs"] == ["examples", 1, 16, 16]
    assert shapes["support_targets"] == ["examples"]
    assert shapes["query_inputs"] == ["queries", 1, 16, 16]
    assert b".py" not in content
    # 16 convolutions of each set forward, of which the support set's of a step are those of the prediction before it
    forward = 4 * (STEPS + 1) * 2
    counts = [node.op_type for node in model.graph.node]
    assert counts.count("Conv") + counts.count("ConvTranspose") == forward + (4 + 3) * STEPS


def test_a_device_without_pytorch_adapts(learner, content, tmp_path):
    """In a process in which PyTorch cannot be imported."""
    support, asked = images(3, 1, seed=6), images(2, 1, seed=7).inputs
    (tmp_path / "adapt.onnx").write_bytes(content)
    tensors = {"support_inputs": support.inputs, "support_targets": support.targets, "query_inputs": asked}
    np.savez(tmp_path / "task.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import numpy, onnxruntime\n"
        "task = dict(numpy.load('task.npz'))\n"
        "numpy.save('found.npy', onnxruntime.InferenceSession('adapt.onnx').run(None, task)[0])\n"
        "assert not any(name.startswith(('torch.', 'headstart')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    expected = learner.predict([Task(support, Batch(asked, ()))], STEPS, "support")[0]
    found = torch.from_numpy(np.load(tmp_path / "found.npy"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


class Unknown(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


def test_an_operation_that_onnx_lacks_is_named():
    program = torch.export.export(Unknown(), (torch.ones(2, 1),))
    with pytest.raises(ExportError, match="bessel_j0"):
        onnx_bytes(Exported(program, ("inputs",), ("outputs",), (None,)), {})


def test_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    program = torch.export.export(nn.Linear(1, 1), (torch.ones(2, 1),))
    with pytest.raises(ExportError, match=r"headstart\[export\]"):
        onnx_bytes(Exported(program, ("inputs",), ("outputs",), (None,)), {})
