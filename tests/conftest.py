import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests' models are tiny: threads cost more than they give


@pytest.fixture(scope="session")
def omniglot_data() -> Path:
    """The folder of real data sets, or a skip that says what is missing."""
    folder = os.environ.get("HEADSTART_DATA")
    if folder is None or not (Path(folder) / "omniglot").is_dir():
        pytest.skip("real Omniglot is not here: set HEADSTART_DATA to a folder with omniglot/ in it")
    return Path(folder)
