import json
from collections.abc import Iterator

import pytest
import torch
from starlette.testclient import TestClient

from headstart.adapted import Trained
from headstart.inputs.images import ImageInputs
from headstart.recipes.characters import CharacterRecipe
from headstart.serve.app import application
from headstart.serve.workers import Models
from headstart.shipped import shipped


@pytest.fixture(scope="session")
def models() -> Models:
    """The shipped models, and a small run of 3 classes that was never trained."""
    recipe = CharacterRecipe(
        meta_batch=1,
        shots=1,
        queries=1,
        iterations=1,
        ways=3,
        filters=4,
        steps=2,
        eval_steps=2,
        inner_lr=0.5,
        dataset="glyphs",
    )
    torch.manual_seed(0)
    about = {"recipe": "glyphs-5way-1shot", "checkpoint": "best", "iteration": 1, "inner_lr": 0.5}
    own = Trained(recipe.make_learner().eval(), recipe, ImageInputs(28), {}, about)
    return Models(shipped("characters"), shipped("curve-maml"), shipped("curve-pretrained"), own)


@pytest.fixture
def client(models) -> Iterator[TestClient]:
    """A visitor; the server's own errors come back as status 500."""
    with TestClient(application(models), base_url="http://localhost:8000", raise_server_exceptions=False) as found:
        yield found


@pytest.fixture
def characters_task():
    """A maker of what the page asks of characters, from a seed."""

    def made(seed: int, ways: int = 5, shots: int = 1) -> dict:
        rng = torch.Generator().manual_seed(seed)
        drawings = (torch.rand(ways * shots + 1, 784, generator=rng) < 0.15).long() * 255
        return {
            "support": drawings[:-1].tolist(),
            "labels": [label for label in range(ways) for _ in range(shots)],
            "query": drawings[-1].tolist(),
        }

    return made


@pytest.fixture
def post(client):
    """A maker of JSON requests."""

    def made(path: str, content, **headers: str):
        body = content if isinstance(content, (bytes, str)) else json.dumps(content)
        return client.post(path, content=body, headers={"content-type": "application/json", **headers})

    return made
