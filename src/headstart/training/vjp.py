"""A function and its vector-Jacobian product, compiled apart: the one hands the other what it has computed.

Both are recorded together, with what they share recorded once, and taken apart by what the value needs. Of its
intermediate results those of matrix products, convolutions, pooling and reductions are kept for the product; the rest,
which a compiler fuses into the operations that need it, is computed again: faster than writing it to memory and reading
it.
"""

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from headstart.training.tracing import (
    CannotCompileError,
    Flat,
    Traced,
    compiling,
    in_trees,
    inductor,
    recorded,
    written,
)

_aten = torch.ops.aten
_LONG = {
    _aten.mm,
    _aten.bmm,
    _aten.addmm,
    _aten.baddbmm,
    _aten.convolution,
    _aten.convolution_backward,
    _aten.max_pool2d_with_indices,
    torch.ops.headstart.max_pool,
    torch.ops.headstart.max_pool_gradient,
}
"""Operations whose results are kept, besides reductions. What a kernel sees at each position is copied again instead:
it is as many times as large as the kernel."""


class Compiled(NamedTuple):
    """The two graphs for trees of one form."""

    value: Callable[..., Any]
    """From the tensors of the arguments to those of the value, then those that are kept."""
    structure: pytree.TreeSpec
    product: Callable[..., Any]
    """From the tensors of the arguments, those that were kept, and cotangents to those of the product."""
    product_structure: pytree.TreeSpec


class TracedVjp(Traced):
    """`fn`, and the product of cotangents with its Jacobian, compiled for each form of arguments.

    Args:
        fn: From trees of tensors to a tree of tensors; it draws no random numbers.
        vjp: From the same and a list of cotangents, one for each tensor of the value, to the value and a tree.
        static: As in `Traced`.
    """

    def __init__(self, fn: Callable[..., Any], vjp: Callable[..., tuple[Any, Any]], static: Callable[[], Any] = tuple):
        super().__init__(fn, static, repeatable=True)
        self.vjp = vjp

    def __call__(self, *trees: Any) -> tuple[Any, Callable[[list[Tensor]], Any]]:
        """What `fn` returns, and the function from cotangents to what `vjp` returns besides.

        Raises:
            CannotCompileError: As in `Traced`; or `fn` writes to its arguments.
        """
        compiled, leaves = self.found(*trees)
        count = compiled.structure.num_leaves
        with torch.no_grad():
            results = compiled.value(*leaves)
        kept = results[count:]

        def product(cotangents: list[Tensor]) -> Any:
            with torch.no_grad():
                found = compiled.product(*leaves, *kept, *(c.contiguous() for c in cotangents))
            return pytree.tree_unflatten(found, compiled.product_structure)

        return pytree.tree_unflatten(results[:count], compiled.structure), product

    def compile(self, flats: list[Flat], leaves: list[Tensor]) -> Compiled:
        """Both graphs."""
        with compiling(leaves) as examples:
            value, structure = pytree.tree_flatten(self.fn(*in_trees(flats, examples)))
            cotangents = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in value]
            graph, both = recorded(self.vjp, [*flats, Flat(cotangents)], [*examples, *cotangents], repeatable=True)
            assert both.child(0) == structure, "vjp must return the value too"
            first, second = parts(without_writes(graph, [*examples, *cotangents]), len(examples), len(value))
            run_first = inductor(first, examples)
            with torch.no_grad():
                kept = run_first(*examples)[len(value) :]
            run_second = inductor(second, [*examples, *kept, *cotangents])
        return Compiled(run_first, structure, run_second, both.child(1))


def without_writes(graph: GraphModule, examples: Sequence[Tensor]) -> GraphModule:
    """`graph` with each operation that writes to what another has computed as one that computes anew.

    Such as ReLU in place, or the counter of a batch norm. What depends on what shows then.

    Raises:
        CannotCompileError: It writes to its arguments.
    """
    if not any(written(node) for node in graph.graph.nodes):
        return graph
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(torch.func.functionalize(graph))(*examples)
    graph.graph.eliminate_dead_code()
    if any(written(node) for node in graph.graph.nodes):
        raise CannotCompileError("an inner step writes to its arguments")
    return graph


def parts(graph: GraphModule, inputs: int, outputs: int) -> tuple[GraphModule, GraphModule]:
    """A recorded value and its vector-Jacobian product, as two graphs.

    Args:
        graph: Writes to nothing. Its first `inputs` placeholders are what both are functions of, the others
            cotangents; its first `outputs` results are the value.
        inputs: How many.
        outputs: How many.

    Returns:
        A graph of the inputs that returns the value and what is kept, and one of inputs, what is kept and
        cotangents that returns the rest.
    """
    placeholders = graph.graph.find_nodes(op="placeholder")
    given, cotangents = placeholders[:inputs], placeholders[inputs:]
    (results,) = graph.graph.output_node().args
    assert isinstance(results, (list, tuple))
    value, product = results[:outputs], results[outputs:]
    computed = _needed(value, given)
    long = [node for node in graph.graph.nodes if _source(node) in computed and _long(node)]
    needed = _needed(product, [*placeholders, *long])
    kept = [node for node in long if node in needed]
    return _extracted(graph, given, [*value, *kept]), _extracted(graph, [*given, *kept, *cotangents], product)


def _needed(results: Iterable[Any], given: Iterable[Node]) -> set[Node]:
    """All that `results` are computed from, down to what is given, which is named where it is needed."""
    found, given = set(), set(given)
    left = [node for node in results if isinstance(node, Node)]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += [] if node in given else node.all_input_nodes
    return found


def _source(node: Node) -> Node:
    """The operation of which `node` is one of several results, or which it is."""
    return node.args[0] if node.target is operator.getitem else node  # pyright: ignore[reportReturnType]


def _long(node: Node) -> bool:
    """Whether a result takes long to compute, and is one tensor."""
    target = _source(node).target
    long = getattr(target, "overloadpacket", None) in _LONG or torch.Tag.reduction in getattr(target, "tags", ())
    return long and isinstance(node.meta.get("val"), Tensor)


def _extracted(graph: GraphModule, given: Sequence[Node], results: Sequence[Any]) -> GraphModule:
    """The part of `graph` that computes `results` from what is given."""
    part, copies = Graph(), {}
    for node in given:
        copies[node] = part.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    needed = _needed(results, given)
    for node in graph.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output([copies[node] if isinstance(node, Node) else node for node in results])
    return GraphModule(graph, part)
