"""From a form with images to predictions of a run of one's own."""

import time
from typing import Any, NamedTuple, NoReturn

import torch
from starlette.datastructures import FormData, UploadFile

from headstart.adapted import Trained
from headstart.inputs import InputError, Support
from headstart.inputs.images import ImageInputs
from headstart.recipes.learners import ANY_WAYS
from headstart.serve import limits
from headstart.serve.errors import RequestError
from headstart.types import Batch


class Upload(NamedTuple):
    """The files of a form.

    Attributes:
        support: By class, in the order of the classes' names.
        queries: To be predicted.
    """

    support: dict[str, list[UploadFile]]
    queries: list[UploadFile]


def upload(form: FormData, most_classes: int) -> Upload:
    """The files of a form, in number and size as allowed.

    Args:
        form: With files `support`, named CLASS/FILE or with a field `labels` each, and files `query`.
        most_classes: That the run tells apart.

    Raises:
        RequestError: They are not.
    """
    unknown = [name for name in form if name not in ("support", "query", "labels")]
    if unknown:
        _refuse(f"There is no field {unknown[0][: limits.NAME_LENGTH]!r}: the fields are support, query and labels.")
    support, queries = _files(form, "support", limits.RUN_SUPPORT), _files(form, "query", limits.RUN_QUERIES)
    labels = form.getlist("labels")
    if labels and len(labels) != len(support):
        _refuse(f"There are {len(support)} support files and {len(labels)} labels: give one for each, or none.")
    by_class: dict[str, list[UploadFile]] = {}
    for index, file in enumerate(support):
        by_class.setdefault(_class_of(file, labels[index] if labels else None), []).append(file)
    if not 2 <= len(by_class) <= most_classes:
        _refuse(f"The support files are of {len(by_class)} classes: give 2 to {most_classes} classes.")
    return Upload(dict(sorted(by_class.items())), queries)


def predictions(trained: Trained, given: Upload) -> dict[str, Any]:
    """The run adapted to the support files, and what it then says of each query file.

    Raises:
        RequestError: A file is no image that can be used.
    """
    inputs = trained.inputs
    assert isinstance(inputs, ImageInputs)
    try:
        images = torch.stack([_image(inputs, file) for files in given.support.values() for file in files])
        queries = torch.stack([_image(inputs, file) for file in given.queries])
        labels = [label for label, files in enumerate(given.support.values()) for _ in files]
        notes = () if inputs.likeness is None else inputs.likeness.notes(images, "support")
        support = Support(Batch(images, torch.tensor(labels)), tuple(given.support), notes)
        started = time.perf_counter()
        adapted = trained.adapt(support)
        with torch.no_grad():
            answers = inputs.answers(adapted.model(queries), adapted.classes)
        taken_ms = round((time.perf_counter() - started) * 1000, 2)
    except InputError as error:
        text = f"{error}".rstrip(".")
        raise RequestError(422, f"{text[:1].upper()}{text[1:]}.") from error
    named = [{"file": _name(file), **answer} for file, answer in zip(given.queries, answers, strict=True)]
    return {"classes": list(adapted.classes), "predictions": named, "notes": list(notes), "adaptation_ms": taken_ms}


def most_classes(trained: Trained) -> int:
    """How many classes an upload to the run may have."""
    return limits.RUN_WAYS if trained.recipe.learner in ANY_WAYS else min(trained.recipe.classes or 0, limits.RUN_WAYS)


def _files(form: FormData, field: str, most: int) -> list[UploadFile]:
    files = form.getlist(field)
    if not 1 <= len(files) <= most:
        _refuse(f"There are {len(files)} files in the field {field}: give 1 to {most}.")
    found = []
    for file in files:
        if not isinstance(file, UploadFile):
            _refuse(f"The field {field} must be files, got text: send each with a file name.")
        if not _name(file) or len(_name(file)) > limits.NAME_LENGTH:
            _refuse(f"A file of the field {field} needs a name of 1 to {limits.NAME_LENGTH} characters.")
        if ".." in _path(file):
            _refuse(f"The file name {file.filename!r} leads out of its folder: name it CLASS/FILE.")
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


def _image(inputs: ImageInputs, file: UploadFile) -> torch.Tensor:
    return inputs.image(file.file, _name(file), limits.IMAGE_PIXELS)


def _name(file: UploadFile) -> str:
    """The file's name without its folders."""
    return _path(file)[-1]


def _path(file: UploadFile) -> list[str]:
    """Folders and name, as Windows or others write them."""
    return (file.filename or "").replace("\\", "/").split("/")


def _refuse(sentence: str, status: int = 422) -> NoReturn:
    raise RequestError(status, sentence)
