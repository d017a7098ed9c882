"""Layers and functions of PyTorch, each at work inside a small network: data for `test_any_module.py`.

Inputs are `[examples, 6]`, outputs of any shape. All are smooth where the tests evaluate them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

FEATURES = 6


class Net(nn.Module):
    """A linear layer, then `fn(x, *layers, parameter)`: features, layers, and a `[4, 6]` parameter to work with."""

    def __init__(self, fn: Callable[..., Tensor], *layers: nn.Module, shape: Callable[[Tensor], Tensor] = lambda x: x):
        super().__init__()
        self.fn, self.shape = fn, shape
        self.embed, self.layers = nn.Linear(FEATURES, FEATURES), nn.ModuleList(layers)
        self.points = nn.Parameter(torch.randn(4, FEATURES) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.shape(self.embed(x)), *(self.layers or [self.points]))


def to_sequence(x: Tensor) -> Tensor:
    """`[examples, 6]` to `[examples, 5, 6]`."""
    return (x.unsqueeze(1) * torch.linspace(-1, 1, 5, dtype=x.dtype).reshape(1, 5, 1)).sin()


def to_image(x: Tensor) -> Tensor:
    """`[examples, 6]` to `[examples, 6, 4, 4]`."""
    return (x[:, :, None, None] * torch.linspace(-1, 1, 16, dtype=x.dtype).reshape(1, 1, 4, 4) + 0.3).sin()


def to_tokens(x: Tensor) -> Tensor:
    """`[examples, 6]` to word indices below 5, which no gradient reaches."""
    return (x.detach() * 3).long().abs() % 5


def plain(fn: Callable[..., Tensor], *make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(fn, *(m() for m in make))


def sequence(fn: Callable[..., Tensor], *make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(fn, *(m() for m in make), shape=to_sequence)


def image(fn: Callable[..., Tensor], *make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Net(fn, *(m() for m in make), shape=to_image)


def on(kind: Callable, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A network that simply applies one layer."""
    return kind(lambda x, layer: layer(x), make)


def heads(x: Tensor) -> Tensor:
    """`[examples, 5, 6]` to `[examples, 2, 5, 3]`."""
    return x.unflatten(-1, (2, 3)).transpose(1, 2)


HIDDEN = torch.tensor([[False] * 4 + [True]])
"""Key padding: the last of five positions."""


def transformer_layer(kind: Callable) -> nn.Module:
    return kind(FEATURES, 2, 8, 0.0, F.gelu, batch_first=True)


def scaled(x: Tensor, points: Tensor) -> Tensor:
    return points[:1] * x


ACTIVATIONS = [
    *(F.celu, F.elu, F.gelu, F.glu, F.hardswish, F.leaky_relu, F.logsigmoid, F.mish, F.selu, F.silu),
    *(F.softplus, F.softsign, F.tanhshrink),
]

# Exact under `vmap`, first and second derivatives.
VMAP: dict[str, Callable[[], nn.Module]] = {
    # normalisation
    "LayerNorm": on(plain, lambda: nn.LayerNorm(FEATURES)),
    "LayerNorm without bias": on(plain, lambda: nn.LayerNorm(FEATURES, bias=False)),
    "torch.layer_norm": plain(lambda x, p: torch.layer_norm(x, [FEATURES], p[0], p[1])),
    "aten.layer_norm": plain(lambda x, p: torch.ops.aten.layer_norm(x, [FEATURES], p[0], p[1])),
    "F.batch_norm": plain(lambda x, p: F.batch_norm(x, None, None, p[0], p[1], training=True)),
    "torch.batch_norm": plain(lambda x, p: torch.batch_norm(x, p[0], p[1], None, None, True, 0.1, 1e-5, False)),
    "aten.batch_norm": plain(lambda x, p: torch.ops.aten.batch_norm(x, p[0], p[1], None, None, True, 0.1, 1e-5, False)),
    "InstanceNorm1d": on(sequence, lambda: nn.InstanceNorm1d(5, affine=True)),
    "torch.instance_norm": sequence(
        lambda x, p: torch.instance_norm(x, p[0, :5], p[1, :5], None, None, True, 0.1, 1e-5, False)
    ),
    "aten.instance_norm": sequence(
        lambda x, p: torch.ops.aten.instance_norm(x, p[0, :5], p[1, :5], None, None, True, 0.1, 1e-5, False)
    ),
    "GroupNorm": on(image, lambda: nn.GroupNorm(3, FEATURES)),
    "RMSNorm": on(plain, lambda: nn.RMSNorm(FEATURES)),
    "LocalResponseNorm": image(lambda x, _: F.local_response_norm(x, 2)),
    "F.normalize": plain(lambda x, p: F.normalize(x) @ p.T),
    "weight norm": on(plain, lambda: parametrizations.weight_norm(nn.Linear(FEATURES, 4))),
    "weight norm of columns": on(plain, lambda: parametrizations.weight_norm(nn.Linear(FEATURES, 4), dim=1)),
    "weight norm of all": on(plain, lambda: parametrizations.weight_norm(nn.Linear(FEATURES, 4), dim=None)),
    "aten._weight_norm": plain(lambda x, p: x @ torch.ops.aten._weight_norm(p, p[:, :1], 0).T),
    "spectral norm, evaluation": on(plain, lambda: parametrizations.spectral_norm(nn.Linear(FEATURES, 4)).eval()),
    "orthogonal": on(plain, lambda: parametrizations.orthogonal(nn.Linear(FEATURES, FEATURES), "weight", "cayley")),
    # words
    "Embedding": plain(lambda x, layer: layer(to_tokens(x)) * x.unsqueeze(1), lambda: nn.Embedding(5, FEATURES)),
    "torch.embedding": plain(lambda x, p: torch.embedding(p, to_tokens(x) % 4).sum(1) * x),
    "EmbeddingBag": plain(lambda x, layer: layer(to_tokens(x)) * x, lambda: nn.EmbeddingBag(5, FEATURES)),
    "EmbeddingBag of sums": plain(
        lambda x, layer: layer(to_tokens(x), per_sample_weights=x.sin()) * x,
        lambda: nn.EmbeddingBag(5, FEATURES, mode="sum"),
    ),
    "EmbeddingBag with offsets": plain(
        lambda x, layer: layer(to_tokens(x).flatten(), torch.tensor([0, 3, 3, 10, 20])) * x[:5],
        lambda: nn.EmbeddingBag(5, FEATURES),
    ),
    # attention
    "MultiheadAttention": sequence(
        lambda x, layer: layer(x, x, x)[0], lambda: nn.MultiheadAttention(FEATURES, 2, batch_first=True)
    ),
    "MultiheadAttention with masks": sequence(
        lambda x, layer: layer(x, x, x, HIDDEN.expand(len(x), 5), False, torch.ones(5, 5).triu(1).bool())[0],
        lambda: nn.MultiheadAttention(FEATURES, 2, add_bias_kv=True, batch_first=True),
    ),
    "MultiheadAttention of other sizes": sequence(
        lambda x, layer: layer(x, x[..., :3], x[..., :2], need_weights=False)[0],
        lambda: nn.MultiheadAttention(FEATURES, 2, kdim=3, vdim=2, batch_first=True),
    ),
    "scaled_dot_product_attention": sequence(
        lambda x, _: F.scaled_dot_product_attention(heads(x), heads(x.sin()), heads(x.cos()), is_causal=True)
    ),
    "aten.scaled_dot_product_attention": sequence(
        lambda x, _: torch.ops.aten.scaled_dot_product_attention(heads(x), heads(x.sin()), heads(x.cos()))
    ),
    "TransformerEncoderLayer, norm first": sequence(
        lambda x, layer: layer(x, src_key_padding_mask=HIDDEN.expand(len(x), 5)),
        lambda: nn.TransformerEncoderLayer(FEATURES, 2, 8, 0.0, F.gelu, batch_first=True, norm_first=True),
    ),
    "TransformerDecoderLayer": sequence(
        lambda x, layer: layer(x, x.cos(), tgt_mask=torch.ones(5, 5).triu(1).bool()),
        lambda: transformer_layer(nn.TransformerDecoderLayer),
    ),
    # convolution, pooling, resampling
    "Conv1d": on(sequence, lambda: nn.Conv1d(5, 3, 3, padding=1)),
    "Conv2d, grouped and dilated": on(image, lambda: nn.Conv2d(FEATURES, FEATURES, 2, groups=3, dilation=2)),
    "Conv2d, circular": on(image, lambda: nn.Conv2d(FEATURES, 2, 3, padding=1, padding_mode="circular")),
    "Conv3d": image(lambda x, layer: layer(x.unsqueeze(2)), lambda: nn.Conv3d(FEATURES, 2, (1, 3, 3))),
    "ConvTranspose1d": on(sequence, lambda: nn.ConvTranspose1d(5, 3, 3, 2)),
    "ConvTranspose2d": on(image, lambda: nn.ConvTranspose2d(FEATURES, 2, 3, 2, 1, 1)),
    "Unfold and Fold": image(lambda x, _: F.fold(F.unfold(x, 2).sin(), (4, 4), 2)),
    "MaxPool2d": image(lambda x, _: F.max_pool2d(x, 2).sin()),
    "AdaptiveMaxPool2d": image(lambda x, _: F.adaptive_max_pool2d(x, 2).sin()),
    "AdaptiveAvgPool2d": image(lambda x, _: F.adaptive_avg_pool2d(x, 3).sin()),
    "AvgPool2d": image(lambda x, _: F.avg_pool2d(x, 3, 1, 1).sin()),
    "LPPool2d": image(lambda x, _: F.lp_pool2d(x, 2, 2)),
    "Upsample, nearest": image(lambda x, _: F.interpolate(x, scale_factor=2).sin()),
    "Upsample, bilinear": image(lambda x, _: F.interpolate(x, scale_factor=2, mode="bilinear").sin()),
    "Upsample, bicubic": image(lambda x, _: F.interpolate(x, scale_factor=2, mode="bicubic").sin()),
    "PixelShuffle": image(lambda x, _: F.pixel_shuffle(x[:, :4], 2).sin()),
    "ReflectionPad2d": image(lambda x, _: F.pad(x, (1, 1, 1, 1), "reflect").sin()),
    "grid_sample": image(lambda x, _: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh() * 0.9, align_corners=False)),
    # activations
    "PReLU": on(plain, lambda: nn.PReLU(FEATURES)),
    **{fn.__name__: plain(lambda x, p, fn=fn: fn(scaled(x, p))) for fn in ACTIVATIONS},
    "softmax": plain(lambda x, p: scaled(x, p).softmax(-1)),
    "log_softmax": plain(lambda x, p: scaled(x, p).log_softmax(-1)),
    # algebra
    "Bilinear": plain(lambda x, p: torch.einsum("nd,kd,ne->nke", x, p, x.sin())),
    "cosine_similarity": plain(lambda x, p: F.cosine_similarity(x.unsqueeze(1), p, dim=-1)),
    "cdist by matrix product": plain(lambda x, p: torch.cdist(x, p, compute_mode="use_mm_for_euclid_dist")),
    "vector_norm": plain(lambda x, p: torch.linalg.vector_norm(x.unsqueeze(1) - p, dim=-1)),
    "standard deviation": plain(lambda x, p: scaled(x, p) * x.std(-1, keepdim=True)),
    "logsumexp": plain(lambda x, p: (x.unsqueeze(1) * p).logsumexp(-1)),
    "cumulative product": plain(lambda x, p: scaled(x, p).cumprod(-1)),
    "sort": plain(lambda x, p: scaled(x, p).sort(-1).values.cumsum(-1) * x),
    "top-k": plain(lambda x, p: scaled(x, p).topk(3).values * x[:, :3]),
    "gather": plain(lambda x, p: scaled(x, p).gather(1, to_tokens(x)) * x),
    "scatter_add": plain(lambda x, p: torch.zeros_like(x).scatter_add(1, to_tokens(x), scaled(x, p) * x)),
    "Fourier transform": plain(lambda x, p: torch.fft.rfft(scaled(x, p)).abs()),
    "matrix exponential": plain(lambda x, p: x[:, :4] @ torch.matrix_exp(p[:, :4])),
    "inverse": plain(lambda x, p: x[:, :4] @ torch.linalg.inv(p[:, :4] + 3 * torch.eye(4, dtype=p.dtype))),
    "Cholesky factor": plain(lambda x, p: x[:, :4] @ torch.linalg.cholesky(p @ p.T + torch.eye(4, dtype=p.dtype))),
    "singular values": plain(lambda x, p: x[:, :4] * torch.linalg.svdvals(p)),
    "writing in place": plain(lambda x, p: scaled(x, p).index_fill(1, torch.tensor([2]), 0.0).mul_(x).sigmoid_()),
}

# `vmap` refuses these; they run in a loop, with the same numbers.
LOOP: dict[str, Callable[[], nn.Module]] = {
    "RNN": sequence(lambda x, layer: layer(x)[0], lambda: nn.RNN(FEATURES, 4, batch_first=True)),
    "LSTM, deep, bidirectional, projected": sequence(
        lambda x, layer: layer(x)[0], lambda: nn.LSTM(FEATURES, 4, 2, bidirectional=True, proj_size=3, batch_first=True)
    ),
    "LSTMCell": plain(lambda x, layer: layer(x)[0], lambda: nn.LSTMCell(FEATURES, 4)),
    "GRUCell": on(plain, lambda: nn.GRUCell(FEATURES, 4)),
    "one_hot of unknown classes": plain(lambda x, p: F.one_hot(to_tokens(x)).to(x.dtype)[..., :1] * x.unsqueeze(-1)),
    "control flow on data": plain(lambda x, p: scaled(x, p).sin() if bool(x.detach().sum() < 1e9) else x),
}

# PyTorch has no second derivative: an error is right, a number would be wrong.
REFUSED: dict[str, Callable[[], nn.Module]] = {
    "cdist": plain(lambda x, p: torch.cdist(x, p)),
    "pdist": plain(lambda x, p: F.pdist(x)),
    "hardsigmoid": plain(lambda x, p: F.hardsigmoid(x)),
    "EmbeddingBag of maxima": plain(
        lambda x, layer: layer(to_tokens(x)) * x, lambda: nn.EmbeddingBag(5, FEATURES, mode="max")
    ),
    "native_batch_norm": plain(
        lambda x, p: torch.native_batch_norm(x, p[0], p[1], None, None, True, 0.1, 1e-5)[0],
    ),
    "native_layer_norm": plain(lambda x, p: torch.native_layer_norm(x, [FEATURES], p[0], p[1], 1e-5)[0]),
    "Embedding scaled by frequency": plain(
        lambda x, layer: layer(to_tokens(x)).sum(1) * x, lambda: nn.Embedding(5, FEATURES, scale_grad_by_freq=True)
    ),
    "checkpointing": plain(
        lambda x, layer: torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False), lambda: nn.Linear(6, 4)
    ),
}

# Losses `(outputs, targets) -> scalar` of `[examples, 4]`, each with what makes its targets.
WEIGHTS = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)


def classes(n: int, rng: torch.Generator) -> Tensor:
    return torch.randint(0, 4, (n,), generator=rng)


def numbers(n: int, rng: torch.Generator) -> Tensor:
    return torch.rand(n, 4, dtype=torch.float64, generator=rng)


def signs(n: int, rng: torch.Generator) -> Tensor:
    return classes(n, rng) % 2 * 2.0 - 1


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[int, torch.Generator], Tensor]]] = {
    "cross-entropy": (nn.CrossEntropyLoss(), classes),
    "cross-entropy, smoothed and weighted": (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), classes),
    "cross-entropy, one class ignored": (nn.CrossEntropyLoss(WEIGHTS, ignore_index=2), classes),
    "cross-entropy of probabilities": (lambda o, t: F.cross_entropy(o, t.softmax(-1)), numbers),
    "negative log-likelihood": (lambda o, t: F.nll_loss(o.log_softmax(-1), t, ignore_index=1), classes),
    "binary cross-entropy": (nn.BCEWithLogitsLoss(WEIGHTS, pos_weight=WEIGHTS + 1), numbers),
    "Kullback-Leibler": (lambda o, t: F.kl_div(o.log_softmax(-1), t, reduction="batchmean"), numbers),
    "Huber": (nn.HuberLoss(), numbers),
    "smooth L1": (nn.SmoothL1Loss(beta=0.5), numbers),
    "Gaussian likelihood": (lambda o, t: F.gaussian_nll_loss(o, t, o.exp()), numbers),
    "Poisson likelihood": (nn.PoissonNLLLoss(), numbers),
    "soft margin": (lambda o, t: F.soft_margin_loss(o[:, 0], t.to(o)), signs),
    "cosine": (lambda o, t: F.cosine_embedding_loss(o[:, :2], o[:, 2:], t), signs),
    "triplets": (lambda o, t: F.triplet_margin_loss(o, o.flip(0), t), numbers),
}
