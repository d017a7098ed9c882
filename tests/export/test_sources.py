"""A table's numbers go into an exported program, and come out of it, in the unit of the table."""

import pytest
import torch

from headstart.adapted import Trained
from headstart.export import of_adapted, of_run
from headstart.export.onnx_file import onnx_bytes
from headstart.recipes.my_table import FittedTableRecipe
from headstart.tasks import schema as schemas
from headstart.tasks.table_files import from_records

pytest.importorskip("polars", reason="tables need the extra table")

MEAN = 1.7e9
"""Of the target: single precision would lose its deviations, some tens."""
RECORDS = [{"device": f"d{d}", "x": i * 1e-3, "y": MEAN + 9.0 * i + d} for d in range(9) for i in range(8)]
SUPPORT = [{"x": 1e-3 * i, "y": MEAN + 30 - 5.0 * i} for i in range(5)]
STEPS = 2


def untrained(records):
    torch.manual_seed(0)
    schema = schemas.fit(from_records(records), task_column="device", target="y")
    sizes = {"iterations": 1, "meta_batch": 1, "steps": 1, "inner_lr": 0.1, "shots": 2, "queries": 2}
    recipe = FittedTableRecipe(task_column="device", target="y", hidden=(8,), schema=schema, **sizes)
    return Trained(recipe.make_learner(), recipe, recipe.inputs({}), {}, {"recipe": "my-table"})


@pytest.fixture(scope="module")
def trained():
    return untrained(RECORDS)


@pytest.fixture(scope="module")
def adapted(trained):
    return trained.adapt(trained.inputs.support_of(SUPPORT), STEPS)


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("x\n0.0005\n0.004\n0.006\n")
    return file


def executed(kind, exported, *tensors):
    """The first output of a program, by torch.export or by ONNX Runtime."""
    if kind == "pt2":
        found = exported.program.module()(*tensors)
        return found[0] if isinstance(found, tuple) else found
    pytest.importorskip("onnx", reason="the extra `export` is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
    session = onnxruntime.InferenceSession(onnx_bytes(exported, {}), providers=["CPUExecutionProvider"])
    given = {name: tensor.numpy() for name, tensor in zip(exported.inputs, tensors, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


def in_unit(answers):
    return torch.tensor([[answer["y"]] for answer in answers], dtype=torch.float64)


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_an_adapted_table_model_predicts_in_the_tables_unit(adapted, rows, kind):
    exported, about = of_adapted(adapted)
    found = executed(kind, exported, adapted.inputs.rows(rows).inputs)
    torch.testing.assert_close(found, in_unit(adapted.predict(rows)), rtol=0, atol=1e-3)
    assert about["outputs"] == [{"name": "outputs", "shape": ["examples", 1], "dtype": "float64"}]
    assert about["scaled_in_graph"] == ["outputs"]


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_adaptation_to_a_table_takes_its_unit_too(trained, adapted, rows, kind):
    exported, about = of_run(trained, steps=STEPS)
    support = trained.inputs.support_of(SUPPORT).batch.inputs
    targets = torch.tensor([[row["y"]] for row in SUPPORT], dtype=torch.float64)
    found = executed(kind, exported, support, targets, trained.inputs.rows(rows).inputs)
    assert found.shape == (STEPS + 1, 3, 1)
    torch.testing.assert_close(found[-1], in_unit(adapted.predict(rows)), rtol=0, atol=1e-3)
    assert not torch.allclose(found[0], found[-1], rtol=0, atol=1e-2)
    assert [each["dtype"] for each in about["inputs"]] == ["float32", "float64", "float32"]
    assert about["scaled_in_graph"] == ["support_targets", "outputs"]


def test_classes_have_no_unit():
    exported, about = of_run(
        untrained([{**row, "y": "high" if row["x"] > 3e-3 else "low"} for row in RECORDS]), steps=1
    )
    assert [each["dtype"] for each in about["inputs"]] == ["float32", "int64", "float32"]
    assert "scaled_in_graph" not in about
    assert exported.outputs == ("outputs",)
