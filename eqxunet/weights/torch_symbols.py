"""Symbols of what a torch checkpoint names: storages, tensors, and ordered dicts of them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .pickle_symbols import MAX_DIMENSIONS, Global, Grammar, Refused, show

_DTYPES = {"FloatStorage": "<f4", "HalfStorage": "<f2", "LongStorage": "<i8"}


@dataclass(eq=False)
class Storage:
    """Numbers that are kept beside the pickle; `raw` once they are found there."""

    key: str
    dtype: np.dtype
    size: int
    raw: bytes | memoryview | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage; every entry lies within it, and there are no more entries than it has.

    Arguments:

    - `offset`, `strides`: in numbers, not bytes.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Of the storage."""
        return self.storage.dtype

    def view(self) -> Shaped[np.ndarray, "..."]:
        """Returns the array, for reading."""
        assert self.storage.raw is not None
        flat = np.frombuffer(self.storage.raw, self.dtype)[self.offset :]
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)


def _load(where: Any) -> Storage:
    match where:
        case ("storage", Global(name), str() as key, str(), int() as size, *rest):
            if name in _DTYPES and type(size) is int and size > 0 and rest in ([], [None]):
                return Storage(key, np.dtype(_DTYPES[name]), size)
    raise Refused("keeps something else outside than a plain storage")


def _reduce(function: Any, arguments: Any) -> dict | Tensor:
    match function, arguments:
        case Global("OrderedDict"), ():
            return {}
        case (
            Global("_rebuild_tensor_v2"),
            (Storage() as storage, offset, tuple() as shape, tuple() as strides, bool(), hooks),
        ) if hooks == {}:
            return _tensor(storage, offset, shape, strides)
    raise Refused("makes something else than a plain tensor")


def _tensor(storage: Storage, offset: Any, shape: tuple, strides: tuple) -> Tensor:
    if any(type(n) is not int for n in (offset, *shape, *strides)):
        raise Refused("describes a tensor by something else than integers")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Refused(
            f"describes a tensor that has not 0 to {MAX_DIMENSIONS} sizes and as many strides"
        )
    if min((offset, *strides), default=0) < 0 or min(shape, default=1) < 1:
        raise Refused("describes a tensor with a negative offset or stride, or an empty one")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # The second keeps a stride of 0 from making much of little.
    if last >= storage.size or math.prod(shape) > storage.size:
        raise Refused(
            f"describes a tensor of shape {shape}, strides {strides} and offset {offset} in a "
            f"storage of {storage.size} numbers"
        )
    return Tensor(storage, offset, shape, strides)


def _build(target: Any, state: Any) -> None:
    """An ordered dict may carry the versions of the modules that it was made of."""
    match target, state:
        case dict(), {"_metadata": dict(), **rest} if not rest:
            return  # and is of no use here
    raise Refused("completes something else than a dict by its metadata")


TENSORS = Grammar(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        *(("torch", name) for name in _DTYPES),
    },
    key=r"[A-Za-z0-9_.]*",
    reduce=_reduce,
    build=_build,
    # EfficientNet-Lite0's file has 10,696, and ResNet-50's some 12,000.
    max_opcodes=20_000,
    load=_load,
    has_lists=True,
)
"""A dict of tensors, as `torch.save` writes a state dict."""


def tensors_of(root: Any) -> dict[str, Tensor]:
    """Returns the tensors of a pickled dict of them."""
    if not isinstance(root, dict) or not root:
        raise Refused("holds no dict of tensors")
    for name, node in root.items():
        if not isinstance(node, Tensor):
            raise Refused(f"holds at {show(name)} something else than a tensor")
    return root
