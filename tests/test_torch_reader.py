"""State dicts of `torch.save`, in both formats, and of safetensors: read exactly, or refused."""

import hashlib
import io
import json
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import parity
import pytest
import safetensors.numpy
import torch_files
from serl_files import Call, Named, genuine
from torch_files import dumps, few_arrays, legacy, saved, state_dict, storage, tensor, zipped

from eqxunet.errors import InputError, IntegrityError
from eqxunet.weights import read_serl, read_state_dict
from eqxunet.weights.state_dict import parse
from eqxunet.weights.torch_file import MAX_MEMBERS
from eqxunet.weights.torch_symbols import TENSORS

DATA = Path(__file__).parent / "data"
P2 = b"\x80\2"


def read(folder: Path, data: bytes):
    path = folder / "given.pth"
    path.write_bytes(data)
    return read_state_dict(path)


def refusal(folder: Path, data: bytes, *, megabytes: float = 30) -> str:
    """Returns why a file is refused, after checking the form and the cost of that."""
    start = time.process_time()
    with pytest.raises(IntegrityError):
        read(folder, data)
    seconds = time.process_time() - start  # apart, since tracing takes several times as long
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError) as caught:
            read(folder, data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1 and peak < megabytes * 1e6, (seconds, peak)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{folder / 'given.pth'}: ") and "--weights" in second
    assert first.isprintable() and len(first) < 10_000
    return first


def assert_few(got) -> None:
    want = few_arrays()
    assert got.keys() == want.keys()
    for name, array in want.items():
        dtype = np.int64 if array.dtype == np.int64 else np.float32
        assert got[name].dtype == dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.astype(dtype).tobytes(), name
        assert got[name].flags.aligned and got[name].flags.c_contiguous, name


@pytest.mark.parametrize("is_legacy", [False, True])
def test_both_formats_are_read_exactly(tmp_path, is_legacy):
    assert_few(read(tmp_path, saved(few_arrays(), is_legacy=is_legacy)))


def test_safetensors_are_read_exactly(tmp_path):
    assert_few(read(tmp_path, safetensors.numpy.save(few_arrays())))


def genuine_arrays():
    """What scripts/make_torch_references.py has PyTorch save; `half` and `turned` are views."""
    wide = parity.values("wide", (4, 3, 2, 2))
    return {
        "0.weight": wide,
        "0.bias": parity.values("bias", (4,)),
        "half": wide.astype(np.float16).astype(np.float32),
        "turned": wide.reshape(12, 4)[2:, 1:].T,
        "count": np.array(7),
    }


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_files_that_pytorch_wrote(name):
    about = json.loads((DATA / "encoders.provenance.json").read_text())
    assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == about["sha256"][name]
    got, want = read_state_dict(DATA / name), genuine_arrays()
    assert list(got) == list(want)
    for key, array in want.items():
        assert np.array_equal(got[key], array) and got[key].dtype == array.dtype, key


def one(place, shape=(2, 2), strides=(2, 1), offset=0) -> bytes:
    """A zip file with one tensor, of what may be no storage."""
    return zipped(dumps({"a": tensor(place, shape, strides, offset)}), {"0": b"\0" * 16})


FOUR = storage("0", 4)
TENSORS_THAT_LIE = {
    "beyond the end": (one(FOUR, offset=1), "offset 1 in a storage of 4 numbers"),
    "beyond by a stride": (one(FOUR, strides=(3, 1)), r"strides \(3, 1\)"),
    "before the start": (one(FOUR, offset=-1), "negative offset"),
    "backwards": (one(FOUR, strides=(-2, 1), offset=2), "negative offset or stride"),
    "much of little": (one(FOUR, (1 << 30, 1 << 30), (0, 0)), "in a storage of 4 numbers"),
    "five of four": (one(FOUR, (5,), (0,)), "in a storage of 4 numbers"),
    "empty": (one(FOUR, (0, 2)), "an empty one"),
    "of nine dimensions": (one(FOUR, (1,) * 9, (1,) * 9), "0 to 8 sizes"),
    "of unlike lengths": (one(FOUR, (2, 2), (1,)), "as many strides"),
    "a shape of texts": (one(FOUR, ("2", 2)), "than integers"),
    "a shape of truths": (one(FOUR, (True, True)), "than integers"),
    "a storage of no numbers": (one(storage("0", 0)), "than a plain storage"),
    "a storage of doubles": (
        one(storage("0", 4, Named("torch", "DoubleStorage"))),
        "the global 'torch.DoubleStorage'",
    ),
    "a storage by its name": (one(storage("0", 4, "FloatStorage")), "than a plain storage"),
    "no storage": (one("0"), "than a plain tensor"),
    "a storage with a view": (one(storage("0", 4, "<f4", None, None)), "than a plain storage"),
    "a storage elsewhere": (one(storage("7", 4)), "lacks the member 'archive/data/7'"),
    "a storage up the tree": (one(storage("../data.pkl", 4)), "lacks the member"),
    "a longer storage": (one(storage("0", 5)), r"has 16 bytes in the storage '0', not 20"),
    "of another width": (one(storage("0", 4, "<i8")), r"has 16 bytes in the storage '0', not 32"),
}


@pytest.mark.parametrize("lie", TENSORS_THAT_LIE)
def test_tensors_lie_within_their_storages(tmp_path, lie):
    data, why = TENSORS_THAT_LIE[lie]
    with pytest.raises(IntegrityError, match=why):
        read(tmp_path, data)
    refusal(tmp_path, data)


def pickled(body: bytes) -> bytes:
    return zipped(P2 + body + b".", {})


def deep(times: int) -> bytes:
    return b")" + b"\x85" * times


PICKLES = {
    "os.system": (zipped(dumps({"a": Call(Named("os", "system"), ("true",))}), {}), "os.system"),
    "a dotted name": (
        zipped(dumps({"a": Named("torch", "_utils._rebuild_tensor_v2")}), {}),
        "'torch._utils._rebuild_tensor_v2', which is not",
    ),
    "torch.load": (zipped(dumps({"a": Named("torch", "load")}), {}), "'torch.load'"),
    "a call of a storage": (
        zipped(dumps({"a": Call(Named("torch", "FloatStorage"), ())}), {}),
        "than a plain tensor",
    ),
    "an ordered dict of something": (
        zipped(dumps({"a": Call(torch_files.ORDERED_DICT, ([["a", 1]],))}), {}),
        "than a plain tensor",
    ),
    "hooks": (
        zipped(
            dumps({"a": Call(torch_files.REBUILD, (FOUR, 0, (4,), (1,), False, {"a": 1}))}),
            {"0": b"\0" * 16},
        ),
        "than a plain tensor",
    ),
    "a state of another name": (
        zipped(dumps(Call(torch_files.ORDERED_DICT, (), {"__class__": {}})), {}),
        "metadata",
    ),
    "a dict in a dict": (zipped(dumps({"a": {"b": 1}}), {}), "holds at 'a' something else"),
    "a list": (zipped(dumps([1]), {}), "no dict of tensors"),
    "nothing": (zipped(dumps({}), {}), "no dict of tensors"),
    "a name with a slash": (zipped(dumps({"a/b": 1}), {}), "not a word"),
    "a name of a megabyte": (zipped(dumps({"a" * 2**20: 1}), {}), "not a word"),
    "INST": (pickled(b"(ios\nsystem\n"), "INST"),
    "OBJ": (pickled(b"(o"), "OBJ"),
    "EXT1": (pickled(b"\x82\1"), "EXT1"),
    "GET": (pickled(b"g0\n"), "GET"),
    "LONG4": (pickled(b"\x8b\xff\xff\xff\x7f"), "LONG4"),
    "PERSID": (pickled(b"Pa\n"), "PERSID"),
    "BINPERSID of nothing": (pickled(b"Q"), "too little"),
    "BINPERSID of a tuple in itself": (pickled(b")q\0" + b"h\0\x86" * 200 + b"Q"), "plain storage"),
    "APPENDS to no list": (pickled(b"}(K\1e"), "no list"),
    "a list in itself": (pickled(b"]q\0h\0a"), "no dict of tensors"),
    "as many dicts as may be": (pickled(b"}" * (TENSORS.max_opcodes - 2)), "unfinished"),
    "as many tuples as may be": (pickled(deep(TENSORS.max_opcodes - 4)), "no dict of tensors"),
    "a deep tuple as storage": (pickled(deep(TENSORS.max_opcodes - 4) + b"Q"), "plain storage"),
    "a million marks": (pickled(b"(" * 10**6), "over 20000 opcodes"),
    "two results": (pickled(b"}}"), "unfinished"),
    "bytes behind": (zipped(dumps({}) + b".", {}), "belong to nothing"),
    "not a pickle": (zipped(b"{}", {}), "no pickle of protocol 2 to 5"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_other_pickles_are_refused_at_no_cost(tmp_path, what):
    data, why = PICKLES[what]
    assert why in refusal(tmp_path, data)


def with_directory(change) -> bytes:
    """A good file whose members are described otherwise by the directory at its end."""
    file = io.BytesIO(saved(few_arrays()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/extra", b"")  # so that the directory is written again
        change({member.filename: member for member in archive.filelist})
    return file.getvalue()


def make_overlap(members) -> None:
    for i in range(4):
        members[f"archive/data/{i}"].header_offset = members["archive/data.pkl"].header_offset
        members[f"archive/data/{i}"].file_size = members["archive/data.pkl"].file_size


ARCHIVES = {
    "packed": (lambda m: setattr(m["archive/data/0"], "compress_type", 8), "no whole zip file"),
    "packed otherwise": (lambda m: setattr(m["archive/data/0"], "compress_type", 77), "no whole"),
    "encrypted": (lambda m: setattr(m["archive/data/0"], "flag_bits", 1), "encrypted"),
    "another sum": (lambda m: setattr(m["archive/data/0"], "CRC", 0), "Bad CRC-32"),
    "another place": (lambda m: setattr(m["archive/data/0"], "header_offset", 9), "no whole"),
    "beyond the end": (lambda m: setattr(m["archive/data/0"], "file_size", 1 << 40), "have more"),
    "on top of others": (make_overlap, "have more"),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_archives_that_lie_are_refused(tmp_path, what):
    change, why = ARCHIVES[what]
    assert why in refusal(tmp_path, with_directory(change))


def test_archives_of_another_kind_are_refused(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("weights.npy", b"")
    assert "without a data.pkl" in refusal(tmp_path, file.getvalue())
    good = dumps({"a": tensor(FOUR, (4,), (1,))})
    big = zipped(good, {"0": b"\0" * 16}, byteorder=b"big")
    assert "another byte order" in refusal(tmp_path, big)
    many = b"PK\3\4" + b"PK\1\2" * (MAX_MEMBERS + 1)
    assert f"over {MAX_MEMBERS} members" in refusal(tmp_path, many)
    two = {"a": tensor(FOUR, (4,), (1,)), "b": tensor(storage("0", 2, "<i8"), (2,), (1,))}
    assert "in two ways" in refusal(tmp_path, zipped(dumps(two), {"0": b"\0" * 16}))


def test_legacy_files_that_lie_are_refused(tmp_path):
    good = dumps({"a": tensor(storage("k", 4, "<f4", None), (4,), (1,))})
    raw = b"\0" * 16
    assert np.array_equal(read(tmp_path, legacy(good, {"k": (4, raw)}))["a"], np.zeros(4))
    cases = [
        (legacy(good, {"k": (4, raw[:-1])}), "ends inside the storage 'k'"),
        (legacy(good, {"k": (4, raw + b"\0")}), "followed by 1 bytes"),
        (legacy(good, {"k": (1 << 60, raw)}), "numbers in the storage 'k', not 4"),
        (legacy(good, {"k": (-4, raw)}), "has -4 numbers"),
        (legacy(good, {"j": (4, raw)}), "lists other storages"),
        (legacy(good, {"k": (4, raw), "j": (4, raw)}), "lists other storages"),
        (legacy(good, {}), "lists other storages"),
        (legacy(good, {"k": (4, raw)}, system={"little_endian": False}), "byte order"),
        (legacy(good, {"k": (4, raw)}, system=[]), "byte order"),
    ]
    for data, why in cases:
        assert why in refusal(tmp_path, data)


@pytest.mark.parametrize("is_legacy", [False, True])
def test_truncated_files_are_refused_wherever_they_end(is_legacy):
    data = saved(few_arrays(), is_legacy=is_legacy)
    for size in range(21, len(data)):
        with pytest.raises(IntegrityError, match="truncated|no pickle of protocol"):
            parse(data[:size])


def test_numbers_that_are_not_finite_are_named(tmp_path):
    arrays = few_arrays()
    arrays["bn1.bias"][1] = np.nan
    arrays["bn1.running_var"][0] = np.inf
    for is_legacy in (False, True):
        why = refusal(tmp_path, saved(arrays, is_legacy=is_legacy))
        assert "NaN or infinity in bn1.bias; bn1.running_var." in why
    why = refusal(tmp_path, safetensors.numpy.save(arrays))
    assert "NaN or infinity in" in why and "bn1.bias" in why


def test_other_safetensors_are_refused(tmp_path):
    data = safetensors.numpy.save({"a": np.zeros(2, np.float64), "b": np.zeros(2, np.uint8)})
    why = refusal(tmp_path, data)
    assert "a is F64" in why and "b is U8" in why
    assert "broken safetensors" in refusal(tmp_path, data[:-1])


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (struct.pack("<q", 3), "a file, neither"),
    ],
)
def test_what_is_no_state_dict_is_said(tmp_path, data, what):
    assert what in refusal(tmp_path, data)


def test_the_two_kinds_of_pickle_are_told_apart(tmp_path):
    path = tmp_path / "other"
    path.write_bytes(genuine()[: 10**6])
    with pytest.raises(IntegrityError, match="neither a state dict of torch nor safetensors"):
        read_state_dict(path)
    for is_legacy in (False, True):
        path.write_bytes(saved(few_arrays(), is_legacy=is_legacy))
        with pytest.raises(IntegrityError, match="a file of `torch.save`, and holds weights of an"):
            read_serl(path)


def test_large_file_is_refused_unread_and_none_is_bad_input(tmp_path):
    path = tmp_path / "large.pth"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(IntegrityError, match="1099511627776 bytes are too many"):
        read_state_dict(path)
    with pytest.raises(InputError, match="is no file"):
        read_state_dict(tmp_path / "absent.pth")


def test_module_versions_may_be_there_or_not(tmp_path):
    arrays = {"a": np.arange(4, dtype=np.float32)}
    tree = state_dict(arrays)
    del tree._metadata
    data = zipped(dumps(tree), {"0": arrays["a"].tobytes()})
    assert np.array_equal(read(tmp_path, data)["a"], arrays["a"])
