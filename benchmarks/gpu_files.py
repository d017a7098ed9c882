"""Files of the GPU session: JSON written whole or not at all, and raw tensors. Neither pickle nor NumPy is needed."""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart.types import Params


def write_json(path: Path, content: Any) -> None:
    """`content` at `path`, in one step: whoever reads it sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(finite(content), indent=2, allow_nan=False) + "\n")
    os.replace(temporary, path)


def finite(content: Any) -> Any:
    """`content` as JSON can hold it: six digits of each number, and null for NaN and infinity.

    >>> finite({"ms": [1.23456789, float("inf")]})
    {'ms': [1.23457, None]}
    """
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def write_raw(path: Path, tensor: Tensor) -> None:
    """The bytes of `tensor`, and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    mapped = torch.from_file(str(temporary), shared=True, size=tensor.numel(), dtype=tensor.dtype)
    mapped.copy_(tensor.detach().flatten())
    del mapped
    temporary.chmod(0o644)  # it was made for its owner only
    os.replace(temporary, path)


def read_raw(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What `write_raw` wrote.

    Raises:
        ValueError: The file has another size.
    """
    expected = math.prod(shape) * dtype.itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {expected}: write it again.")
    return torch.from_file(str(path), shared=False, size=math.prod(shape), dtype=dtype).view(shape).clone()


def write_params(path: Path, params: Params, about: dict[str, Any] | None = None) -> None:
    """Parameters of one type, one after the other; `path` with `.json` appended tells names and shapes."""
    write_raw(path, torch.cat([p.detach().cpu().flatten() for p in params.values()]))
    dtype = str(next(iter(params.values())).dtype).removeprefix("torch.")
    shapes = {name: list(p.shape) for name, p in params.items()}
    write_json(path.with_name(f"{path.name}.json"), {"dtype": dtype, "shapes": shapes} | (about or {}))


def read_params(path: Path) -> Params:
    """What `write_params` wrote."""
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    sizes = [math.prod(shape) for shape in about["shapes"].values()]
    whole = read_raw(path, (sum(sizes),), getattr(torch, about["dtype"]))
    parts = zip(about["shapes"].items(), whole.split(sizes), strict=True)
    return {name: part.view(shape) for (name, shape), part in parts}
