"""Memory for the parameters alone of each inner step: a function keeps its arguments, and is computed again backwards.

An outer gradient through many inner steps needs what each of them computed on its way. `recomputed(inner_step)`
keeps the step's arguments alone, that is the parameters after each step (the batch is the same tensor every
time), and in the backward pass computes one step again, takes its vector-Jacobian product, and forgets it. The
numbers are the same, for one more evaluation of each step: a third more time on large images, up to twice on small.
`torch.utils.checkpoint` refuses to work around `torch.func.grad`.

Differs from Kemaev et al. (2025, arXiv:2505.00793), who take the Hessian-vector product forward over reverse: in
PyTorch 2.13 that took as long on convolutions, and raised for a ReLU network under `vmap`.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.utils import _pytree as pytree

from headstart.differentiable import pulling_back, values_alone


class ClosureError(ValueError):
    """A function to be recomputed depends on a tensor that requires gradients and is not among its arguments."""


def recomputed(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, keeping for the backward pass only its arguments.

    Gradients flow to the tensors in positional arguments: in any tree, or in the fields of a dataclass. In the
    backward pass `fn` runs again, under the autocast and with the random numbers of the first time; whatever
    else it looks at, such as a module's mode, must be as it was. Works under `torch.vmap` and `torch.func.grad`.

    >>> w = torch.tensor(3.0, requires_grad=True)
    >>> recomputed(lambda params: params["w"].sin() ** 2)({"w": w}).backward()
    >>> bool(torch.isclose(w.grad, torch.tensor(6.0).sin()))
    True

    Raises:
        ClosureError: `fn` depends on another tensor that requires gradients, whose gradient would be lost.
    """

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return fn(*args, **kwargs)
        flat = _Flat(functools.partial(fn, **kwargs), args)
        surroundings = _Surroundings(flat.tensors)
        with values_alone():
            outputs = flat(*(tensor.detach() for tensor in flat.tensors))
        if any(_is_tracked(output) for output in outputs):
            surroundings.restore_random()
            raise ClosureError(_CLOSURE)
        attached = _Recomputed.apply(flat, surroundings.needed_again(), len(outputs), *outputs, *flat.tensors)
        return flat.tree_of(attached)

    return run


_CLOSURE = (
    "An inner step depends on a tensor that is not among its arguments, and recomputed backwards would lose it. Let "
    "the loss take it from its params or its batch (a batch is any tree of tensors), or set recompute=False."
)


class _Recomputed(torch.autograd.Function):
    """The outputs of a function of tensors, computed already, with a backward that calls it again.

    Arguments: the function, its `_Surroundings`, the number of outputs, the outputs, and what it was called with.
    The call itself stands outside, where a dependence on other tensors shows under every transform.
    """

    @staticmethod
    def forward(fn: Callable, surroundings: "_Surroundings", count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.view_as(output) for output in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.fn, ctx.surroundings, ctx.count = inputs[:3]
        ctx.save_for_backward(*inputs[3 + ctx.count :])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        tensors: Sequence[Tensor] = ctx.saved_tensors
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[3 + ctx.count :]) if needed]
        given = [i for i, cotangent in enumerate(cotangents) if cotangent is not None]
        grads: list[Tensor | None] = [None] * len(tensors)

        def outputs_of(*values: Tensor) -> tuple[Tensor, ...]:
            changed = dict(zip(wanted, values, strict=True))
            outputs = ctx.fn(*(changed.get(i, tensor) for i, tensor in enumerate(tensors)))
            return tuple(outputs[i] for i in given)

        if given:
            with ctx.surroundings.restored():
                pullback = torch.func.vjp(outputs_of, *(tensors[i] for i in wanted))[1]
            with pulling_back():
                pulled = pullback(tuple(cotangents[i] for i in given))
            for i, grad in zip(wanted, pulled, strict=True):
                grads[i] = grad
        return *[None] * (3 + ctx.count), *grads

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        """The recomputed `torch.vmap(fn)`: the backward pass then knows nothing of `vmap`."""
        fn, surroundings, count = args[:3]
        out_dims, dims = in_dims[3 : 3 + count], in_dims[3 + count :]
        if all(dim is None for dim in dims):
            raise ClosureError(_CLOSURE)
        mapped = torch.vmap(fn, in_dims=dims, out_dims=out_dims, randomness=info.randomness)
        return _Recomputed.apply(mapped, surroundings, count, *args[3:]), out_dims


class _Flat:
    """A function of trees as one of their tensors; everything else in the trees stays as it is."""

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...]):
        self.fn, self.args = fn, args
        self.leaves, self.structure = pytree.tree_flatten([_opened(arg) for arg in args])
        self.where = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self.tensors = [self.leaves[i] for i in self.where]
        self.returned: tuple[list[Any], pytree.TreeSpec] | None = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(self.leaves)
        for i, tensor in zip(self.where, tensors, strict=True):
            leaves[i] = tensor
        opened = pytree.tree_unflatten(leaves, self.structure)
        results, structure = pytree.tree_flatten(
            self.fn(*(_closed(arg, tree) for arg, tree in zip(self.args, opened, strict=True)))
        )
        self.returned = [_TENSOR if isinstance(result, Tensor) else result for result in results], structure
        return tuple(result for result in results if isinstance(result, Tensor))

    def tree_of(self, tensors: tuple[Tensor, ...]) -> Any:
        """What the function returned, with `tensors` in place of its own."""
        assert self.returned is not None
        (results, structure), given = self.returned, iter(tensors)
        return pytree.tree_unflatten([next(given) if r is _TENSOR else r for r in results], structure)


class _Surroundings:
    """What a function depends on besides its arguments: autocast, and the state of random generators."""

    def __init__(self, tensors: Sequence[Tensor]):
        devices = {tensor.device for tensor in tensors}
        kinds = {"cpu", *(device.type for device in devices)}
        self.autocast = [
            torch.autocast(
                kind,
                torch.get_autocast_dtype(kind),
                torch.is_autocast_enabled(kind),
                torch.is_autocast_cache_enabled(),
            )
            for kind in sorted(kinds)
        ]
        self.random = _random_states(["cpu", *(d for d in devices if d.type == "cuda")])

    def needed_again(self) -> "_Surroundings":
        """Of these surroundings, the part that matters: no random states if no random number has been drawn."""
        now, again = _random_states(self.random), copy.copy(self)
        again.random = {device: state for device, state in self.random.items() if not torch.equal(state, now[device])}
        if again.random and _is_traced():
            raise NotImplementedError(
                "A graph cannot be made of a recomputed inner step that draws random numbers (dropout): the second "
                "time they would be others. Set recompute=False, or do not compile."
            )
        return again

    def restore_random(self) -> None:
        """Put the random generators back."""
        for device, state in self.random.items():
            torch.set_rng_state(state) if device == "cpu" else torch.cuda.set_rng_state(state, device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The surroundings, in a context after which random generators are as they were."""
        now = copy.copy(self)
        now.random = _random_states(self.random)
        with ExitStack() as stack:
            stack.callback(now.restore_random)
            for autocast in self.autocast:
                stack.enter_context(autocast)
            self.restore_random()
            yield


_TENSOR = object()
"""Stands for a tensor among what a function returned."""


def _random_states(devices: Iterable[Any]) -> dict[Any, Tensor]:
    """The states of the default generators of "cpu" and of CUDA devices."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():  # a capture may not ask for them
        devices = [d for d in devices if d == "cpu"]
    return {d: torch.get_rng_state() if d == "cpu" else torch.cuda.get_rng_state(d) for d in devices}


def _opened(arg: Any) -> Any:
    """A dataclass as a dict of its fields, of which trees are made; anything else as it is."""
    if not dataclasses.is_dataclass(arg) or isinstance(arg, type):
        return arg
    values = {field.name: getattr(arg, field.name) for field in dataclasses.fields(arg) if field.init}
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


def _closed(like: Any, opened: Any) -> Any:
    """The inverse of `_opened`."""
    if not dataclasses.is_dataclass(like) or isinstance(like, type):
        return opened
    return dataclasses.replace(like, **opened)


def _is_tracked(tensor: Tensor) -> bool:
    """Whether gradients flow to something from `tensor`, in autograd or in any transform around."""
    while not tensor.requires_grad:
        if not is_functorch_wrapped_tensor(tensor):
            return False
        tensor = get_unwrapped(tensor)
    return True


def _is_traced() -> bool:
    from torch.fx.experimental.proxy_tensor import get_proxy_mode  # slow to import, and asked for only with dropout

    return get_proxy_mode() is not None
