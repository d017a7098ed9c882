"""The notebooks' cells run as they stand, with fewer iterations, and give what their texts say."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    needed = {"sinusoid": "matplotlib", "your_table": "polars"}.get(path.stem)
    if needed is not None:
        pytest.importorskip(needed)
    if needed == "matplotlib":
        import matplotlib

        matplotlib.use("agg")
    names: dict = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            code = "".join(cell["source"]).replace("tempfile.mkdtemp()", repr(str(tmp_path)))
            code = code.replace("= 3000", "= 400").replace("= 200", "= 20").replace("= 300", "= 100")
            exec(compile(code, path.name, "exec"), names)
    if path.stem == "sinusoid":
        errors = names["errors"]
        assert errors[5] < errors[1] < errors[0]
    else:
        assert (tmp_path / "adapted" / "adapted.json").exists()
        answers = names["answers"]
        assert len(answers) == {"your_images": 4, "your_table": 20}[path.stem]
    if path.stem == "your_table":
        assert names["error"] < names["error_of_mean"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_kept_output_tells_of_an_error(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    kept = json.dumps([cell["outputs"] for cell in cells])
    assert "headstart: " not in kept
    assert "Warning" not in kept
    assert all(cell["execution_count"] for cell in cells)


def test_the_tables_kept_error_is_below_that_of_the_mean():
    notebook = next(path for path in NOTEBOOKS if path.stem == "your_table").read_text()
    error, of_mean = map(float, re.findall(r"Mean error (\d\.\d+) of .* mean (\d\.\d+)", notebook)[0])
    assert error < of_mean
