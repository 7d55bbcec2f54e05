"""Files in the format of SERL's release, and files that are not quite, for tests.

`pickle` itself writes them, from stand-ins for what the release names, with those strings shared
that its writer had shared. Given the release's arrays it writes the release's bytes.
"""

import io
import pickle
import time
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eqxunet.errors import IntegrityError
from eqxunet.weights import SHAPES, read_serl
from eqxunet.weights.pickle_machine import Machine
from eqxunet.weights.pickle_symbols import flatten

# The beginning of the genuine release, where a checkout has it beside it.
TRUNCATED = Path(__file__).parents[2] / "shared" / "data" / "serl_resnet10_truncated.pkl"

Leaves = dict[str, np.ndarray]


class Named:
    """Stands for a global: pickled as its name, whether or not there is such a thing."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name


class Call:
    """Stands for an object: pickled as the call of a global, and its state if there is one."""

    def __init__(self, function: object, arguments: object, *state: object):
        self.function, self.arguments, self.state = function, arguments, state


class Writer(pickle._Pickler):
    """Python's own pickler, which writes stand-ins as what they stand for."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_named(self, named: Named) -> None:
        if self.proto >= 4:
            self.save(named.module)
            self.save(named.name)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{named.module}\n{named.name}\n".encode())
        self.memoize(named)

    def save_call(self, call: Call) -> None:
        self.save(call.function)
        self.save(call.arguments)
        self.write(pickle.REDUCE)
        self.memoize(call)
        for state in call.state:
            self.save(state)
            self.write(pickle.BUILD)

    dispatch[Named] = save_named
    dispatch[Call] = save_call


def dumps(tree: object, protocol: int = 4, *, memo: bool = True) -> bytes:
    """Returns the pickle of a tree that may hold stand-ins, or one without any use of the memo."""
    file = io.BytesIO()
    writer = Writer(file, protocol)
    writer.fast = not memo
    writer.dump(tree)
    return file.getvalue()


# One "numpy" and one "dtype" object, so that the pickler finds them in its memo.
_NUMPY = "numpy"
RECONSTRUCT = Named("numpy.core.multiarray", "_reconstruct")
NDARRAY = Named(_NUMPY, "ndarray")
DTYPE = Named(_NUMPY, "dtype")
JAX_ARRAY = Named("jax._src.array", "_reconstruct_array")


def dtype(code: str = "f4", order: str = "<") -> Call:
    return Call(DTYPE, (code, False, True), (3, order, None, None, None, -1, -1, 0))


FLOAT32 = dtype()


def jax_array(shape: Any, data: Any, dtype: object = FLOAT32, aval: Any = None) -> Call:
    """Stands for an array as JAX pickled it at the time of the release."""
    args = (NDARRAY, tuple([0]), b"b")  # a new tuple each time
    aval = {"weak_type": False, "named_shape": {}} if aval is None else aval
    return Call(JAX_ARRAY, (RECONSTRUCT, args, (1, shape, dtype, False, data), aval))


def numpy_array(shape: Any, data: Any, dtype: object = FLOAT32) -> Call:
    """Stands for an array as NumPy pickles it."""
    return Call(RECONSTRUCT, (NDARRAY, (0,), b"b"), (1, shape, dtype, False, data))


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree of dicts in the release's order, which is alphabetical.

    Leaves' names and the names that a module gives itself are shared objects, the others new.
    """
    shared = {name: name for name in ("kernel", "bias", "scale", "conv_proj", "norm_proj")}
    tree: dict[str, Any] = {}
    for path in sorted(flat):
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(shared.get(parent, parent), {})
        node[shared.get(name, name)] = flat[path]
    return tree


def random_leaves(seed: int = 0) -> Leaves:
    """Returns a full set of arrays that keep activations at a scale of one; scales vary in sign."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for name, shape in SHAPES.items():
        deviation = np.prod(shape[:-1]) ** -0.5 if len(shape) > 1 else 0.5
        leaves[name] = (deviation * rng.standard_normal(shape)).astype(np.float32)
        if name.endswith("scale"):
            leaves[name] += 1
    return leaves


@cache
def leaves() -> Leaves:
    """The arrays of the files below."""
    return random_leaves()


def stand_ins(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the release's tree with some leaves replaced or added, or left out for None."""
    given = {name: jax_array(leaf.shape, leaf.tobytes()) for name, leaf in leaves().items()}
    given |= changes or {}
    return nest({name: leaf for name, leaf in given.items() if leaf is not None})


def release_bytes(changes: Leaves | None = None) -> bytes:
    """Returns the file that SERL would have released with these arrays."""
    changed = {
        name: jax_array(leaf.shape, leaf.tobytes()) for name, leaf in (changes or {}).items()
    }
    return dumps(stand_ins(changed))


@cache
def genuine() -> bytes:
    """A full-size file in the genuine format: 21.7 MB, of which 2.7 kB are not arrays."""
    return release_bytes()


def assert_same(got: Mapping[str, np.ndarray], want: Leaves) -> None:
    """Fails unless the arrays are the same bit for bit, aligned and in C order."""
    assert got.keys() == want.keys()
    for name, leaf in want.items():
        assert got[name].dtype == np.float32 and got[name].shape == leaf.shape, name
        assert got[name].tobytes() == leaf.tobytes(), name
        assert got[name].flags.aligned and got[name].flags.c_contiguous, name


def refusal(folder: Path, data: bytes, *, megabytes: float = 50) -> str:
    """Returns why `read_serl` refuses a file, after checking the form and the cost of that."""
    path = folder / "given.pkl"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        start = time.process_time()
        with pytest.raises(IntegrityError) as caught:
            read_serl(path)
        seconds = time.process_time() - start  # of its own: other work does not count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1 and peak < megabytes * 1e6, (seconds, peak)
    message = str(caught.value)
    first, second = message.splitlines()
    assert first.startswith(f"{path}: ") and "weights download" in second, message
    assert first.isprintable() and second.isprintable(), message
    return message


def whole_leaves(data: bytes) -> Leaves:
    """Returns the arrays of the blocks that a truncated file still holds whole.

    `read_serl` refuses such files, so this looks at what its machine has when it breaks off.
    """
    machine = Machine(data)
    try:
        machine.run()
    except IntegrityError as error:
        assert "truncated" in str(error), error
    names, blocks = machine.stack[1::2], machine.stack[2::2]
    whole = zip(names, blocks, strict=False)
    tree = {name: block for name, block in whole if str(name).startswith("ResNetBlock") and block}
    return {name: leaf.view() for name, leaf in flatten(tree).items()}


def unpickle(data: bytes) -> Any:
    """Returns what `pickle` makes of a file that names nothing beyond the eight allowed globals."""
    make = np.zeros(1, np.float32).__reduce__()[0]
    frombuffer = np._core.numeric._frombuffer
    known: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }
    for core in ("numpy.core", "numpy._core"):
        known[f"{core}.multiarray", "_reconstruct"] = make
        known[f"{core}.numeric", "_frombuffer"] = frombuffer

    def jax_array(make, args, state, aval):
        array = make(*args)
        array.__setstate__(state)
        return array

    known["jax._src.array", "_reconstruct_array"] = jax_array

    class Reference(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return known[module, name]

    return Reference(io.BytesIO(data)).load()


def flat(tree: Mapping[str, Any], above: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the leaves of nested dicts by their path."""
    leaves = {}
    for name, value in tree.items():
        path = (*above, name)
        leaves |= flat(value, path) if isinstance(value, dict) else {"/".join(path): value}
    return leaves
