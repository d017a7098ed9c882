"""The works' networks in JAX, as functions of parameters that are named and laid out as PyTorch's are."""

from collections.abc import Callable
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
from jax import numpy as jnp  # pyright: ignore[reportMissingImports]

from benchmarks.works import EPS, HEADS, Work

Array = Any
Arrays = dict[str, Array]


def _linear(params: Arrays, name: str, x: Array) -> Array:
    return x @ params[f"{name}.weight"].T + params[f"{name}.bias"]


def _mlp(params: Arrays, x: Array) -> Array:
    for i in (0, 2):
        x = jax.nn.relu(_linear(params, f"body.{i}", x))
    return _linear(params, "head", x)


def _convolved(x: Array, kernel: Array, stride: int) -> Array:
    """A 3x3 convolution with padding, `[examples, height, width, channels]`, as a matrix product of shifted images.

    XLA's own (`jax.lax.conv_general_dilated`) took 6 to 12 times as long on a CPU: the convolutions that its
    derivatives are run slowly there.
    """
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1) @ kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))


def _block(params: Arrays, i: int, x: Array, stride: int) -> Array:
    """Convolution, batch norm with a shift only, ReLU; images are `[examples, height, width, channels]`."""
    x = _convolved(x, params[f"body.{i}.0.weight"], stride)
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + EPS) + params[f"body.{i}.1.bias"])


def _strided(params: Arrays, x: Array) -> Array:
    for i in range(4):
        x = _block(params, i, x, stride=2)
    return _linear(params, "head", x.mean((1, 2)))


def _pooled(params: Arrays, x: Array) -> Array:
    for i in range(4):
        x = _block(params, i, x, stride=1)
        x = _halved(x)
    return _linear(params, "head", x.transpose(0, 3, 1, 2).reshape(len(x), -1))


def _halved(x: Array) -> Array:
    """The largest of every 2x2 positions; an odd row or column at the end is left out."""
    examples, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(examples, height // 2, 2, width // 2, 2, channels).max((2, 4))


def _layer_norm(params: Arrays, name: str, x: Array) -> Array:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * params[f"{name}.weight"] + params[f"{name}.bias"]


def _attention(params: Arrays, name: str, x: Array) -> Array:
    examples, tokens, width = x.shape
    packed = x @ params[f"{name}.in_proj_weight"].T + params[f"{name}.in_proj_bias"]
    split = packed.reshape(examples, tokens, 3, HEADS, width // HEADS)
    q, k, v = (split[:, :, i].swapaxes(1, 2) for i in range(3))
    weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) / (width // HEADS) ** 0.5)
    return _linear(params, f"{name}.out_proj", (weights @ v).swapaxes(1, 2).reshape(x.shape))


def _transformer(params: Arrays, x: Array) -> Array:
    x = _linear(params, "embed", x)
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        x = _layer_norm(params, f"{layer}.norm1", x + _attention(params, f"{layer}.self_attn", x))
        hidden = jax.nn.gelu(_linear(params, f"{layer}.linear1", x), approximate=False)
        x = _layer_norm(params, f"{layer}.norm2", x + _linear(params, f"{layer}.linear2", hidden))
    return _linear(params, "head", x.mean(1))


NETWORKS: dict[str, Callable[[Arrays, Array], Array]] = {
    "mlp": _mlp,
    "strided": _strided,
    "pooled": _pooled,
    "transformer": _transformer,
}


def loss_of(work: Work) -> Callable[[Array, Array], Array]:
    """The work's loss."""
    if not work.ways:
        return lambda outputs, targets: jnp.square(outputs - targets).mean()

    def cross_entropy(logits: Array, labels: Array) -> Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    return cross_entropy
