"""A function of tensors, derivatives and all, as one compiled graph.

`torch.compile` cannot differentiate what it has compiled twice, nor compile inside `vmap` or `torch.func.grad`.
So the eager function, which may take gradients of its own, is run once with `make_fx` recording the operations
that it comes down to; that plain list of operations is what is compiled. The compiled function therefore does
what the eager one does because it is the eager one, recorded.

Recording follows one path through the Python code: what is not a tensor argument is a constant of the graph.
Compiled code is kept on disk by PyTorch, under `TORCHINDUCTOR_CACHE_DIR`, and found again by other processes.
"""

import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from headstart.training.native import keep_native

_log = logging.getLogger(__name__)


class CannotCompileError(RuntimeError):
    """A function cannot be recorded or compiled; the message gives the reason."""


class DrawsRandomNumbersError(CannotCompileError):
    """A function that must be repeatable is not."""


class Flat:
    """A tree of tensors, flattened: what is passed again and again, unchanged but in place, is flattened once.

    Args:
        tree: A tree of tensors.
        dense: Copy slices and expanded tensors, instead of compiling a graph for their strides.
    """

    def __init__(self, tree: Any, dense: bool = False):
        leaves, self.structure = pytree.tree_flatten(tree)
        self.leaves: list[Tensor] = [leaf.contiguous() for leaf in leaves] if dense else leaves
        self.form = self.structure, tuple((t.shape, t.dtype, t.device, t.stride()) for t in self.leaves)
        self.hash = hash(self.form)  # of a tree's structure it takes longer than a small graph

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Flat) and self.form == other.form)


class Traced:
    """`fn` compiled for each structure and shape of its arguments that it meets.

    Args:
        fn: From trees of tensors to a tree of tensors. It may differentiate, and change its arguments in place
            by `copy_`.
        static: Whatever else it depends on, a tree of objects; another object is another graph.
        repeatable: Whether a call must give the same again; `fn` may then not draw random numbers.
    """

    def __init__(self, fn: Callable[..., Any], static: Callable[[], Any] = tuple, repeatable: bool = False):
        self.fn, self.static, self.repeatable = fn, static, repeatable
        self.compiled: dict[Any, tuple[Any, Any]] = {}

    def __call__(self, *trees: Any) -> Any:
        """What `fn` returns for `trees`, any of which may be a `Flat`.

        Raises:
            CannotCompileError: It cannot be recorded as one graph, or the compiler failed.
            DrawsRandomNumbersError: It draws random numbers, and must be repeatable.
        """
        (run, outputs), leaves = self.found(*trees)
        with torch.no_grad():
            return pytree.tree_unflatten(run(*leaves), outputs)

    def found(self, *trees: Any) -> tuple[Any, list[Tensor]]:
        """What `compile` made for trees like these, now or before, and their tensors."""
        flats = [t if isinstance(t, Flat) else Flat(t, dense=True) for t in trees]
        leaves = [leaf for flat in flats for leaf in flat.leaves]
        key = (*map(id, self.static()), *flats)
        if key not in self.compiled:
            made = self.compile(flats, leaves)
            static = self.static()  # again: running `fn` may have settled something, such as how to vectorise
            key = (*map(id, static), *flats)
            self.compiled[key] = made, static  # kept, so that no `id` is used again
        return self.compiled[key][0], leaves

    def compile(self, flats: list[Flat], leaves: list[Tensor]) -> Any:
        """A compiled function of `leaves`, and the structure of what it returns."""
        with compiling(leaves) as examples:
            graph, outputs = recorded(self.fn, flats, examples, self.repeatable)
            return inductor(graph, examples), outputs


def in_trees(flats: Sequence[Flat], leaves: Sequence[Tensor]) -> list[Any]:
    """`leaves` in trees like `flats`."""
    rest = iter(leaves)
    return [pytree.tree_unflatten([next(rest) for _ in flat.leaves], flat.structure) for flat in flats]


@contextmanager
def compiling(leaves: list[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of `leaves` to record with, which runs the function; whatever is raised then is why it cannot be.

    Raises:
        CannotCompileError: The reason.
    """
    examples = [leaf.detach().clone() for leaf in leaves]  # nothing may be updated
    if any(example.stride() != leaf.stride() for example, leaf in zip(examples, leaves, strict=True)):
        raise CannotCompileError("a tensor that it updates is a slice or expanded: give it memory of its own")
    try:
        with torch.random.fork_rng(_gpus(leaves)):
            yield examples
    except (torch.OutOfMemoryError, CannotCompileError):
        raise
    except Exception as error:  # the compiler raises whatever its parts raise
        raise CannotCompileError(f"{type(error).__name__}: {first_line(error)}") from error


def recorded(
    fn: Callable[..., Any], flats: list[Flat], examples: list[Tensor], repeatable: bool
) -> tuple[GraphModule, pytree.TreeSpec]:
    """The operations of `fn`, called with `examples` in trees like `flats`, and the structure of what it returned."""
    from torch.fx.experimental.proxy_tensor import make_fx  # half a second, which eager runs need not wait for

    outputs: list[pytree.TreeSpec] = []

    def flat_fn(*given: Tensor) -> list[Tensor]:
        tree, structure = pytree.tree_flatten(fn(*in_trees(flats, given)))
        outputs.append(structure)
        return tree

    graph = make_fx(flat_fn)(*examples)
    _check_copies(graph)
    _free_layouts(graph)
    keep_native(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    _check_closed(graph)
    drawing = random_operations(graph)
    if repeatable and drawing:
        raise DrawsRandomNumbersError(f"it draws random numbers: {', '.join(sorted(set(drawing)))}")
    return graph, outputs[-1]


def _free_layouts(graph: GraphModule) -> None:
    """Views become reshapes: the compiler may choose a layout of which the recorded view cannot be taken.

    Not where something made in the graph is written to while it shares memory: a copy would not show the write.
    """
    for node in graph.graph.nodes:
        for value in written(node):
            if not isinstance(value, Node) or (value.op != "placeholder" and _shares_memory(value)):
                return
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.view.default):
        node.target = torch.ops.aten.reshape.default


def _check_copies(graph: GraphModule) -> None:
    """What `AsProducts` copies because no such view can be taken must not come between a write and what shows it."""
    origin: dict[Node, Node] = {}  # of memory
    last_use: dict[Node, int] = {}
    copies, writes = [], []
    for when, node in enumerate(graph.graph.nodes):
        last_use |= {origin[given]: when for given in node.all_input_nodes}
        changed = [value for value in written(node) if isinstance(value, Node)]
        shared = changed[0] if changed else node.args[0] if _is_view(node) else None
        origin[node] = origin[shared] if isinstance(shared, Node) else node
        writes += [(when, origin[value]) for value in changed]
        if node.target is torch.ops.aten.alias.default and node.args[0].target is torch.ops.aten.clone.default:
            copies.append((when, origin[node], origin[node.args[0].args[0]]))
    for made, copy, source in copies:
        for when, changed in writes:
            other = source if changed is copy else copy
            if changed in (copy, source) and made < when < last_use.get(other, -1):
                raise CannotCompileError("it writes to images of which it has taken a view, or to the view")


def written(node: Node) -> list[Any]:
    """What an operation writes to."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = {**dict(zip((argument.name for argument in schema.arguments), node.args, strict=False)), **node.kwargs}
    return [given[a.name] for a in schema.arguments if a.alias_info and a.alias_info.is_write and a.name in given]


def _shares_memory(value: Node) -> bool:
    """Whether it is a view, or a view was taken of it. What follows an in-place operation is recorded as its result."""
    return any(_is_view(other) for other in (value, *value.users))


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:  # of the parts that a tensor was split into
        return _is_view(node.args[0])  # pyright: ignore[reportArgumentType]
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.is_mutable and any(value.alias_info for value in schema.returns)


def inductor(graph: GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
    """`graph`, compiled for tensors like `examples`."""
    from torch._guards import TracingContext, tracing
    from torch._inductor import compile as compile_graph
    from torch._inductor import config
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    inputs: list[Any] = list(examples)
    options: dict[str, Any] = _OPTIONS | ({} if _gpus(examples) else _AS_RECORDED)
    options |= _NO_PROBE if config.cpp.vec_isa_ok is None else {}  # TORCHINDUCTOR_VEC_ISA_OK decides
    for _ in range(_DAMAGED_FILES):
        try:
            # Without an environment of shapes PyTorch keeps the graph's pieces on disk, but not the graph.
            shapes = TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))
            with torch.no_grad(), tracing(shapes), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own parts
                run: Any = compile_graph(graph, inputs, options)
            return run
        except Exception as error:
            damaged = _damaged_library(error)
            if damaged is None:
                raise
            damaged.unlink(missing_ok=True)
            _log.info("Compiling %s again: an interrupted process left it unfinished.", damaged)
    raise CannotCompileError(f"more than {_DAMAGED_FILES} compiled files in the cache are damaged: remove the cache")


_OPTIONS = {"fallback_random": True, "emulate_precision_casts": True, "size_asserts": False}
"""Random numbers as in eager mode. Values rounded to bfloat16 wherever eager mode rounds them: on a pooled network of
four blocks a step's derivative was 10 % away from eager mode's without, 1 % with (`docs/lab-log.md`). Sizes unchecked,
as a graph is only called with those it was compiled for."""

_AS_RECORDED = {"layout_optimization": False}
"""On a CPU native convolutions stay in the layout in which they are recorded: with channels last, which the compiler
prefers, a meta-gradient on large images took a fifth longer (`docs/lab-log.md`)."""

_NO_PROBE = {"cpp.vec_isa_ok": True}
"""Does without the programs by which PyTorch tries AVX2 and AVX-512 with all its headers, once for each wider set: a
quarter of the time of a small graph. Newer sets are still tried, by shorter programs."""

_DAMAGED_FILES = 10
"""Compiled files found damaged in the cache, one after the other, before giving up."""


def _damaged_library(error: BaseException | None) -> Path | None:
    """A file of the cache that cannot be loaded: a process killed while it was written leaves it too short."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    while error is not None:
        if isinstance(error, ImportError) and error.path is not None and Path(error.path).is_relative_to(cache_dir()):
            return Path(error.path)
        error = error.__cause__ or error.__context__
    return None


def _gpus(leaves: list[Tensor]) -> list[torch.device]:
    return list({leaf.device for leaf in leaves if leaf.device.type == "cuda"})


def _check_closed(graph: GraphModule) -> None:
    """A recorded constant must not be something learned: it would stay as it is, and get no gradient."""
    for node in graph.graph.nodes:
        if node.op == "get_attr" and getattr(getattr(graph, str(node.target), None), "requires_grad", False):
            raise CannotCompileError(
                "it depends on a tensor that requires gradients and is none of the learner's parameters: register it"
            )


def random_operations(graph: GraphModule) -> list[str]:
    """Names of the operations in a graph that draw random numbers."""
    return [
        str(node.target)
        for node in graph.graph.nodes
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    ]


def first_line(error: Exception) -> str:
    """Of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
