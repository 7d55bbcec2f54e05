"""SERL's ResNet-10: what its weights must be, and how to read them (rail-berkeley/serl, MIT)."""

import os
from collections.abc import Iterable

import numpy as np
import safetensors
from jaxtyping import Float32

from ..errors import IntegrityError
from .files import is_safetensors, kind, read_parsed, refuse_list, refuse_not_finite
from .pickle_machine import read_tree
from .torch_file import is_torch

Arrays = dict[str, Float32[np.ndarray, "..."]]


# Protocol 2 makes 33 MB of the same arrays: half of all bytes take two.
MAX_BYTES = 38_000_000

WAY_OUT = "Get SERL's file with `eqxunet weights download`, or give another one."


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"conv_init/kernel": (7, 7, 3, 64)}

    def add_norm(name: str, channels: int) -> None:
        shapes[f"{name}/bias"] = shapes[f"{name}/scale"] = (channels,)

    add_norm("norm_init", 64)
    c_in = 64
    for i, c in enumerate((64, 128, 256, 512)):
        block = f"ResNetBlock_{i}"
        shapes[f"{block}/Conv_0/kernel"] = (3, 3, c_in, c)
        shapes[f"{block}/Conv_1/kernel"] = (3, 3, c, c)
        add_norm(f"{block}/MyGroupNorm_0", c)
        add_norm(f"{block}/MyGroupNorm_1", c)
        if i > 0:
            shapes[f"{block}/conv_proj/kernel"] = (1, 1, c_in, c)
            add_norm(f"{block}/norm_proj", c)
        c_in = c
    shapes["output_head/kernel"] = (512, 1000)
    shapes["output_head/bias"] = (1000,)
    return shapes


# Every array by its path in SERL's tree: 36 of the encoder, kernels HWIO, and ImageNet's head.
SHAPES = _shapes()


def read_serl(path: str | os.PathLike[str]) -> Arrays:
    """Returns SERL's ResNet-10 weights by their path in SERL's tree, such as "conv_init/kernel".

    Nothing in the file is executed and JAX is not needed.

    Arguments:

    - `path`: SERL's pickle, the same tree of plain NumPy arrays (pickle protocols 2 to 5), either
      of them under a key "params", or the safetensors file that `convert` makes.

    Raises IntegrityError unless the file holds exactly the 38 arrays of the release by name and
    shape, as little-endian float32 with finite values.
    """
    return read(path)[1]


def read(path: str | os.PathLike[str]) -> tuple[bytes, Arrays]:
    """Returns a file's bytes and the arrays in them; see `read_serl`."""
    return read_parsed(path, parse, MAX_BYTES, WAY_OUT)


def parse(data: bytes) -> Arrays:
    """Returns the arrays in the bytes of a file; see `read_serl`."""
    if is_torch(data):
        raise IntegrityError("it is a file of `torch.save`, and holds weights of another encoder")
    if not data.startswith(b"\x80") and not is_safetensors(data):
        raise IntegrityError(f"it is {kind(data)}, not a pickle of protocol 2 to 5")
    return _parse_safetensors(data) if is_safetensors(data) else _parse_pickle(data)


def _parse_pickle(data: bytes) -> Arrays:
    leaves = read_tree(data)
    if all(name.startswith("params/") for name in leaves):
        leaves = {name.removeprefix("params/"): leaf for name, leaf in leaves.items()}
    _refuse_differences((name, leaf.shape, str(leaf.dtype)) for name, leaf in leaves.items())
    try:
        refuse_not_finite((name, leaf.view()) for name, leaf in leaves.items())
        # Copied only now: refusing takes little memory, and what stays is aligned.
        return {name: leaf.view().astype(np.float32, order="C") for name, leaf in leaves.items()}
    except ValueError as error:
        raise IntegrityError(f"its text does not decode to an array: {error}") from None


def _parse_safetensors(data: bytes) -> Arrays:
    try:
        tensors = dict(safetensors.deserialize(data))
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"it is a broken safetensors file: {error}") from None
    _refuse_differences(
        (name, tuple(tensor["shape"]), tensor["dtype"].replace("F32", "<f4"))
        for name, tensor in tensors.items()
    )
    arrays = {
        name: np.frombuffer(tensor["data"], "<f4").reshape(tensor["shape"])
        for name, tensor in tensors.items()
    }
    refuse_not_finite(arrays.items())
    # Of use on big-endian machines only; elsewhere <f4 is float32 and nothing is copied.
    return {name: array.astype(np.float32, copy=False) for name, array in arrays.items()}


def _refuse_differences(found: Iterable[tuple[str, tuple[int, ...], str]]) -> None:
    differences, missing = [], dict.fromkeys(SHAPES)
    for name, shape, dtype in found:
        missing.pop(name, None)
        if name not in SHAPES:
            differences.append(f"{ascii(name)[1:-1][:100]} is unknown")
        elif (shape, dtype) != (SHAPES[name], "<f4"):
            differences.append(f"{name} is {dtype}{list(shape)}, not <f4{list(SHAPES[name])}")
    differences += [f"{name} is missing" for name in missing]
    refuse_list("it is not SERL's ResNet-10:", differences)


def is_serl(data: bytes) -> bool:
    """Says whether the bytes start like a file that `read_serl` takes, as a pickle or converted."""
    if is_safetensors(data):
        return b'"conv_init/kernel"' in data[: 1 << 16]
    return data.startswith(b"\x80") and not is_torch(data)
