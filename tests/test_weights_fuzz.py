"""Random damage to good files, and random opcodes: each ends in a clean load or a clean error.

`EQXUNET_FUZZ=20000 pytest tests/test_weights_fuzz.py` runs that many cases of each kind with a new
seed; without it a few hundred run with a fixed one.
"""

import pickle
import pickletools
import struct
from collections import Counter

import numpy as np
import pytest
from fuzzing import FUZZ, damaged, fuzz, outcome
from hypothesis import given
from hypothesis import strategies as st
from serl_files import (
    Named,
    dtype,
    dumps,
    flat,
    jax_array,
    nest,
    numpy_array,
    random_leaves,
    unpickle,
)

from eqxunet.errors import IntegrityError
from eqxunet.weights import SHAPES, serl
from eqxunet.weights.pickle_machine import read_tree
from eqxunet.weights.pickle_symbols import GLOBALS


@pytest.fixture(scope="module", autouse=True)
def tiny_shapes():
    """SERL's names with a few numbers each: 38 leaves in 5 kB, nearly all of it structure."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = {name: tuple(min(n, 2) for n in shape) for name, shape in SHAPES.items()}
        patch.setattr(serl, "SHAPES", tiny)
        yield tiny


def check(data: bytes, read) -> str:
    """The outcome of a file, which is held to what `pickle` makes of it."""

    def want(data):
        tree = unpickle(data)
        return flat(tree["params"] if tree.keys() == {"params"} else tree)

    return outcome(data, read, want)


def read_release(data: bytes) -> dict[str, np.ndarray]:
    arrays = serl.parse(data)
    assert {name: array.shape for name, array in arrays.items()} == serl.SHAPES
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in arrays.values())
    return arrays


def read_any(data: bytes) -> dict[str, np.ndarray]:
    leaves = read_tree(data)
    try:
        views = {name: leaf.view() for name, leaf in leaves.items()}
    except ValueError as error:  # as documented, of text that is too short
        raise IntegrityError(f"view: {error}") from error
    return {
        name: view.astype(view.dtype.newbyteorder("="), order="C") for name, view in views.items()
    }


def small_files() -> list[bytes]:
    full = random_leaves()
    tiny = {name: full[name][tuple(slice(2) for _ in shape)] for name, shape in SHAPES.items()}
    stand_ins = {name: jax_array(leaf.shape, leaf.tobytes()) for name, leaf in tiny.items()}
    files = [dumps(nest(stand_ins), protocol) for protocol in (4, 4, 4, 2)]
    return files + [pickle.dumps({"params": nest(tiny)}, protocol) for protocol in (2, 3, 4, 5)]


FILES = small_files()


def fragment(what: object, protocol: int) -> bytes:
    """Opcodes that push something, without header, frame and end."""
    return dumps(what, protocol, memo=False)[11 if protocol >= 4 else 2 : -1]


ARRAY = numpy_array((2,), b"12345678")
WHOLES = [
    ARRAY,
    jax_array((1, 1), b"1234"),
    numpy_array((2,), b"12345678", dtype("f2")),
    dtype(">i8"),
    *[Named(*names) for names in sorted(GLOBALS)],
    Named("os", "system"),
    (),
    (1, (2,), dtype(), False, b"12345678"),
    (3, "<", None, None, None, -1, -1, 0),
    ("f4", False, True),
    ("12345678", "latin1"),
    {"weak_type": False},
    {"a": {"b": ARRAY}},
    b"12345678",
    "a",
    None,
]


@st.composite
def opcode_streams(draw) -> bytes:
    """A dict, then whole things, items, memo traffic and raw opcodes in any order."""
    protocol = draw(st.integers(2, 5))
    pieces = [b"\x80", bytes([protocol]), b"}"]
    for i in range(draw(st.integers(0, 12))):
        match draw(st.sampled_from("item item item whole whole memo opcode".split())):
            case "item":
                key = draw(st.sampled_from([f"k{i}", "a"]))
                value = draw(st.sampled_from(WHOLES[:3] if draw(st.booleans()) else WHOLES))
                pieces += [fragment(key, protocol), fragment(value, protocol), b"s"]
            case "whole":
                pieces.append(fragment(draw(st.sampled_from(WHOLES)), protocol))
            case "memo":
                pieces.append(draw(st.sampled_from([b"q\0", b"q\1", b"h\0", b"h\1", b"\x94"])))
            case "opcode":
                opcode = draw(st.sampled_from(pickletools.opcodes)).code.encode("latin-1")
                pieces += [opcode, draw(st.binary(max_size=4))]
    return b"".join([*pieces, b"."])


def test_undamaged_files_load():
    for data in FILES:
        assert check(data, read_release) == "loaded"
        assert len(data) < 10_000


def test_damaged_files_load_or_are_refused(tiny_shapes):
    outcomes = fuzz(damaged(FILES), lambda data: check(data, read_release))
    # Damage reaches every layer, and spares some files: a flipped bit in a number is a number.
    assert outcomes["loaded"] > 0.01 * sum(outcomes.values())
    assert len(outcomes) > 15
    for layer in ("truncated", "memo slot", "is not allowed", "is not SERL"):
        assert any(layer in reason for reason in outcomes), layer


def test_opcode_streams_load_or_are_refused():
    outcomes = fuzz(opcode_streams(), lambda data: check(data, read_any))
    assert outcomes["loaded"] > 0.01 * sum(outcomes.values())
    assert len(outcomes) > 15


@FUZZ
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x80\2", b"\x80\4", b"\x80\5}"]))
def test_random_bytes_load_or_are_refused(data, start):
    check(start + data, read_any)


@FUZZ
@given(st.binary(max_size=200), st.integers(0, 200))
def test_random_safetensors_are_refused(data, size):
    data = struct.pack("<Q", size) + b'{"' + data
    assert check(data, lambda data: serl.parse(data) and None) != "loaded"


def test_the_watch_notices_a_call():
    """What would happen if something were called."""

    def unsafe(data):
        pickle.loads(data)

    with pytest.raises(AssertionError, match="pickle.find_class"):
        check(pickle.dumps(Counter), unsafe)
