"""What the reader of SERL's pickle accepts, and that it refuses everything else at no cost."""

import os
import pickle
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from serl_files import (
    FLOAT32,
    JAX_ARRAY,
    NDARRAY,
    RECONSTRUCT,
    TRUNCATED,
    Call,
    Named,
    assert_same,
    dtype,
    dumps,
    flat,
    genuine,
    jax_array,
    leaves,
    nest,
    numpy_array,
    refusal,
    release_bytes,
    stand_ins,
    unpickle,
    whole_leaves,
)

from eqxunet.weights import RELEASES, SHAPES, read_serl
from eqxunet.weights.pickle_machine import read_tree

needs_genuine = pytest.mark.skipif(
    not TRUNCATED.exists(), reason="the genuine, truncated release is not beside the checkout"
)

P4 = b"\x80\4"


def test_genuine_format_loads(tmp_path):
    assert len(genuine()) == RELEASES["resnet10"].size == 21_677_915
    (tmp_path / "serl.pkl").write_bytes(genuine())
    assert len(leaves()) == 38
    assert_same(read_serl(tmp_path / "serl.pkl"), leaves())


@needs_genuine
def test_fixture_writes_the_genuine_bytes():
    start = TRUNCATED.read_bytes()
    blocks = whole_leaves(start)
    assert len(blocks) == 15
    written = release_bytes(blocks)
    # The first array of block 2 is cut off, so its own bytes are the first that can't agree.
    same = start.index(struct.pack("<I", 4 * 3 * 3 * 128 * 256), 1_200_000) + 4
    assert same == 1_217_799
    assert written[:same] == start[:same]
    assert len(written) == RELEASES["resnet10"].size


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrap", [False, True])
def test_plain_numpy_loads(tmp_path, protocol, wrap):
    tree = nest(leaves())
    path = tmp_path / "numpy.pkl"
    path.write_bytes(pickle.dumps({"params": tree} if wrap else tree, protocol))
    assert_same(read_serl(path), leaves())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_other_forms_of_arrays_load(tmp_path, protocol):
    """Read-only and Fortran arrays, older NumPy's names, JAX's form since it has no named_shape."""
    tree = nest(leaves())
    head = tree["output_head"]["kernel"]
    tree["output_head"]["kernel"] = np.asfortranarray(head)
    assert not tree["output_head"]["kernel"].flags.c_contiguous
    tree["norm_init"]["bias"].flags.writeable = False
    data = pickle.dumps(tree, protocol)
    tree["norm_init"]["bias"].flags.writeable = True
    path = tmp_path / "numpy2.pkl"
    path.write_bytes(data)
    assert_same(read_serl(path), leaves())
    given = nest(
        {
            name: jax_array(leaf.shape, leaf.tobytes(), aval={"weak_type": True})
            if name.endswith("kernel")
            else numpy_array(leaf.shape, leaf.tobytes())
            for name, leaf in leaves().items()
        }
    )
    path.write_bytes(dumps(given, protocol))
    assert_same(read_serl(path), leaves())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reader_agrees_with_pickle(protocol):
    arrays = {
        "a/f4": np.linspace(-1, 1, 24, dtype="<f4").reshape(2, 3, 4),
        "a/f8": np.full((3, 1), np.pi),
        "b/c/i4_big_endian": np.arange(-3, 5, dtype=">i4"),
        "b/c/u1": np.arange(256, dtype="u1").reshape(2, 128),
        "b/bool": np.array([True, False]),
        "f2": np.asfortranarray(np.eye(3, 2, dtype="f2")),
        "c16": np.array([[1 + 2j]]),
    }
    data = pickle.dumps(nest(arrays), protocol)
    want, got = flat(unpickle(data)), read_tree(data)
    assert got.keys() == want.keys() == arrays.keys()
    for name, leaf in got.items():
        # NumPy swaps big-endian arrays while it unpickles.
        array = leaf.view().astype(leaf.view().dtype.newbyteorder("="))
        assert array.dtype == want[name].dtype.newbyteorder("="), name
        assert np.array_equal(array, want[name]), name


def test_reading_needs_no_jax(tmp_path):
    (tmp_path / "serl.pkl").write_bytes(genuine())
    code = (
        "import sys; sys.modules['jax'] = None; from eqxunet.weights import read_serl;"
        "print(len(read_serl(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "serl.pkl"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "38\n"


class Shell:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", range(6))
def test_shell_command_is_not_run(tmp_path, protocol):
    canary = tmp_path / "canary"
    data = pickle.dumps({"conv_init": {"kernel": Shell(canary)}}, protocol)
    message = refusal(tmp_path, data)
    assert not canary.exists()
    if protocol >= 2:
        assert f"{os.system.__module__}.system" in message
    pickle.loads(data)
    assert canary.exists(), "the file would have been harmless"


@pytest.mark.parametrize(
    "module, name",
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core", "multiarray._reconstruct"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("jax._src.array", "ArrayImpl"),
        ("flax.core.frozen_dict", "FrozenDict"),
        ("collections", "OrderedDict"),
        ("\x1b[2J", "x\ny"),
    ],
)
def test_other_globals_are_named(tmp_path, module, name):
    data = dumps({"conv_init": Call(Named(module, name), ({},))})
    assert ascii(f"{module}.{name}") in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "data, opcode",
    [
        (b"cnumpy\nndarray\n.", "not a pickle of protocol 2 to 5"),
        (P4 + b"cnumpy\nndarray\n.", "GLOBAL"),
        (b"\x80\2\x8c\5numpy\x8c\7ndarray\x93.", "STACK_GLOBAL"),
        (P4 + b"(inumpy\nndarray\n.", "INST"),
        (P4 + b"(cnumpy\nndarray\no.", "GLOBAL"),
        (b"\x80\2(cnumpy\nndarray\no.", "OBJ"),
        (b"\x80\2cnumpy\nndarray\n)\x81.", "NEWOBJ"),
        (P4 + b"\x82\1.", "EXT1"),
        (P4 + b"\x83\1\0.", "EXT2"),
        (P4 + b"\x84\1\0\0\0.", "EXT4"),
        (P4 + b"Pid\n.", "PERSID"),
        (P4 + b"\x8c\2idQ.", "BINPERSID"),
        (b"\x80\5\x97.", "NEXT_BUFFER"),
        (P4 + b"I1\n.", "INT"),
        (P4 + b"\xff.", "0xff"),
        (b"\x80\6}.", "no pickle of protocol 2 to 5"),
    ],
)
def test_other_opcodes_are_named(tmp_path, data, opcode):
    assert opcode in refusal(tmp_path, data)


@pytest.mark.parametrize(
    "given",
    ["f8", "f2", ">f4", "i4", "bfloat16", "O", "V4", "U1", "S4", "f4,f4", "datetime64[s]"],
)
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_dtypes_are_refused(tmp_path, given, protocol):
    kind = np.dtype(getattr(ml_dtypes, given, given))
    array = np.zeros(SHAPES["norm_init/scale"], kind)
    data = pickle.dumps(nest(leaves() | {"norm_init/scale": array}), protocol)
    message = refusal(tmp_path, data)
    if kind.kind in "fi":
        name = kind.str.replace("=", "<")
        assert f"norm_init/scale is {name}[64], not <f4[64]" in message


ARRAY_LIES = {
    "too few bytes": (numpy_array((64,), b"x" * 255), "by 255 bytes"),
    "too many bytes": (numpy_array((64,), b"x" * 257), "by 257 bytes"),
    "negative": (numpy_array((-1, -64), b"x" * 256), "no positive integer"),
    "zero": (numpy_array((0, 64), b""), "no positive integer"),
    "bool": (numpy_array((True, 64), b"x" * 256), "no positive integer"),
    "no shape": (numpy_array((), b"x" * 4), "1 to 8 numbers"),
    "many dimensions": (numpy_array((1,) * 9, b"x" * 4), "1 to 8 numbers"),
    "shape is a number": (numpy_array(64, b"x" * 256), "1 to 8 numbers"),
    "2^30 to the fourth": (numpy_array((2**30,) * 4, b"x" * 256), "by 256 bytes"),
    "2^40": (numpy_array((2**40,), b"x" * 256), "LONG1"),
    "large from the start": (
        Call(RECONSTRUCT, (NDARRAY, (2**31 - 1,), b"b"), (1, (64,), FLOAT32, False, b"x" * 256)),
        "REDUCE",
    ),
    "another kind": (Call(RECONSTRUCT, (NDARRAY, (0,), b"c")), "REDUCE"),
    "never described": (Call(RECONSTRUCT, (NDARRAY, (0,), b"b")), "neither an array nor"),
    "described twice": (
        Call(RECONSTRUCT, (NDARRAY, (0,), b"b"), *[(1, (1,), FLOAT32, False, b"1234")] * 2),
        "BUILD",
    ),
    "another version": (
        Call(RECONSTRUCT, (NDARRAY, (0,), b"b"), (2, (1,), FLOAT32, False, b"1234")),
        "BUILD",
    ),
    "a dtype without order": (
        numpy_array((1,), b"1234", Call(FLOAT32.function, FLOAT32.arguments)),
        "byte order",
    ),
    "text for bytes": (numpy_array((300,), "x" * 1200), "BUILD"),
    "aval with more": (jax_array((1,), b"1234", aval={"weak_type": False, "x": {}}), "REDUCE"),
    "JAX of JAX": (Call(JAX_ARRAY, (JAX_ARRAY, (), (), {})), "REDUCE"),
    "a text": ("kernel", "neither an array nor"),
    "a number": (3, "neither an array nor"),
    "none": (None, "neither an array nor"),
    "a tuple": ((FLOAT32,), "neither an array nor"),
    "a dtype": (dtype(), "neither an array nor"),
    "bytes": (b"1234", "neither an array nor"),
    "a class": (NDARRAY, "neither an array nor"),
    "a list": ([], "EMPTY_LIST"),
    "a float": (1.0, "BINFLOAT"),
}


@pytest.mark.parametrize("lie", ARRAY_LIES)
def test_arrays_that_do_not_fit_themselves_are_refused(tmp_path, lie):
    leaf, why = ARRAY_LIES[lie]
    assert why in refusal(tmp_path, dumps({"norm_init": {"bias": leaf}}), megabytes=5)


def test_text_that_holds_too_little_is_refused(tmp_path):
    """Protocol 2 writes bytes as text, whose length only decoding can tell."""
    for text in ("ÿ" * 130, "\u0100" * 130):
        data = Call(Named("_codecs", "encode"), (text, "latin1"))
        tree = stand_ins({"norm_init/bias": numpy_array((64,), data)})
        assert "does not decode" in refusal(tmp_path, dumps(tree))
