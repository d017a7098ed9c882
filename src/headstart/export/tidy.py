"""A recorded graph without what it does twice or for nothing.

Adaptation predicts after each step with the support set's statistics at the parameters reached, and the next step runs
the support set through the same network with the same parameters: recorded, it is all there twice.
"""

from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

aten = torch.ops.aten

_PASSED_ON = {aten.alias.default, aten.clone.default, aten.detach.default, aten.lift_fresh_copy.default}


def tidied(graph: GraphModule) -> GraphModule:
    """`graph`, in place: equal computations done once, copies left out, and what nobody uses too.

    Nothing in it may draw random numbers or change a tensor in place.
    """
    known: dict[Any, Node] = {}
    constants: dict[int, Node] = {}
    for node in graph.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names files of this machine
        before = None
        if node.op == "get_attr":
            before = constants.setdefault(id(getattr(graph, str(node.target))), node)
        elif node.op == "call_function":
            before = node.args[0] if _passes_on(node) else known.setdefault(_key(node), node)
        if before is not None and before is not node:
            node.replace_all_uses_with(before)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


def changes_in_place(graph: GraphModule) -> bool:
    """Whether any operation of a graph writes into its argument."""
    schemas = [getattr(node.target, "_schema", None) for node in graph.graph.nodes]
    return any(schema is not None and schema.is_mutable for schema in schemas)


def _passes_on(node: Node) -> bool:
    """Whether a node is its argument again; a copy may be there to lay it out in another way."""
    return node.target in _PASSED_ON and not node.kwargs


def _key(node: Node) -> Any:
    """What is equal for two nodes that compute the same."""
    leaves, structure = pytree.tree_flatten((node.args, node.kwargs))
    # 1, 1.0 and True are equal, and yet not the same argument
    return node.target, str(structure), tuple((type(leaf), leaf) for leaf in leaves)
