import gc
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from starlette.testclient import TestClient
from torch.testing import assert_close

from headstart.serve.app import application
from headstart.shipped import shipped, shipped_evaluation
from headstart.types import Batch


def _by_hand(learner, inputs, targets, query, steps):
    """Outputs after each number of steps, by `learner.adapt` of one task."""
    found = [learner.adapt(Batch(inputs, targets), taken, norm="support")(query) for taken in range(steps + 1)]
    return torch.stack(found).detach()


@pytest.mark.parametrize(("ways", "shots"), [(2, 1), (5, 1), (10, 5)])
def test_characters_are_answered_as_by_the_learner(post, characters_task, models, ways, shots):
    asked = characters_task(seed=1, ways=ways, shots=shots)
    response = post("/api/characters", asked)
    assert response.status_code == 200
    support, query = (torch.tensor(asked[name]).reshape(-1, 1, 28, 28) / 255 for name in ("support", "query"))
    outputs = _by_hand(models.characters.learner, support, torch.tensor(asked["labels"]), query, steps=3)
    answer = response.json()
    assert_close(torch.tensor(answer["probabilities"]), outputs[:, 0].softmax(-1), atol=1e-4, rtol=1e-3)
    assert answer["adaptation_ms"] > 0


def test_curves_are_answered_as_by_the_learners(post, models):
    points = [[-4.0, 1.0], [0.5, -2], [3, 2.5]]
    answer = post("/api/curve", {"points": points, "steps": 2}).json()
    grid, given = torch.linspace(-5, 5, 101).unsqueeze(1), torch.tensor(points)
    assert_close(torch.tensor(answer["x"]), grid[:, 0])
    for name in ("maml", "pretrained"):
        outputs = _by_hand(getattr(models, name).learner, given[:, :1], given[:, 1:], grid, steps=2)
        assert_close(torch.tensor(answer[name]), outputs[..., 0], atol=2e-4, rtol=1e-3)


def test_a_curve_takes_ten_steps_unless_told(post):
    answer = post("/api/curve", {"points": [[0, 0]]}).json()
    assert [len(answer["maml"]), len(answer["pretrained"])] == [11, 11]
    assert len(post("/api/curve", {"points": [[0, 0]], "steps": 0}).json()["maml"]) == 1


def test_what_is_served_is_described(client, models):
    told = client.get("/api/models").json()
    assert (told["characters"]["size"], told["characters"]["steps"]) == (28, 3)
    assert told["characters"]["recipe"] == shipped("characters").about["recipe"]
    assert (told["curve"]["steps"], told["curve"]["x"]) == (10, [-5, 5])
    assert told["run"]["classes_limit"] == 3
    assert told["run"]["kind"] == "characters"
    assert told["run"]["classes"] is None
    measured = shipped_evaluation("characters", "support")
    assert measured is not None
    assert told["characters"]["accuracy"] == measured["per_step"][-1]["mean"] > 0.9


def test_without_a_run_there_is_none(models, page):
    app = application(type(models)(models.characters, models.maml, models.pretrained), page=page)
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/api/models").json()["run"] is None
        response = client.post("/api/run", files={"support": ("a/1.png", b"x")})
    assert response.status_code == 404
    assert "headstart serve RUN" in response.json()["error"]


def test_visitors_at_once_get_their_own_answers(post, characters_task):
    tasks = [characters_task(seed, ways=2 + seed % 3) for seed in range(12)]
    alone = [post("/api/characters", task).json()["probabilities"] for task in tasks]
    with ThreadPoolExecutor(6) as visitors:
        together = list(visitors.map(lambda task: post("/api/characters", task).json()["probabilities"], tasks * 2))
    for expected, got in zip(alone * 2, together, strict=True):
        assert_close(torch.tensor(got), torch.tensor(expected))


def test_nothing_of_a_request_is_kept(post, caplog):
    """Whatever is kept of a request is an object at least, and each object is a block of memory."""
    caplog.set_level(logging.WARNING, logger="httpx2")  # pytest keeps what the client logs of each request

    def blocks_after(requests: int) -> int:
        for _ in range(requests):
            assert post("/api/curve", {"points": [[0, 1], [1, 0]], "steps": 0}).status_code == 200
        gc.collect()
        return sys.getallocatedblocks()

    found = [blocks_after(300) for _ in range(5)]  # what is kept once (caches, threads) comes ever more rarely
    assert min(after - before for before, after in pairwise(found)) < 300


@pytest.fixture
def page(tmp_path):
    folder = tmp_path / "page"
    (folder / "vendor").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>Page</title>")
    (folder / "vendor" / "app.js").write_text("let a = 1;")
    (folder / "net.wasm").write_bytes(b"\0asm")
    (tmp_path / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    return folder


@pytest.fixture
def files(models, page):
    with TestClient(application(models, page=page), base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/index.html", "text/html; charset=utf-8"),
        ("/page/vendor/app.js", "text/javascript; charset=utf-8"),
        ("/page/net.wasm", "application/wasm"),
    ],
)
def test_the_page_is_served_with_its_types_and_asked_about_each_time(files, path, kind):
    response = files.get(path)
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert response.headers["cache-control"] == "no-cache"
    again = files.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/page/../secret.txt",
        "/page/%2e%2e/secret.txt",
        "/page/..%2fsecret.txt",
        "/page//etc/passwd",
        "/page/link.txt",
        "/page/a%00b",
        "/page/vendor",
        "/page/" + "a" * 5000,
        "/nothing",
        "/api/nothing",
    ],
)
def test_nothing_else_is_served(files, path):
    response = files.get(path)
    assert response.status_code == 404
    assert response.json()["error"].startswith("There is nothing at /")
    assert "secret" not in response.text.replace("secret.txt", "")


def test_the_shipped_page_is_there(client):
    assert "text/html" in client.get("/").headers["content-type"]
