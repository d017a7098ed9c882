"""What is asked wrongly is told in one sentence, with the right status."""

import json

import pytest
from starlette.testclient import TestClient

from headstart.serve import limits
from headstart.serve.app import application
from headstart.serve.workers import Workers

BLANK = [0] * 784
GOOD = {"support": [BLANK, [255] * 784], "labels": [0, 1], "query": BLANK}


def _changed(**fields):
    return {**GOOD, **fields}


def _sentence(response) -> str:
    content = response.json()
    assert list(content) == ["error"]
    sentence = content["error"]
    assert len(sentence) < 300
    assert sentence.endswith(".")
    assert "Traceback" not in sentence
    assert " at 0x" not in sentence
    return sentence


WRONG_DRAWINGS = {
    "no labels": ({"support": [BLANK], "query": BLANK}, "field labels is missing"),
    "an unknown field": (_changed(steps=3), 'no field "steps"'),
    "a list": ([], "must be a JSON object"),
    "support is text": (_changed(support="x"), "support must be a list"),
    "fewer labels": (_changed(labels=[0]), "2 support drawings and 1 labels"),
    "no drawings": (_changed(support=[], labels=[]), "of 0 classes"),
    "one class": (_changed(labels=[0, 0]), "of 1 classes"),
    "a label left out": (_changed(labels=[0, 2]), "No drawing has the label 1"),
    "eleven classes": (_changed(support=[BLANK] * 11, labels=list(range(11))), "from 0 to 9, got 10"),
    "a negative label": (_changed(labels=[0, -1]), "from 0 to 9, got -1"),
    "a label of text": (_changed(labels=[0, "1"]), 'got "1"'),
    "a label that is true": (_changed(labels=[0, True]), "got true"),
    "a label of many digits": (_changed(labels=[0, 10**4000]), "got a very large number"),
    "six drawings of a class": (_changed(support=[BLANK] * 7, labels=[0] * 6 + [1]), "Class 0 has 6 drawings"),
    "a drawing too short": (_changed(support=[BLANK, BLANK[1:]]), "Support drawing 2 must be 784"),
    "a drawing too long": (_changed(query=[*BLANK, 0]), "a list of 785"),
    "a drawing that is none": (_changed(query=None), "got null"),
    "ink of 256": (_changed(query=[256, *BLANK[1:]]), "got 256 among them"),
    "negative ink": (_changed(query=[-1, *BLANK[1:]]), "got -1 among them"),
    "half ink": (_changed(query=[0.5, *BLANK[1:]]), "got 0.5 among them"),
    "ink of text": (_changed(query=["0", *BLANK[1:]]), 'got "0" among them'),
}


@pytest.mark.parametrize(("content", "told"), WRONG_DRAWINGS.values(), ids=WRONG_DRAWINGS)
def test_wrong_drawings(post, content, told):
    response = post("/api/characters", content)
    assert response.status_code == 422
    assert told in _sentence(response)


WRONG_POINTS = {
    "no points": ({"points": []}, "1 to 20 points, got 0"),
    "twenty-one points": ({"points": [[0, 0]] * 21}, "got 21"),
    "points missing": ({"steps": 3}, "field points is missing"),
    "points are a number": ({"points": 3}, "points must be a list, got 3"),
    "a point of three": ({"points": [[1, 2, 3]]}, "a list of 3"),
    "a point that is no list": ({"points": [[0, 0], 1]}, "Point 2 must be two numbers"),
    "x too far": ({"points": [[5.1, 0]]}, "x of point 1 must be a number from -5 to 5, got 5.1"),
    "y too far": ({"points": [[0, -10.5]]}, "y of point 1"),
    "y of text": ({"points": [[0, "1"]]}, 'got "1"'),
    "y is null": ({"points": [[0, None]]}, "got null"),
    "eleven steps": ({"points": [[0, 0]], "steps": 11}, "from 0 to 10, got 11"),
    "half a step": ({"points": [[0, 0]], "steps": 1.5}, "got 1.5"),
}


@pytest.mark.parametrize(("content", "told"), WRONG_POINTS.values(), ids=WRONG_POINTS)
def test_wrong_points(post, content, told):
    response = post("/api/curve", content)
    assert response.status_code == 422
    assert told in _sentence(response)


WRONG_BODIES = {
    "empty": (b"", "not JSON"),
    "cut short": (json.dumps(GOOD)[:-20].encode(), "not JSON"),
    "no UTF-8": (b'{"points": "\xff"}', "not JSON"),
    "NaN": (b'{"points": [[NaN, 0]]}', "NaN is not a JSON number"),
    "infinity": (b'{"points": [[0, -Infinity]]}', "-Infinity is not"),
    "nested deeply": (b"[" * 200_000, "nested too deeply"),
}


@pytest.mark.parametrize(("body", "told"), WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_wrong_json(post, body, told):
    response = post("/api/curve", body)
    assert response.status_code == 400
    assert told in _sentence(response)


def test_a_number_that_overflows_is_out_of_bounds(post):
    response = post("/api/curve", b'{"points": [[0, 1e999]]}')
    assert response.status_code == 422
    assert "y of point 1" in _sentence(response)


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "", "application/jsonp"])
def test_another_content_type_is_refused(client, kind):
    response = client.post("/api/curve", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415
    assert "must be application/json" in _sentence(response)


@pytest.mark.parametrize("charset", ["punycode", "unicode_escape", "undefined", "latin-1", "no-such", '"utf-16"'])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_another_charset_is_refused(client, kind, charset):
    path = "/api/curve" if kind.endswith("json") else "/api/run"
    response = client.post(path, content=b"{}", headers={"content-type": f"{kind}; charset={charset}"})
    assert response.status_code == 415
    assert "charset must be utf-8" in _sentence(response)


def test_utf_8_may_be_named(client):
    named = {"content-type": "application/json; charset=UTF-8"}
    assert client.post("/api/curve", content=b'{"points": [[0, 0]]}', headers=named).status_code == 200


def test_a_compressed_body_is_refused(post):
    assert post("/api/curve", b"{}", **{"content-encoding": "gzip"}).status_code == 415


def test_a_large_body_is_refused_whether_it_says_so_or_not(client):
    kind = {"content-type": "application/json"}
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(100):
            sent += 1
            yield b" " * 64 * 1024

    for body in (b" " * (limits.JSON_BYTES + 1), chunks()):
        response = client.post("/api/curve", content=body, headers=kind)
        assert response.status_code == 413
        assert "larger than the 512 KiB" in _sentence(response)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/api/curve", "POST"),
        ("POST", "/api/models", "GET or HEAD"),
        ("DELETE", "/", "GET or HEAD"),
        ("PUT", "/page/index.html", "GET or HEAD"),
    ],
)
def test_another_method_is_refused(client, method, path, allowed):
    response = client.request(method, path)
    assert response.status_code == 405
    assert _sentence(response) == f"{method} is not for {path}: use {allowed}."
    assert response.headers["allow"]


def test_outputs_that_are_not_finite_are_told(models, post, monkeypatch):
    def exploding(learner, tasks, steps, norm):
        return tasks.query.inputs[:, None] * float("nan")

    monkeypatch.setattr(type(models.maml.learner), "predict", exploding)
    response = post("/api/curve", {"points": [[0, 0]]})
    assert response.status_code == 422
    assert "not finite" in _sentence(response)


def test_our_own_failures_are_told_without_a_traceback(models, post, monkeypatch):
    monkeypatch.setattr(type(models.maml.learner), "predict", lambda *args, **kwargs: 1 / 0)
    response = post("/api/curve", {"points": [[0, 0]]})
    assert response.status_code == 500
    assert "its log says more" in _sentence(response)
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_visitor_too_many_is_told_to_come_back(models, monkeypatch):
    import threading
    from concurrent.futures import ThreadPoolExecutor

    begun, go_on = threading.Semaphore(0), threading.Event()

    def slow(own, body):
        begun.release()
        assert go_on.wait(20)
        return {}

    monkeypatch.setattr("headstart.serve.answers.characters", slow)
    app = application(models, workers=Workers(models, threads=1, waiting=1))
    with TestClient(app, base_url="http://localhost") as client, ThreadPoolExecutor(3) as visitors:
        kind = {"content-type": "application/json"}
        ask = lambda: client.post("/api/characters", content=b"{}", headers=kind)  # noqa: E731
        first = visitors.submit(ask)
        assert begun.acquire(timeout=20)
        others = [visitors.submit(ask) for _ in range(2)]
        refused = next(done for done in _done(others))
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "Too many are asking" in _sentence(refused)
        assert client.get("/api/models").status_code == 200  # which needs no thread
        go_on.set()
        assert first.result(20).status_code == 200
        assert sorted(other.result(20).status_code for other in others) == [200, 503]


def _done(futures):
    from concurrent.futures import as_completed

    for future in as_completed(futures, timeout=20):
        yield future.result()
