"""Reads a torch checkpoint of a state dict without torch, and without executing anything.

`torch.save` writes a pickle that describes tensors, and beside it the numbers: since PyTorch 1.6 as
members of a zip file, before that (and still on request) as raw storages after several pickles. A
file can do no more than be refused; memory is that of the file, and of `Grammar.max_opcodes`.
"""

import io
import struct
import zipfile
import zlib
from typing import Any

from ..errors import IntegrityError
from .pickle_machine import Machine
from .pickle_symbols import Refused, show
from .torch_symbols import TENSORS, Storage, Tensor, tensors_of

# Pickles of a magic number and of the format's version, as every such file has begun.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
_ZIP = b"PK\3\4"
MAX_MEMBERS = 5_000
# What `zipfile` raises of files that are broken, encrypted, or packed in ways it does not know.
_NO_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,
)


def is_torch(data: bytes) -> bool:
    """Says whether the bytes start like a file of `torch.save`."""
    return data.startswith((_LEGACY, _ZIP))


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Returns the tensors of a state dict by name, such as "layer1.0.conv1.weight".

    Raises IntegrityError for anything else than a whole file of a dict of tensors.
    """
    try:
        return _read_zip(data) if data.startswith(_ZIP) else _read_legacy(data)
    except Refused as error:
        raise IntegrityError(f"it {error}") from None


def _read_legacy(data: bytes) -> dict[str, Tensor]:
    system, at = _unpickle(data, len(_LEGACY))
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("was written on a machine of another byte order")
    root, at = _unpickle(data, at)
    tensors = tensors_of(root)
    keys, at = _unpickle(data, at)
    storages = _storages(tensors)
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise Refused("lists other storages than its tensors are of")
    for key in keys:
        same = storages[key]
        (size,) = struct.unpack("<q", data[at : at + 8].ljust(8, b"\xff"))
        start, at = at + 8, at + 8 + same[0].nbytes
        if at > len(data):
            raise Refused(f"ends inside the storage {show(key)}: the file is truncated")
        if size != same[0].size:
            raise Refused(f"has {size} numbers in the storage {show(key)}, not {same[0].size}")
        _fill(same, memoryview(data)[start:at])
    if at != len(data):
        raise Refused(f"is followed by {len(data) - at} bytes that belong to nothing")
    return tensors


def _unpickle(data: bytes, at: int) -> tuple[Any, int]:
    """Returns the symbols of the pickle that starts at a byte, and where it ends."""
    if at == len(data):
        raise Refused("ends before its numbers: the file is truncated")
    machine = Machine(memoryview(data)[at:], TENSORS)
    return machine.run(is_all=False), at + machine.at


def _read_zip(data: bytes) -> dict[str, Tensor]:
    # Before `zipfile` makes an object of each.
    if data.count(b"PK\1\2") > MAX_MEMBERS:
        raise Refused(f"is a zip file of over {MAX_MEMBERS} members")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_archive(archive, len(data))
    except _NO_ZIP as error:
        raise Refused(f"is no whole zip file ({show(str(error))}): perhaps truncated") from None


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    members = {member.filename: member for member in archive.infolist()}
    # Else some of them overlap, or unpack to more than the file.
    if sum(member.file_size for member in members.values()) > size:
        raise Refused(f"is a zip file of {size} bytes whose members have more")
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused("is a zip file without a data.pkl, and so not of `torch.save`")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise Refused("was written in another byte order")
    tensors = tensors_of(Machine(archive.read(pickles[0]), TENSORS).run())
    for key, same in _storages(tensors).items():
        name = f"{folder}data/{key}"
        if name not in members:
            raise Refused(f"lacks the member {show(name)}")
        raw = archive.read(name)
        if len(raw) != same[0].nbytes:
            raise Refused(f"has {len(raw)} bytes in the storage {show(key)}, not {same[0].nbytes}")
        _fill(same, raw)
    return tensors


def _storages(tensors: dict[str, Tensor]) -> dict[str, list[Storage]]:
    """Storages by key; tensors that share one each have a symbol of it."""
    storages: dict[str, list[Storage]] = {}
    for tensor in tensors.values():
        same = storages.setdefault(tensor.storage.key, [])
        same.append(tensor.storage)
        if (same[0].dtype, same[0].size) != (tensor.dtype, tensor.storage.size):
            raise Refused(f"describes the storage {show(tensor.storage.key)} in two ways")
    return storages


def _fill(storages: list[Storage], raw: bytes | memoryview) -> None:
    for storage in storages:
        storage.raw = raw
