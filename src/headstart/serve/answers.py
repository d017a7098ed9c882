"""From what the page asks of the shipped models, as JSON, to its answer."""

import json
import time
from typing import Any, NoReturn

import torch
from torch import Tensor

from headstart.adapted import Trained
from headstart.serve import limits
from headstart.serve.errors import RequestError
from headstart.types import Batch, Task


def characters(trained: Trained, body: bytes) -> dict[str, Any]:
    """Probabilities of the classes of one drawing, before adaptation and after each step.

    Args:
        trained: A model of characters, for any number of classes.
        body: JSON `{"support": [[784 numbers] ...], "labels": [...], "query": [784 numbers]}`, ink high.

    Raises:
        RequestError: It is something else.
    """
    asked = _fields(body, required=("support", "labels", "query"))
    drawings, labels = _list(asked, "support"), _list(asked, "labels")
    if len(drawings) != len(labels):
        _refuse(f"There are {len(drawings)} support drawings and {len(labels)} labels: give a label for each drawing.")
    _check_labels(labels)
    support = torch.stack([_drawing(drawing, f"Support drawing {i + 1}") for i, drawing in enumerate(drawings)])
    query = _drawing(asked["query"], "The query").unsqueeze(0)
    started = time.perf_counter()
    outputs = _outputs(trained, Batch(support, torch.tensor(labels)), query, trained.recipe.eval_steps)
    probabilities = outputs[:, 0].softmax(-1).tolist()
    return {"probabilities": probabilities, "adaptation_ms": _ms_since(started)}


def curve(maml: Trained, pretrained: Trained, body: bytes) -> dict[str, Any]:
    """Curves through points, before adaptation and after each step, of two models.

    Args:
        maml: Meta-trained.
        pretrained: Trained on all curves jointly.
        body: JSON `{"points": [[x, y] ...], "steps": 10}`.

    Raises:
        RequestError: It is something else.
    """
    asked = _fields(body, required=("points",), optional=("steps",))
    points = torch.tensor([_point(point, i + 1) for i, point in enumerate(_points(asked))])
    steps = asked.get("steps", limits.MAX_CURVE_STEPS)
    if type(steps) is not int or not 0 <= steps <= limits.MAX_CURVE_STEPS:
        _refuse(f"steps must be a whole number from 0 to {limits.MAX_CURVE_STEPS}, got {_shown(steps)}.")
    grid = torch.linspace(-limits.X_LIMIT, limits.X_LIMIT, limits.GRID).unsqueeze(1)
    support = Batch(points[:, :1], points[:, 1:])
    started = time.perf_counter()
    curves = {
        name: [_rounded(values) for values in _outputs(trained, support, grid, steps)[..., 0].tolist()]
        for name, trained in (("maml", maml), ("pretrained", pretrained))
    }
    return {"x": _rounded(grid[:, 0].tolist()), **curves, "adaptation_ms": _ms_since(started)}


def _outputs(trained: Trained, support: Batch, query: Tensor, steps: int) -> Tensor:
    """Outputs for the queries, `[steps + 1, queries, outputs]`."""
    task = Task(Batch(support.inputs[None], support.targets[None]), Batch(query[None], query[None]))
    outputs = trained.learner.predict(task, steps, norm="support")[0]
    if not bool(outputs.isfinite().all()):
        _refuse("Adapting to these examples gives outputs that are not finite: change or remove some of them.")
    return outputs


def _fields(body: bytes, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON object of a body, with these fields and no others."""
    try:
        content = json.loads(body.decode(), parse_constant=_no_constant)
    except RecursionError as error:
        raise RequestError(400, "The body is nested too deeply: send a plain JSON object.") from error
    except ValueError as error:
        raise RequestError(400, f"The body is not JSON in UTF-8: {error}.") from error
    known = (*required, *optional)
    if not isinstance(content, dict):
        _refuse(f"The body must be a JSON object with {', '.join(known)}.")
    missing = [name for name in required if name not in content]
    if missing:
        _refuse(f"The field {missing[0]} is missing: give {', '.join(required)}.")
    unknown = [name for name in content if name not in known]
    if unknown:
        _refuse(f"There is no field {_shown(unknown[0])}: the fields are {', '.join(known)}.")
    return content


def _list(asked: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(asked[name], list):
        _refuse(f"{name} must be a list, got {_shown(asked[name])}.")
    return asked[name]


def _check_labels(labels: list[Any]) -> None:
    """Refuse labels other than from 0 to ways - 1, each at least once and not too often."""
    most = limits.MAX_WAYS - 1
    for label in labels:
        if type(label) is not int or not 0 <= label <= most:
            _refuse(f"A label must be a whole number from 0 to {most}, got {_shown(label)}.")
    found = sorted(set(labels))
    if len(found) < limits.MIN_WAYS:
        _refuse(f"There are drawings of {len(found)} classes: give {limits.MIN_WAYS} to {limits.MAX_WAYS} classes.")
    if found != list(range(len(found))):
        absent = next(label for label in range(most) if label not in found)
        _refuse(f"No drawing has the label {absent}, though one has {found[-1]}: number the classes 0, 1, 2 ...")
    for label in found:
        if labels.count(label) > limits.MAX_SHOTS:
            _refuse(f"Class {label} has {labels.count(label)} drawings: give {limits.MAX_SHOTS} at most.")


def _drawing(values: Any, what: str) -> Tensor:
    """A drawing in [0, 1], `[1, 28, 28]`."""
    told = (
        f"{what} must be {limits.PIXELS} whole numbers from 0 to 255, the rows of a {limits.SIZE} x {limits.SIZE} image"
    )
    if not isinstance(values, list) or len(values) != limits.PIXELS:
        _refuse(f"{told}, got {_shown(values)}.")
    if set(map(type, values)) != {int} or min(values) < 0 or max(values) > 255:
        wrong = next(value for value in values if type(value) is not int or not 0 <= value <= 255)
        _refuse(f"{told}, got {_shown(wrong)} among them.")
    return torch.tensor(values, dtype=torch.float32).reshape(1, limits.SIZE, limits.SIZE) / 255


def _points(asked: dict[str, Any]) -> list[Any]:
    points = _list(asked, "points")
    if not 1 <= len(points) <= limits.MAX_POINTS:
        _refuse(f"Give 1 to {limits.MAX_POINTS} points, got {len(points)}.")
    return points


def _point(point: Any, number: int) -> tuple[float, float]:
    """The x and y of a point, within the limits."""
    if not isinstance(point, list) or len(point) != 2:
        _refuse(f"Point {number} must be two numbers [x, y], got {_shown(point)}.")
    for name, value, limit in zip("xy", point, (limits.X_LIMIT, limits.Y_LIMIT), strict=True):
        if type(value) not in (int, float) or not -limit <= value <= limit:
            _refuse(f"{name} of point {number} must be a number from {-limit:g} to {limit:g}, got {_shown(value)}.")
    return float(point[0]), float(point[1])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _shown(value: Any) -> str:
    """What was given, short enough for a sentence."""
    if isinstance(value, (list, dict)):
        return f"a {'list' if isinstance(value, list) else 'object'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**15:
        return "a very large number"  # whose digits Python would refuse to write
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _refuse(sentence: str) -> NoReturn:
    raise RequestError(422, sentence)


def _rounded(values: list[float]) -> list[float]:
    """To what a picture can show, in a third of the bytes."""
    return [round(value, 4) for value in values]


def _ms_since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 2)
