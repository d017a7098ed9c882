import pytest
import torch

from benchmarks.peers import SYSTEMS
from benchmarks.worker import REFERENCE, Worker, relative_error
from benchmarks.works import WORKS, initial, native, restore, work_named

TINY = {
    "sinusoid": {"tasks": 3, "width": 8},
    "omniglot 5-way 1-shot": {"tasks": 2, "width": 4, "inner_lr": 0.5},
    "omniglot 20-way 5-shot": {
        "tasks": 2,
        "width": 4,
        "ways": 3,
        "shots": 2,
        "queries": 2,
        "steps": 2,
        "inner_lr": 0.5,
    },
    "mini 5-way 1-shot": {"tasks": 2, "width": 3, "ways": 2, "queries": 2, "steps": 2},
    "mini 5-way 5-shot": {"tasks": 1, "width": 3, "ways": 2, "shots": 2, "queries": 2, "steps": 1},
    "transformer": {"tasks": 2, "width": 8},
}
PEERS = {
    "learn2learn": "learn2learn",
    "higher": "higher",
    "TorchOpt": "torchopt",
    "parallel-metalearn": "metalearn",
    "JAX": "jax",
}


@pytest.mark.parametrize("name", WORKS)
def test_a_work_is_the_same_at_every_call_and_its_network_takes_its_tasks(name):
    work = work_named(name, TINY[name])
    first, second = work.sample(), work.sample()
    assert torch.equal(first.support.inputs, second.support.inputs)
    assert len(first.support.inputs) == work.tasks
    model, again = work.model(), work.model()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    loss = work.loss(model(first.support.inputs[0]), first.support.targets[0])
    assert loss.ndim == 0
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", WORKS)
def test_native_layers_give_the_same_outputs_under_the_same_parameter_names(name):
    work = work_named(name, TINY[name])
    inputs = work.sample().support.inputs[0]
    torch.testing.assert_close(native(work.model())(inputs), work.model()(inputs))
    assert initial(native(work.model())).keys() == initial(work.model()).keys()


def test_the_works_are_those_of_the_design():
    assert (
        "32 tasks, 5-way 1-shot, 1 queries per class, 1 inner steps of 2" in WORKS["omniglot 5-way 1-shot"].describe()
    )
    assert sum(p.numel() for p in WORKS["mini 5-way 1-shot"].model().head.parameters()) == 800 * 5 + 5
    with pytest.raises(ValueError, match="no work 'sinus'; there are: sinusoid"):
        work_named("sinus")


def test_restoring_parameters_forgets_gradients():
    model = work_named("sinusoid", TINY["sinusoid"]).model()
    start = initial(model)
    model(torch.ones(2, 1)).sum().backward()
    with torch.no_grad():
        model.head.bias.add_(1)
    restore(model, start)
    assert torch.equal(model.head.bias, start["head.bias"])
    assert model.head.bias.grad is None


@pytest.mark.parametrize("name", WORKS)
def test_headstarts_meta_gradient_is_the_float64_loops(name, tmp_path):
    assert error_of("Headstart eager", name, tmp_path, again=True) < 1e-4
    assert error_of("plain loop float32", name, tmp_path) < 1e-4


@pytest.mark.parametrize("name", ["omniglot 20-way 5-shot", "transformer"])
def test_first_order_is_compared_with_first_order(name, tmp_path):
    assert error_of("Headstart eager, first order", name, tmp_path) < 1e-4
    assert error_of("Headstart eager, first order", name, tmp_path, first_order=False) > 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("system", PEERS)
@pytest.mark.parametrize("name", ["sinusoid", "omniglot 20-way 5-shot", "mini 5-way 1-shot", "transformer"])
def test_peers_do_the_same_work(system, name, tmp_path):
    pytest.importorskip(PEERS[system])
    bound = 1e-2 if (system, name) == ("parallel-metalearn", "transformer") else 1e-4  # native layer norm under vmap
    assert error_of(system, name, tmp_path, again=True) < bound


def test_errors_are_relative_in_norm_over_all_parameters():
    expected = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor(4.0)}
    assert relative_error({"a": torch.tensor([3.0, 1.0]), "b": torch.tensor(4.0)}, expected) == pytest.approx(0.2)
    assert relative_error({"a": torch.full((2,), torch.nan), "b": torch.tensor(4.0)}, expected) is None
    with pytest.raises(ValueError, match=r"other parameters: \['b'\]"):
        relative_error({"a": expected["a"]}, expected)


def error_of(system, name, folder, first_order=None, again=False):
    """Error of the meta-gradient in this process; with `again`, after a step that it must be unmoved by."""
    file = str(folder / "reference.safetensors")
    order = SYSTEMS[system].first_order if first_order is None else first_order
    reference = Worker()
    reference.prepare(REFERENCE, name, TINY[name], threads=1, first_order=order)
    reference.gradient(save=file)
    worker = Worker()
    worker.prepare(system, name, TINY[name], threads=1)
    if again:
        assert worker.first()["first_call_s"] > 0
    error = worker.gradient(reference=file)["error"]
    for one in (reference, worker):
        one.context.close()
    return error
