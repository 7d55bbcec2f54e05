"""State dicts of PyTorch's ImageNet networks: tensors by name, of any file that holds them."""

import os
from collections.abc import Mapping

import numpy as np
import safetensors
from jaxtyping import Float32, Int64

from ..errors import IntegrityError
from .files import is_safetensors, kind, read_parsed, refuse_list, refuse_not_finite
from .torch_file import is_torch, read_tensors

StateDict = dict[str, Float32[np.ndarray, "..."] | Int64[np.ndarray, "..."]]

# Twice ResNet-50, the largest that there is an encoder for.
MAX_BYTES = 210_000_000

WAY_OUT = "Give a state dict as `torch.save` or safetensors write it, or --weights auto, or random."


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Returns the tensors of a file by name, such as "layer1.0.conv1.weight".

    Nothing in the file is executed, and neither torch nor JAX is needed.

    Arguments:

    - `path`: a state dict that `torch.save` wrote, in today's format (zip) or the one before
      PyTorch 1.6, or safetensors; of float32, float16 (which become float32) and int64.

    Raises IntegrityError for anything else, and unless all numbers are finite.
    """
    return read(path)[1]


def read(path: str | os.PathLike[str]) -> tuple[bytes, StateDict]:
    """Returns a file's bytes and the tensors in them; see `read_state_dict`."""
    return read_parsed(path, parse, MAX_BYTES, WAY_OUT)


def parse(data: bytes) -> StateDict:
    """Returns the tensors in the bytes of a file; see `read_state_dict`."""
    if is_safetensors(data):
        views = _views_of_safetensors(data)
    elif is_torch(data):
        views = {name: tensor.view() for name, tensor in read_tensors(data).items()}
    else:
        raise IntegrityError(f"it is {kind(data)}, neither a state dict of torch nor safetensors")
    refuse_not_finite(views.items())
    return {name: _native(view) for name, view in views.items()}


def _native(view: np.ndarray) -> np.ndarray:
    return view.astype(np.int64 if view.dtype.kind == "i" else np.float32, order="C")


def _views_of_safetensors(data: bytes) -> Mapping[str, np.ndarray]:
    try:
        tensors = safetensors.deserialize(data)
    except safetensors.SafetensorError as error:
        raise IntegrityError(f"it is a broken safetensors file: {error}") from None
    dtypes = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
    others = [
        f"{ascii(name)[1:-1][:100]} is {tensor['dtype']}"
        for name, tensor in tensors
        if tensor["dtype"] not in dtypes
    ]
    refuse_list("it holds other numbers than F32, F16 and I64:", others)
    return {
        name: np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors
    }
