"""Random damage to good files, and random opcodes: each ends in a clean load or a clean error.

`EQXUNET_FUZZ=20000 pytest tests/test_weights_fuzz.py` runs that many cases of each kind with a new
seed; without it a few hundred run with a fixed one.
"""

import os
import pickle
import pickletools
import re
import struct
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
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

CASES = int(os.environ.get("EQXUNET_FUZZ", 0))
FUZZ = settings(
    max_examples=CASES or 300,
    derandomize=not CASES,
    database=None,
    deadline=2000,
    suppress_health_check=list(HealthCheck),
)

# Events by which Python tells that something was imported, called, opened or run.
EVENTS = (
    "import",
    "exec",
    "compile",
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "pickle.",
    "ctypes.",
)
_watched: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _watched is not None and event.startswith(EVENTS):
        _watched.append(event)


sys.addaudithook(_watch)


@pytest.fixture(scope="module", autouse=True)
def tiny_shapes():
    """SERL's names with a few numbers each: 38 leaves in 5 kB, nearly all of it structure."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = {name: tuple(min(n, 2) for n in shape) for name, shape in SHAPES.items()}
        patch.setattr(serl, "SHAPES", tiny)
        yield tiny


def outcome(data: bytes, read) -> str:
    """Returns "loaded" or the kind of error, after checking what must hold in each case."""
    global _watched
    _watched = []
    try:
        got = read(data)
    except IntegrityError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 10_000, message
        return re.sub(r"\d+|'.*'|\b[a-zA-Z0-9_/]*/\w+", "#", message)[:120]
    finally:
        events, _watched = _watched, None
        assert not events, events
    if got is not None:
        want = unpickle(data)  # safe by now: the file names nothing but the allowed globals
        want = flat(want["params"] if want.keys() == {"params"} else want)
        assert got.keys() == want.keys()
        for name, array in got.items():
            assert np.asarray(want[name]).tobytes() == array.tobytes(), name
    return "loaded"


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
NUMBERS = st.sampled_from([0, 1, 2, 3, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63])


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


def fuzz(files: st.SearchStrategy[bytes], read) -> Counter:
    """Returns how often each outcome occurred."""
    outcomes = Counter()

    @FUZZ
    @given(files)
    def run(data):
        outcomes[outcome(data, read)] += 1

    run()
    print(f"{sum(outcomes.values())} cases, {len(outcomes)} outcomes: {outcomes.most_common(12)}")
    return outcomes


def test_undamaged_files_load():
    for data in FILES:
        assert outcome(data, read_release) == "loaded"
        assert len(data) < 10_000


def test_damaged_files_load_or_are_refused(tiny_shapes):
    outcomes = fuzz(damaged_files(), read_release)
    # Damage reaches every layer, and spares some files: a flipped bit in a number is a number.
    assert outcomes["loaded"] > 0.01 * sum(outcomes.values())
    assert len(outcomes) > 15
    for layer in ("truncated", "memo slot", "is not allowed", "is not SERL"):
        assert any(layer in reason for reason in outcomes), layer


def test_opcode_streams_load_or_are_refused():
    outcomes = fuzz(opcode_streams(), read_any)
    assert outcomes["loaded"] > 0.01 * sum(outcomes.values())
    assert len(outcomes) > 15


@FUZZ
@given(st.binary(max_size=64), st.sampled_from([b"", b"\x80\2", b"\x80\4", b"\x80\5}"]))
def test_random_bytes_load_or_are_refused(data, start):
    outcome(start + data, read_any)


@FUZZ
@given(st.binary(max_size=200), st.integers(0, 200))
def test_random_safetensors_are_refused(data, size):
    data = struct.pack("<Q", size) + b'{"' + data
    assert outcome(data, lambda data: serl.parse(data) and None) != "loaded"


def test_the_watch_notices_a_call():
    """What would happen if something were called."""

    def unsafe(data):
        pickle.loads(data)

    with pytest.raises(AssertionError, match="pickle.find_class"):
        outcome(pickle.dumps(Counter), unsafe)


@st.composite
def damaged_files(draw) -> bytes:
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from("flip byte number insert delete repeat move cut".split())):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "number":
                width = draw(st.sampled_from([1, 4, 8]))
                data[at : at + width] = struct.pack("<Q", draw(NUMBERS))[:width]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "delete":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "move":
                piece = data[at : at + length]
                del data[at : at + length]
                to = draw(st.integers(0, len(data)))
                data[to:to] = piece
            case "cut":
                del data[at:]
    return bytes(data)
