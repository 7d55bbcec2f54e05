"""Symbols in place of the objects that a pickle would make, and the few calls among them.

A global is only its name and a call only a pattern, which has to be one of those by which NumPy and
JAX write an array (`ARRAYS`), or PyTorch a tensor (`torch_symbols`). Nothing is imported or called,
and nothing allocated by a size that a file states.
"""

import math
import re
from codecs import getincrementaldecoder
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

# SERL's file has about 1200 opcodes.
MAX_OPCODES = 10_000
MAX_DEPTH = 8
MAX_DIMENSIONS = 8
_PIECE = 1 << 16

# Pairs, not "module.name": a dot in the name would be an attribute of an attribute.
GLOBALS = {
    ("jax._src.array", "_reconstruct_array"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class Refused(Exception):
    """What is wrong with a pickle, as the rest of a sentence."""


# Identity instead of equality: comparing what a file nests can go as deep as it likes.
@dataclass(frozen=True, eq=False)
class Global:
    """A function or class that a file names."""

    name: str


@dataclass(frozen=True, eq=False)
class Text:
    """A long text where it stands in the file, not decoded."""

    raw: memoryview


@dataclass(frozen=True, eq=False)
class Payload:
    """Bytes where they stand in the file; `is_text` if they are latin-1 written as UTF-8."""

    raw: memoryview
    is_text: bool = False

    def fits(self, size: int) -> bool:
        """Says whether `size` bytes can come out, without decoding."""
        return size <= len(self.raw) <= 2 * size if self.is_text else size == len(self.raw)

    def decoded(self) -> memoryview | bytearray:
        """Returns the bytes; raises UnicodeError if the text is no such one."""
        if not self.is_text:
            return self.raw
        # In pieces: as a whole, the text would take as much memory again.
        data, decoder = bytearray(), getincrementaldecoder("utf-8")()
        for start in range(0, len(self.raw), _PIECE):
            data += decoder.decode(self.raw[start : start + _PIECE]).encode("latin-1")
        decoder.decode(b"", final=True)
        return data


@dataclass(eq=False)
class DType:
    """NumPy's code of a plain dtype, such as "f4", and its byte order once that is known."""

    code: str
    byte_order: str = ""

    def __str__(self) -> str:
        return self.byte_order + self.code


@dataclass(eq=False)
class Leaf:
    """An array that is described but not made; it has a payload once it is known."""

    shape: tuple[int, ...] = ()
    dtype: DType | None = None
    payload: Payload | None = None
    order: Literal["C", "F"] = "C"

    def view(self) -> Shaped[np.ndarray, "..."]:
        """Returns the array, for reading; raises ValueError if the bytes do not fit after all."""
        assert self.payload is not None
        flat = np.frombuffer(self.payload.decoded(), np.dtype(str(self.dtype)))
        return flat.reshape(self.shape, order=self.order)


@dataclass(frozen=True)
class Grammar:
    """What a pickle may name, call and hold.

    - `globals`: pairs of module and name.
    - `key`: pattern of the keys of dicts.
    - `reduce`, `build`: symbols of what calls make, and their completion.
    - `load`: symbols of what is kept outside the pickle, by persistent id, where that may be.
    - `has_lists`: whether lists may be, too.
    - `max_opcodes`: work and memory are linear in them.
    """

    globals: Collection[tuple[str, str]]
    key: str
    reduce: Callable[[Any, Any], Any]
    build: Callable[[Any, Any], None]
    max_opcodes: int
    load: Callable[[Any], Any] | None = None
    has_lists: bool = False

    def named_global(self, module: Any, name: Any) -> Global:
        """Returns the symbol of a global that is allowed."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("names a global by something else than two texts")
        if (module, name) not in self.globals:
            raise Refused(f"names the global {show(f'{module}.{name}')}, which is not allowed")
        return Global(name)


def reduce(function: Any, arguments: Any) -> Payload | DType | Leaf:
    """Returns the symbol of what a call would make."""
    match function, arguments:
        case Global("encode"), (str() | Text() as text, "latin1"):
            raw = memoryview(text.encode()) if isinstance(text, str) else text.raw
            return Payload(raw, is_text=True)
        case Global("dtype"), (str() as code, 0, 1):  # False and True match too
            if re.fullmatch(r"[fiu][1248]|c8|c16|b1", code):
                return DType(code)
            raise Refused(f"makes the dtype {show(code)}, which is not allowed")
        case Global("_reconstruct"), (Global("ndarray"), (0,), Payload(raw=b"b")):
            return Leaf()
        case Global("_reconstruct_array"), (Global("_reconstruct") as make, args, state, aval):
            match aval:
                case {"weak_type": bool(), **rest} if rest in ({}, {"named_shape": {}}):
                    leaf = reduce(make, args)
                    build(leaf, state)
                    return leaf
        case Global("_frombuffer"), (Payload() as payload, DType() as dtype, shape, "C" | "F" as o):
            leaf = Leaf()
            _describe(leaf, shape, dtype, payload, o)
            return leaf
    raise Refused("makes something else than a plain array")


def build(target: Any, state: Any) -> None:
    """Completes a symbol by its state, once."""
    match target, state:
        case DType(byte_order=""), (3, "<" | ">" | "|" as order, None, None, None, -1, -1, 0):
            target.byte_order = order
        case Leaf(payload=None), (1, shape, DType() as dtype, bool() as fortran, Payload() as data):
            _describe(target, shape, dtype, data, "F" if fortran else "C")
        case _:
            raise Refused("describes something else than a plain array")


def _describe(leaf: Leaf, shape: Any, dtype: DType, payload: Payload, order: Any) -> None:
    if not isinstance(shape, tuple) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise Refused(f"describes an array whose shape is not 1 to {MAX_DIMENSIONS} numbers")
    if any(type(n) is not int or n < 1 for n in shape):
        raise Refused("describes an array with a size that is no positive integer")
    if not dtype.byte_order:
        raise Refused("describes an array without a byte order")
    if not payload.fits(math.prod(shape) * int(dtype.code[1:])):
        raise Refused(
            f"describes an array of shape {shape} and dtype {dtype} by {len(payload.raw)} bytes"
        )
    leaf.shape, leaf.dtype, leaf.payload, leaf.order = shape, dtype, payload, order


ARRAYS = Grammar(
    GLOBALS,
    # A plain word can neither collide with another path nor carry control characters.
    key=r"[A-Za-z0-9_]+",
    reduce=reduce,
    build=build,
    max_opcodes=MAX_OPCODES,
)
"""Nested dicts of arrays, as NumPy and JAX write them."""


def flatten(root: Any) -> dict[str, Leaf]:
    """Returns the leaves of nested dicts by their path, such as "conv_init/kernel"."""
    leaves: dict[str, Leaf] = {}
    seen: set[int] = set()
    pending: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while pending:
        path, node = pending.pop()
        name = "/".join(path) or "the top"
        if isinstance(node, dict | Leaf) and id(node) in seen:
            # So each node is visited once, and cycles and doublings end here.
            raise Refused(f"holds the same dict or array at {name} and elsewhere")
        seen.add(id(node))
        if isinstance(node, Leaf) and node.payload is not None and path:
            leaves[name] = node
        elif isinstance(node, dict) and len(path) < MAX_DEPTH:
            pending.extend(((*path, key), value) for key, value in reversed(node.items()))
        else:
            raise Refused(f"holds at {name} neither an array nor a dict of arrays")
    return leaves


def show(what: Any, limit: int = 100) -> str:
    """Returns what a file states, in short and without control characters."""
    return ascii(what)[:limit] if isinstance(what, str) else f"a {type(what).__name__}"
