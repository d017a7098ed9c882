"""From a form with images to predictions of a run of one's own."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect

from headstart.adapted import Adapted, Trained
from headstart.inputs import InputError
from headstart.inputs.images import ImageInputs
from headstart.recipes.learners import ANY_WAYS
from headstart.serve import limits
from headstart.serve.errors import RequestError
from headstart.tasks.images import pixels


class Upload(NamedTuple):
    """The files of a form.

    Attributes:
        support: By class, in the order of the classes' names; empty for a model that is adapted already.
        queries: To be predicted.
    """

    support: dict[str, list[UploadFile]]
    queries: list[UploadFile]


def upload(form: FormData, model: Trained | Adapted) -> Upload:
    """The files of a form, in number and size as allowed.

    Args:
        form: With files `support`, named CLASS/FILE or with a field `labels` each, and files `query`.
        model: To be asked; one that is adapted already takes files `query` alone.

    Raises:
        RequestError: They are not.
    """
    unknown = [name for name in form if name not in ("support", "query", "labels")]
    if unknown:
        _refuse(f"There is no field {unknown[0][: limits.NAME_LENGTH]!r}: the fields are support, query and labels.")
    if isinstance(model, Adapted):
        if "support" in form or "labels" in form:
            _refuse("This server's model is adapted already: give files query alone.")
        return Upload({}, _files(form, "query", limits.RUN_QUERIES))
    support, queries = _files(form, "support", limits.RUN_SUPPORT), _files(form, "query", limits.RUN_QUERIES)
    labels = form.getlist("labels")
    if labels and len(labels) != len(support):
        _refuse(f"There are {len(support)} support files and {len(labels)} labels: give one for each, or none.")
    by_class: dict[str, list[UploadFile]] = {}
    for index, file in enumerate(support):
        by_class.setdefault(_class_of(file, labels[index] if labels else None), []).append(file)
    most = most_classes(model)
    if not 2 <= len(by_class) <= most:
        _refuse(f"The support files are of {len(by_class)} classes: give 2 to {most} classes.")
    return Upload(dict(sorted(by_class.items())), queries)


def predictions(model: Trained | Adapted, given: Upload, left: Callable[[], bool]) -> dict[str, Any]:
    """The model adapted to the support files, where it is not adapted already, and what it says of each query file.

    Args:
        model: Of images.
        given: Files; they are decoded here.
        left: Whether the visitor has left meanwhile.

    Raises:
        RequestError: A file is no image that can be used, or all are too many pixels.
        ClientDisconnect: The visitor has left.
    """
    inputs = model.inputs
    assert isinstance(inputs, ImageInputs)
    _check_pixels(given)

    def read(file: UploadFile) -> torch.Tensor:
        if left():
            raise ClientDisconnect
        return inputs.image(file.file, _name(file), limits.IMAGE_PIXELS)

    try:
        queries = torch.stack([read(file) for file in given.queries])
        if isinstance(model, Adapted):
            started, adapted, notes = time.perf_counter(), model, ()
        else:
            support = inputs.examples(given.support, read)
            started = time.perf_counter()
            adapted, notes = model.adapt(support), support.notes
        with torch.no_grad():
            answers = inputs.answers(adapted.model(queries), adapted.classes)
        taken_ms = round((time.perf_counter() - started) * 1000, 2)
    except InputError as error:
        text = f"{error}".rstrip(".")
        raise RequestError(422, f"{text[:1].upper()}{text[1:]}.") from error
    if inputs.likeness is not None:
        notes += inputs.likeness.notes(queries, "query")
    named = [{"file": _name(file), **answer} for file, answer in zip(given.queries, answers, strict=True)]
    return {"classes": list(adapted.classes), "predictions": named, "notes": list(notes), "adaptation_ms": taken_ms}


def _check_pixels(given: Upload) -> None:
    """Refuse more pixels than are decoded within seconds, before any is: an image of many may be a small file."""
    files = [*given.queries, *(file for group in given.support.values() for file in group)]
    total = sum(pixels(file.file) for file in files)
    if total > limits.UPLOAD_PIXELS:
        _refuse(
            f"The images have {total // 10**6} million pixels together, more than the {limits.UPLOAD_PIXELS // 10**6} "
            "million allowed: make them smaller, or leave some out.",
            413,
        )


def most_classes(trained: Trained | Adapted) -> int:
    """How many classes an upload to the run may have; of an adapted model, how many it tells apart."""
    if isinstance(trained, Adapted):
        return len(trained.classes)
    return limits.RUN_WAYS if trained.recipe.learner in ANY_WAYS else min(trained.recipe.classes or 0, limits.RUN_WAYS)


def _files(form: FormData, field: str, most: int) -> list[UploadFile]:
    files = form.getlist(field)
    if not 1 <= len(files) <= most:
        _refuse(f"There are {len(files)} files in the field {field}: give 1 to {most}.")
    found = []
    for file in files:
        if not isinstance(file, UploadFile):
            _refuse(f"The field {field} must be files, got text: send each with a file name.")
        if not _name(file) or len(_name(file)) > limits.NAME_LENGTH or not _name(file).isprintable():
            _refuse(f"A file of the field {field} needs a name of 1 to {limits.NAME_LENGTH} printable characters.")
        if ".." in _path(file):
            _refuse(f"The file {_name(file)} is named by a path out of its folder: name it CLASS/FILE.")
        if not file.size:
            _refuse(f"{_name(file)} is empty: leave it out.")
        if file.size > limits.FILE_BYTES:
            _refuse(f"{_name(file)} is larger than the {limits.FILE_BYTES // 2**20} MiB allowed: make it smaller.", 413)
        found.append(file)
    return found


def _class_of(file: UploadFile, label: Any) -> str:
    """The class of a support file: its label, or else the folder in its name. Nothing is written by these names."""
    if label is None:
        folders = _path(file)[:-1]
        if not folders:
            _refuse(f"{_name(file)} has no class: name support files CLASS/FILE, or give a field labels for each.")
        label = folders[-1]
    if not isinstance(label, str) or not label.strip() or label.strip() in (".", ".."):
        _refuse(f"{_name(file)} has no class: give it one with a name.")
    if len(label) > limits.NAME_LENGTH or not label.isprintable():
        _refuse(f"The class of {_name(file)} needs a name of at most {limits.NAME_LENGTH} printable characters.")
    return label.strip()


def _name(file: UploadFile) -> str:
    """The file's name without its folders."""
    return _path(file)[-1]


def _path(file: UploadFile) -> list[str]:
    """Folders and name, as Windows or others write them."""
    return (file.filename or "").replace("\\", "/").split("/")


def _refuse(sentence: str, status: int = 422) -> NoReturn:
    raise RequestError(status, sentence)
