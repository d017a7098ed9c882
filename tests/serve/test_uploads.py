"""A run of one's own, asked with image files."""

import io
import struct
import zlib
from dataclasses import replace

import pytest
import torch
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient
from torch.testing import assert_close

from headstart.serve import limits, uploads
from headstart.serve.app import application
from headstart.serve.workers import Models
from headstart.tasks.likeness import Likeness
from headstart.types import Batch


def _png(shade: int, size: int = 28, paper: int = 255) -> bytes:
    image = Image.new("L", (size, size), paper)
    image.paste(shade, (4, 4, size // 2, size - 4))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _bomb(side: int) -> bytes:
    """A small PNG that says it has `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


A, B, C = _png(0), _png(100), _png(200, size=60)
BLACK = _png(0, paper=0)
SUPPORT = [("support", ("b/1.png", B)), ("support", ("a/1.png", A)), ("support", ("a/2.png", A))]
QUERY = ("query", ("new.png", C))


def _ask(client, *parts, labels=None):
    data = None if labels is None else {"labels": labels}
    return client.post("/api/run", files=list(parts), data=data)


def _sentence(response) -> str:
    content = response.json()
    assert list(content) == ["error"]
    assert content["error"].endswith(".")
    assert len(content["error"]) < 300
    assert " at 0x" not in content["error"]
    return content["error"]


def test_files_are_predicted_as_by_the_adapted_model(client, models):
    response = _ask(client, *SUPPORT, QUERY, ("query", ("folder/other.png", A)))
    assert response.status_code == 200
    answer = response.json()
    assert answer["classes"] == ["a", "b"]
    assert answer["notes"] == []
    inputs, learner = models.run.inputs, models.run.learner
    images = torch.stack([inputs.image(io.BytesIO(file)) for file in (A, A, B)])
    adapted = learner.adapt(Batch(images, torch.tensor([0, 0, 1])), 2, norm="support")
    for file, name, row in zip((C, A), ("new.png", "other.png"), answer["predictions"], strict=True):
        expected = adapted(inputs.image(io.BytesIO(file)).unsqueeze(0))[0, :2].softmax(0)
        assert_close(torch.tensor(list(row["probabilities"].values())), expected.detach(), atol=1e-5, rtol=1e-4)
        assert list(row["probabilities"]) == ["a", "b"]
        assert row["file"] == name
        assert row["class"] == max(row["probabilities"], key=row["probabilities"].get)
        assert row["probability"] == row["probabilities"][row["class"]]


def test_labels_may_be_given_beside_the_files(client):
    by_name = _ask(client, *SUPPORT, QUERY).json()
    renamed = [("support", (f"{index}.png", file)) for index, (_, (_, file)) in enumerate(SUPPORT)]
    by_label = _ask(client, *renamed, QUERY, labels=["b", "a", "a"]).json()
    assert by_label["predictions"] == by_name["predictions"]


def test_deeper_folders_and_windows_names_give_the_class_too(client):
    named = [("support", ("photos\\b\\1.png", B)), ("support", ("photos/a/1.png", A))]
    assert _ask(client, *named, QUERY).json()["classes"] == ["a", "b"]


ALSO = SUPPORT[:2]
WRONG_FILES = {
    "no image": ([("support", ("a/x.png", b"hello")), SUPPORT[0]], None, "Cannot read x.png as an image"),
    "a damaged image": ([("support", ("a/x.png", A[:60])), SUPPORT[0]], None, "x.png"),
    "a bomb": (
        [("support", ("a/x.png", _bomb(6000))), SUPPORT[0]],
        None,
        "6000x6000 pixels, more than the 16000000 allowed",
    ),
    "a larger bomb": ([("support", ("a/x.png", _bomb(20_000))), SUPPORT[0]], None, "Cannot read x.png"),
    "an SVG": ([("support", ("a/x.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")), SUPPORT[0]], None, "x.svg"),
    "an empty file": ([("support", ("a/x.png", b"")), SUPPORT[0]], None, "x.png is empty"),
    "one class": (SUPPORT[1:], None, "of 1 classes: give 2 to 3"),
    "four classes": ([("support", (f"{i}/1.png", A)) for i in range(4)], None, "of 4 classes: give 2 to 3"),
    "no class": ([("support", ("1.png", A)), SUPPORT[0]], None, "1.png has no class"),
    "a path out of its folder": ([("support", ("../a/x.png", A)), SUPPORT[0]], None, "x.png is named by a path out of"),
    "a long path out": (
        [("support", ("../" * 300 + "a/x.png", A)), SUPPORT[0]],
        None,
        "x.png is named by a path out of",
    ),
    "a file with a control character": ([*SUPPORT, ("query", ("a\x1b.png", A))], None, "printable characters"),
    "a class named ..": (ALSO, ["..", "a"], "1.png has no class"),
    "a class without a name": (ALSO, [" ", "a"], "1.png has no class"),
    "a class with a control character": (ALSO, ["a\x07", "b"], "printable"),
    "a class with a long name": (ALSO, ["a" * 101, "b"], "at most 100"),
    "a file with a long name": ([("support", ("a/" + "x" * 101, A)), SUPPORT[0]], None, "a name of 1 to 100"),
    "fewer labels": (ALSO, ["a"], "2 support files and 1 labels"),
    "too many images": ([("support", ("a/x.png", A))] * 101, None, "101 files in the field support"),
    "no support": ([], None, "0 files in the field support"),
    "an unknown field": ([*SUPPORT, ("extra", ("x.png", A))], None, "no field 'extra'"),
}


@pytest.mark.parametrize(("parts", "labels", "told"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_files(client, parts, labels, told):
    response = _ask(client, *parts, QUERY, labels=labels)
    assert response.status_code == 422
    assert told in _sentence(response)


def test_images_of_many_pixels_together_are_refused_before_any_is_decoded(client, models, monkeypatch):
    decoded = []
    monkeypatch.setattr(type(models.run.inputs), "image", lambda *given: decoded.append(given))
    many = [("query", (f"{i}.png", _bomb(4000))) for i in range(13)]
    response = _ask(client, *SUPPORT, *many)
    assert response.status_code == 413
    assert "208 million pixels together, more than the 200 million" in _sentence(response)
    assert decoded == []


def test_images_are_not_decoded_for_a_visitor_who_left(models):
    named = {name: [UploadFile(io.BytesIO(A), filename="1.png")] for name in "ab"}
    given = uploads.Upload(named, [UploadFile(io.BytesIO(A), filename="new.png")])
    looks = iter([False, False, True])  # before each image
    with pytest.raises(ClientDisconnect):
        uploads.predictions(models.run, given, lambda: next(looks))
    assert next(looks, None) is None


def test_what_looks_unlike_the_training_images_is_noted_of_both_kinds(models):
    likeness = Likeness((0.0, 0.0, 0.0, 0.0), (0.5, 0.5, 0.5, 0.5))
    run = replace(models.run, inputs=replace(models.run.inputs, likeness=likeness))
    ask = application(Models(models.characters, models.maml, models.pretrained, run))
    with TestClient(ask, base_url="http://localhost") as client:
        assert _ask(client, *SUPPORT, QUERY).json()["notes"] == []
        notes = _ask(client, *SUPPORT, QUERY, ("query", ("black.png", BLACK))).json()["notes"]
    assert len(notes) == 1
    assert "1 of 2 query images look unlike" in notes[0]


@pytest.fixture
def adapted(models):
    """A run adapted to two classes, as it is served."""
    images = {"a": [io.BytesIO(A)], "b": [io.BytesIO(B)]}
    model = models.run.adapt(models.run.inputs.examples(images, models.run.inputs.image))
    app = application(Models(models.characters, models.maml, models.pretrained, model))
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def test_an_adapted_model_needs_no_support_files(client, adapted):
    told = adapted.get("/api/models").json()["run"]
    assert (told["classes"], told["classes_limit"], told["steps"]) == (["a", "b"], 2, 2)
    answer = _ask(adapted, QUERY, ("query", ("a.png", A))).json()
    alone = _ask(client, *SUPPORT[:2], QUERY, ("query", ("a.png", A))).json()
    assert answer["classes"] == ["a", "b"]
    for row, expected in zip(answer["predictions"], alone["predictions"], strict=True):
        assert row["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)


@pytest.mark.parametrize(("parts", "labels"), [(SUPPORT, None), ([], ["a"])])
def test_an_adapted_model_takes_none(adapted, parts, labels):
    response = _ask(adapted, *parts, QUERY, labels=labels)
    assert response.status_code == 422
    assert "adapted already" in _sentence(response)


def test_a_query_is_needed_and_must_be_an_image(client):
    missing = _ask(client, *SUPPORT)
    assert (missing.status_code, "0 files in the field query" in _sentence(missing)) == (422, True)
    wrong = _ask(client, *SUPPORT, ("query", ("new.txt", b"text")))
    assert (wrong.status_code, "Cannot read new.txt" in _sentence(wrong)) == (422, True)


def test_text_is_no_file(client):
    response = client.post("/api/run", data={"support": "text"}, files=[QUERY])
    assert response.status_code == 422
    assert "must be files, got text" in _sentence(response)


def test_a_thousand_files_are_refused(client):
    response = _ask(client, *[("support", ("a/x.png", b"x"))] * 1000)
    assert response.status_code == 413
    assert "150 files at most" in _sentence(response)


def test_a_large_file_and_a_large_upload_are_refused(client, monkeypatch):
    monkeypatch.setattr(limits, "FILE_BYTES", 1000)
    response = _ask(client, ("support", ("a/x.png", b"x" * 1001)), *SUPPORT, QUERY)
    assert response.status_code == 413
    assert "x.png is larger" in _sentence(response)
    monkeypatch.setattr("headstart.serve.bodies.UPLOAD_BYTES", 2048)
    for content in (b"x" * 4096, (b"x" * 1024 for _ in range(4))):
        kind = {"content-type": "multipart/form-data; boundary=b"}
        response = client.post("/api/run", content=content, headers=kind)
        assert response.status_code == 413
        assert "larger than the 2 KiB" in _sentence(response)


PART = b'--b\r\nContent-Disposition: form-data; name="support"; filename="a/1.png"\r\n\r\n'
DAMAGED = {
    "cut short": PART + b"half an image",
    "empty": b"",
    "no parts": b"nothing like it --b--",
    "a part without a name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
    "a long field": b'--b\r\nContent-Disposition: form-data; name="labels"\r\n\r\n' + b"x" * 500 + b"\r\n--b--\r\n",
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_upload_is_refused(client, body):
    response = client.post("/api/run", content=body, headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code == 400
    assert "The upload is damaged" in _sentence(response)


def test_an_upload_without_a_boundary_is_refused(client):
    response = client.post("/api/run", content=b"x", headers={"content-type": "multipart/form-data"})
    assert response.status_code == 400
    _sentence(response)


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "image/png"])
def test_another_content_type_is_refused(client, kind):
    response = client.post("/api/run", content=b"x", headers={"content-type": kind})
    assert response.status_code == 415
    assert "must be multipart/form-data" in _sentence(response)


def test_an_upload_too_many_is_told_to_come_back(client, monkeypatch):
    monkeypatch.setattr("headstart.serve.app.UPLOADS", 0)
    response = _ask(client, *SUPPORT, QUERY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    _sentence(response)
