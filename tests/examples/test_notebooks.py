"""The notebooks' cells run as they stand, with fewer iterations, and give what their texts say."""

import json
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
            code = code.replace("= 3000", "= 400").replace("= 200", "= 20").replace("= 300", "= 20")
            exec(compile(code, path.name, "exec"), names)
    if path.stem == "sinusoid":
        errors = names["errors"]
        assert errors[5] < errors[1] < errors[0]
    else:
        assert (tmp_path / "adapted" / "adapted.json").exists()
        answers = names["answers"]
        assert len(answers) == {"your_images": 4, "your_table": 20}[path.stem]
