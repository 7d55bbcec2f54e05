"""Files made to crash, stall or mislead the reader, and trees that are almost SERL's."""

import pickle
import struct

import numpy as np
import pytest
from serl_files import (
    dumps,
    genuine,
    jax_array,
    leaves,
    nest,
    refusal,
    release_bytes,
    stand_ins,
)

from eqxunet.errors import InputError, IntegrityError
from eqxunet.weights import SHAPES, read_serl, serl
from eqxunet.weights.pickle_symbols import MAX_OPCODES

P4 = b"\x80\4"
A = b"\x8c\1a"  # the text "a"


def tuples(depth: int) -> bytes:
    return b")" + b"\x85" * depth


def doubled_tuples(times: int) -> bytes:
    """Each tuple holds the one before twice."""
    return b")q\0" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(times))


def doubled_dicts(times: int) -> bytes:
    """Each dict holds the one before as "a" and as "b"."""
    if times == 0:
        return b"}"
    return b"}(" + A + doubled_dicts(times - 1) + b"q%c\x8c\1bh%cu" % (times, times)


BOMBS = {
    "LONG_BINPUT": (P4 + b"}r\xff\xff\xff\xff.", "memo slot"),
    "LONG_BINPUT high": (P4 + b"}r" + struct.pack("<I", MAX_OPCODES) + b".", "memo slot"),
    "memo slot written twice": (P4 + b"}q\0q\0.", "memo slot"),
    "memo slot never written": (P4 + b"h\7.", "memo slot"),
    "BINBYTES8": (P4 + b"\x8e" + struct.pack("<Q", 1 << 62) + b".", "BINBYTES8"),
    "BINUNICODE8": (P4 + b"\x8d" + struct.pack("<Q", 1 << 62) + b".", "BINUNICODE8"),
    "BYTEARRAY8": (b"\x80\5\x96" + struct.pack("<Q", 1 << 62) + b".", "truncated"),
    "BINBYTES": (P4 + b"B\xff\xff\xff\xff.", "truncated"),
    "BINUNICODE": (P4 + b"X\xff\xff\xff\xff.", "truncated"),
    "LONG4": (P4 + b"\x8b\xff\xff\xff\x7f.", "LONG4"),
    "FRAME": (P4 + b"\x95" + b"\xff" * 8 + b"}.", "truncated"),
    "FRAME of all but one byte": (P4 + b"\x95" + struct.pack("<Q", 3) + b"}.", "truncated"),
    "FRAME in a frame": (P4 + (b"\x95" + struct.pack("<Q", 11)) * 2 + b"}.", "FRAME"),
    "FRAME that ends in an opcode": (
        P4 + b"\x95" + struct.pack("<Q", 2) + b"\x8c\1a.",
        "end of its frame",
    ),
    "a million marks": (P4 + b"(" * 10**6 + b".", "opcodes"),
    "a million dicts": (P4 + b"}" * 10**6 + b".", "opcodes"),
    "a million tuples": (P4 + tuples(10**6) + b".", "opcodes"),
    "a million dicts in dicts": (P4 + (b"}" + A) * 10**6 + b"}" + b"s" * 10**6 + b".", "opcodes"),
    "as many tuples as may be": (P4 + tuples(MAX_OPCODES - 2) + b".", "neither an array nor"),
    "deep tuple as a key": (P4 + b"}" + tuples(MAX_OPCODES - 5) + b"Ns.", "not a word: a tuple"),
    "deep tuple as a shape": (
        P4 + b"}(\x8c\5numpy\x8c\5dtype\x93" + tuples(MAX_OPCODES - 20) + b"R.",
        "REDUCE",
    ),
    "as many dicts as may be": (
        P4 + (b"}" + A) * 3000 + b"}" + b"s" * 3000 + b".",
        "a/a/a/a/a/a/a/a neither",
    ),
    "a dict in itself": (P4 + b"}q\0" + A + b"h\0s.", "a and elsewhere"),
    "two dicts in each other": (
        P4 + b"}q\0" + A + b"}q\1" + A + b"h\0ss.",
        "a/a and elsewhere",
    ),
    "2^250 tuples": (P4 + b"}" + A + doubled_tuples(250) + b"s.", "at a neither"),
    "2^250 tuples as a key": (P4 + b"}" + doubled_tuples(250) + b"Ns.", "not a word: a tuple"),
    "2^250 dicts": (P4 + doubled_dicts(250) + b".", "neither an array nor"),
    "2^6 dicts": (P4 + doubled_dicts(6) + b".", "a/a/a/a/a/b and elsewhere"),
    "no mark": (P4 + b"}t.", "no mark"),
    "a pop below the mark": (P4 + b"}" + A + b"(Ns.", "too little"),
    "a pop of nothing": (P4 + b"\x87.", "too little"),
    "BUILD of nothing": (P4 + b"Nb.", "too little"),
    "nothing at all": (P4 + b".", "unfinished"),
    "two results": (P4 + b"}}.", "unfinished"),
    "a mark left": (P4 + b"}(.", "unfinished"),
    "half a pair": (P4 + b"}(" + A + b"u.", "whole pairs"),
    "items of no dict": (P4 + b"N" + A + b"Ns.", "no dict"),
    "the same key twice": (P4 + b"}" + A + b"Ns" + A + b"Ns.", "'a' twice"),
    "the same key twice at once": (P4 + b"}(" + A + b"N" + A + b"Nu.", "'a' twice"),
    "an empty key": (P4 + b"}\x8c\0Ns.", "not a word"),
    "a key that is a path": (P4 + b"}\x8c\3a/bNs.", "not a word"),
    "a key with a newline": (P4 + b"}\x8c\2a\nNs.", "not a word"),
    "a key that is a number": (P4 + b"}K\1Ns.", "not a word"),
    "a key that is bytes": (P4 + b"}C\1aNs.", "not a word"),
    "a key of a megabyte": (P4 + b"}X\0\0\x10\0" + b"a" * (1 << 20) + b"Ns.", "not a word"),
    "a text that is not UTF-8": (P4 + b"\x8c\2\xed\xa0.", "UTF-8"),
    "GLOBAL without an end": (b"\x80\2c" + b"a" * 10**6, "global"),
    "a protocol named again": (P4 + P4 + b"}.", "PROTO"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_at_no_cost(tmp_path, bomb):
    data, why = BOMBS[bomb]
    # The bytes of the file, and no more than what 10,000 opcodes make.
    assert why in refusal(tmp_path, data, megabytes=5 + len(data) / 1e6)


def test_opcodes_are_bounded_at_the_stated_number(tmp_path):
    for count, why in ((MAX_OPCODES - 1, "unfinished"), (MAX_OPCODES, "over 10000 opcodes")):
        assert why in refusal(tmp_path, P4 + b"N" * count + b".")


def test_array_in_two_places_is_refused(tmp_path):
    tree = stand_ins()
    tree["ResNetBlock_0"]["Conv_1"]["kernel"] = tree["ResNetBlock_0"]["Conv_0"]["kernel"]
    assert "ResNetBlock_0/Conv_1/kernel and elsewhere" in refusal(tmp_path, dumps(tree))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("protocol", [2, 4])
def test_leaves_that_are_not_finite_are_all_named(tmp_path, value, protocol):
    names = ["ResNetBlock_3/Conv_1/kernel", "conv_init/kernel", "output_head/bias"]
    given = {name: leaves()[name].copy() for name in names}
    for leaf in given.values():
        leaf.flat[-1] = value
    tree = nest(leaves() | given)
    data = release_bytes(given) if protocol == 4 else pickle.dumps(tree, protocol)
    message = refusal(tmp_path, data)
    assert message.splitlines()[0].endswith(f"it holds NaN or infinity in {'; '.join(names)}.")


def test_missing_unknown_and_misshaped_leaves_are_all_listed(tmp_path):
    oihw = leaves()["conv_init/kernel"].transpose(3, 2, 0, 1)
    f8 = leaves()["norm_init/bias"].astype("f8")
    tree = stand_ins(
        {
            "ResNetBlock_1/conv_proj/kernel": None,
            "ResNetBlock_1/norm_proj/bias": None,
            "ResNetBlock_0/conv_proj/kernel": jax_array((1,), b"1234"),
            "conv_init/kernel": jax_array(oihw.shape, oihw.tobytes()),
            "norm_init/bias": np.asarray(f8),
        }
    )
    message = refusal(tmp_path, dumps(tree))
    for difference in (
        "ResNetBlock_1/conv_proj/kernel is missing",
        "ResNetBlock_1/norm_proj/bias is missing",
        "ResNetBlock_0/conv_proj/kernel is unknown",
        "conv_init/kernel is <f4[64, 3, 7, 7], not <f4[7, 7, 3, 64]",
        "norm_init/bias is <f8[64], not <f4[64]",
    ):
        assert difference in message
    assert message.count(";") == 4


@pytest.mark.parametrize("name", SHAPES)
def test_each_leaf_is_needed(tmp_path, name, monkeypatch):
    tiny = {name: (1,) * len(shape) for name, shape in SHAPES.items()}
    monkeypatch.setattr(serl, "SHAPES", tiny)
    given = {name: jax_array(shape, b"1234") for name, shape in tiny.items()}
    del given[name]
    assert f"{name} is missing." in refusal(tmp_path, dumps(nest(given)))
    given[f"{name}_"] = jax_array(tiny[name], b"1234")
    assert f"{name}_ is unknown; {name} is missing." in refusal(tmp_path, dumps(nest(given)))


def test_all_of_another_tree_is_listed_up_to_a_bound(tmp_path):
    other = {f"layer{i}": {"w": jax_array((1,), b"1234")} for i in range(100)}
    message = refusal(tmp_path, dumps(other))
    assert message.count("is unknown") + message.count("is missing") == 76
    assert "; and 62 more." in message


def test_wrapper_is_taken_once(tmp_path):
    message = refusal(tmp_path, dumps({"params": {"params": stand_ins()}}))
    assert "params/conv_init/kernel is unknown" in message
    message = refusal(tmp_path, dumps({"params": stand_ins(), "step": jax_array((1,), b"1234")}))
    assert "step is unknown" in message


def test_truncated_file_is_refused_wherever_it_ends(tmp_path, monkeypatch):
    data = dumps(nest({"a/b": jax_array((2, 2), b"x" * 16), "c": jax_array((1,), b"1234")}))
    for size in range(3, len(data)):
        assert "truncated" in refusal(tmp_path, data[:size])
    for size in (10**6, 20 * 10**6, len(genuine()) - 1):
        assert "truncated" in refusal(tmp_path, genuine()[:size])


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "an empty file"),
        (b"\x80", "no pickle of protocol 2 to 5"),
        (b"<!DOCTYPE html><html>Not found</html>", "a web page"),
        (b"\n<html lang=en>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"PK\3\4", "a file"),
    ],
)
def test_what_is_no_pickle_is_said(tmp_path, data, what):
    assert what in refusal(tmp_path, data)


def test_bytes_after_the_end_are_refused(tmp_path):
    assert "1 bytes that belong to nothing" in refusal(tmp_path, genuine() + b"\n")


def test_large_file_is_refused_unread(tmp_path):
    path = tmp_path / "large.pkl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(IntegrityError, match="1099511627776 bytes are too many"):
        read_serl(path)


def test_what_is_no_file_is_bad_input(tmp_path):
    for path in (tmp_path, tmp_path / "absent.pkl"):
        with pytest.raises(InputError, match="is no file"):
            read_serl(path)
