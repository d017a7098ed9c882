"""An adapted model, or adaptation itself, as a program of plain operations: `torch.export`'s `ExportedProgram`.

Adaptation is the learner's own `predict`, run once with every operation that it comes down to recorded: the inner
gradients are in the graph as the operations that compute them, and no runtime needs to know how to differentiate.
What is learned is a constant of the graph. Numbers of examples stay open where the network lets them.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from headstart.algorithms.heads import TaskHead
from headstart.algorithms.maml import MAML
from headstart.export.operations import SUBSTITUTES
from headstart.export.tidy import changes_in_place, tidied
from headstart.inputs.base import Unit
from headstart.layers import Norm
from headstart.training.tracing import first_line, random_operations
from headstart.types import Batch, Task


class ExportError(ValueError):
    """A model or its adaptation cannot be exported; the message says why."""


class ArgumentError(ExportError):
    """What is asked for cannot be, which is known before the work."""


@dataclass(frozen=True)
class Exported:
    """A program, and the names of what goes in and comes out.

    Attributes:
        program: As `torch.export` made it.
        inputs: Names, in order.
        outputs: Likewise.
        axes: For each input the name of its first axis, if its length is open.
    """

    program: ExportedProgram
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: tuple[str | None, ...]


def adaptation(
    learner: MAML,
    support: Batch,
    queries: Any,
    steps: int,
    *,
    norm: Norm = "support",
    unit: Unit | None = None,
    open_support: bool = True,
    open_queries: bool = True,
) -> Exported:
    """A learner's adaptation and prediction: from support set and queries to `outputs` before and after every step.

    These are `learner.predict`'s for one task, `[steps + 1, queries, ...]`.

    Args:
        learner: Its parameters become constants.
        support: An example of a support set: its shapes are what the program takes, and in classification its
            number of classes is the program's.
        queries: Query inputs, an example likewise.
        steps: Gradient steps.
        norm: As in `MAML.predict`.
        unit: That of the program's `support_targets` and `outputs`, float64 then; None for the learner's own.
        open_support: Whether the program takes any number of support examples, or just as many.
        open_queries: Likewise of queries.

    Raises:
        ExportError: An operation depends on the values of the data, draws random numbers, or asks for one number of
            examples where it is to be open.
    """
    learned_from = support
    if unit is not None:
        support = Batch(support.inputs, support.targets.double())
    inputs = {**_named("support", support.inputs), **_named("support", support.targets, "targets")}
    asked = _named("query", queries)
    axes = ["examples" if open_support else None] * len(inputs) + ["queries" if open_queries else None] * len(asked)
    names, (given, structure) = (*inputs, *asked), pytree.tree_flatten(Task(support, queries))

    def outputs(*leaves: Tensor) -> Tensor:
        task = pytree.tree_unflatten([leaf.unsqueeze(0) for leaf in leaves], structure)
        batch = task.support
        if unit is not None:
            batch = Batch(batch.inputs, unit.standardised(batch.targets).to(learned_from.targets.dtype))
        found = MAML.predict(learner, Task(batch, Batch(task.query, ())), steps, norm).squeeze(0)
        return found if unit is None else unit.restored(found)

    with _one_task(learner, learned_from):
        graph = _recorded(outputs, given, axes)
    for node, name in zip(graph.graph.find_nodes(op="placeholder"), names, strict=True):
        node.target = node.name = name
    graph.recompile()
    return Exported(_program(graph, tuple(given), axes), tuple(names), ("outputs",), tuple(axes))


class _Predictor(nn.Module):
    def __init__(self, model: nn.Module, classes: int, unit: Unit | None):
        super().__init__()
        self.model, self.classes, self.unit = model, classes, unit

    def forward(self, inputs: Any) -> tuple[Tensor, ...]:
        """Outputs, and in classification probabilities."""
        outputs = self.model(*_arguments(inputs)) if not isinstance(inputs, Mapping) else self.model(**inputs)
        if not self.classes:
            return (outputs if self.unit is None else self.unit.restored(outputs),)
        outputs = outputs[:, : self.classes]
        return outputs, outputs.softmax(-1)


def predictor(model: nn.Module, inputs: Any, classes: int = 0, unit: Unit | None = None) -> Exported:
    """An adapted model: from `inputs` to `outputs`, and with classes to `probabilities` too, of any number of examples.

    Args:
        model: In evaluation mode.
        inputs: An example of what it is given, of 2 examples or more.
        classes: How many of its outputs count; 0 in regression.
        unit: That of the program's `outputs`, float64 then, in regression; None for the model's own.

    Raises:
        ExportError: PyTorch cannot record the model, or it asks for one number of examples.
    """
    names = tuple(_named("", inputs))
    axes = ["examples"] * len(names)
    outputs = ("outputs", "probabilities") if classes else ("outputs",)
    return Exported(_program(_Predictor(model, classes, unit).eval(), (inputs,), axes), names, outputs, tuple(axes))


def _named(part: str, tree: Any, kind: str = "inputs") -> dict[str, Tensor]:
    """The tensors of a tree by the names that they have in the program."""
    if isinstance(tree, Tensor):
        return {"_".join(filter(None, (part, kind))): tree}
    entries = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return {"_".join(filter(None, (part, str(key)))): value for key, value in entries}


def _arguments(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


@contextmanager
def _one_task(learner: MAML, support: Batch) -> Iterator[None]:
    """The learner ready for one task: nothing vectorised, and its classes counted, which a recording cannot."""
    counted: AbstractContextManager[None] = nullcontext()
    if isinstance(learner, TaskHead):
        counted = learner.counted(Task(pytree.tree_map(lambda leaf: leaf.unsqueeze(0), support), None))
    before, learner.vectorize = learner.vectorize, "loop"
    try:
        with counted:
            yield
    finally:
        learner.vectorize = before


def _recorded(fn: Any, given: Sequence[Tensor], axes: Sequence[str | None]) -> torch.fx.GraphModule:
    """The operations that `fn` comes down to."""
    # All of these take half a second to import, which only export needs.
    from torch._decomp import core_aten_decompositions
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    # Sizes that happen to be equal in the example are not the same size: no duck shapes.
    mode = FakeTensorMode(shape_env=ShapeEnv(duck_shape=False), allow_non_fake_inputs=True)

    def stand_in(tensor: Tensor, axis: str | None) -> Tensor:
        first = DimDynamic.STATIC if axis is None else DimDynamic.DYNAMIC
        sizes = [first] + [DimDynamic.STATIC] * (tensor.dim() - 1)
        return mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=sizes))

    stand_ins = [stand_in(tensor, axis) for tensor, axis in zip(given, axes, strict=True)]
    table = {**core_aten_decompositions(), **SUBSTITUTES}
    try:
        with torch.no_grad():
            graph = make_fx(fn, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*stand_ins)
            if changes_in_place(graph):  # some decompositions of PyTorch's own do
                plain: Any = torch.func.functionalize(graph)
                graph = make_fx(plain, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*stand_ins)
    except Exception as error:  # whatever the module and its operations raise
        raise ExportError(f"The inner loop cannot be recorded: {first_line(error)}") from error
    drawing = random_operations(graph)
    if drawing:
        raise ExportError(f"The inner loop draws random numbers, by {drawing[0]}, and a graph of it would not.")
    return tidied(graph)


def _program(module: nn.Module, arguments: tuple[Any, ...], axes: Sequence[str | None]) -> ExportedProgram:
    leaves, structure = pytree.tree_flatten(arguments)
    open_axes = {axis: Dim(axis, min=1) for axis in axes if axis is not None}
    shapes = [{} if axis is None else {0: open_axes[axis]} for axis in axes]
    assert len(leaves) == len(shapes)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch's own parts
            program = torch.export.export(
                module, arguments, dynamic_shapes=pytree.tree_unflatten(shapes, structure), strict=False
            )
    except Exception as error:  # whatever the module and its operations raise
        if "specialized" in str(error):
            raise ExportError(
                "The model asks for one number of examples, as some attention does: fix how many there are (--shots, "
                "--queries)."
            ) from error
        raise ExportError(f"torch.export cannot take the model: {first_line(error)}") from error
    program.example_inputs = None  # they would be kept with it, as a pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
    return program
