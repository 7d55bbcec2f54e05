"""State dicts of PyTorch's networks without PyTorch, for tests: names, exact values, and files.

Files are written by `pickle` itself, from stand-ins for what `torch.save` names.
"""

import io
import itertools
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import parity
from serl_files import Call, Named, Writer

SAMPLES = 1024
"""Entries of each map that the stored references keep."""

SIZES = ((64, 64), (97, 130))
"""Heights and widths of the images of the stored references."""

_LEGACY = (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2))
SYSTEM = {
    "protocol_version": 1001,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
REBUILD = Named("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = Named("collections", "OrderedDict")
STORAGES = {
    "<f4": Named("torch", "FloatStorage"),
    "<f2": Named("torch", "HalfStorage"),
    "<i8": Named("torch", "LongStorage"),
}


def torch_variable(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight or statistic of the scale that its kind has in a trained network, OIHW."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    noise = parity.values(name, shape)
    if len(shape) > 1:
        return noise * np.sqrt(1 / np.prod(shape[1:]), dtype=np.float32)
    if re.search(r"_bn[01]\.bias", name):
        return noise * 3 + 3  # so that EfficientNet-Lite0's ReLU6 cuts off at both ends
    return noise * np.float32(0.1) + np.float32(name.endswith(("weight", "running_var")))


def image(height: int, width: int) -> np.ndarray:
    """One image in [0, 1]."""
    return parity.images(1, height, width)[0]


def sample(array: np.ndarray) -> np.ndarray:
    """Evenly spaced entries, the first and the last among them."""
    flat = np.asarray(array).reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(flat.size, SAMPLES)).astype(int)]


class Outside:
    """Stands for a storage: pickled as the persistent id by which it is found."""

    def __init__(self, *where: Any):
        self.where = where


class TorchWriter(Writer):
    """`torch.save`'s pickler."""

    def persistent_id(self, obj: object) -> Any:
        return obj.where if isinstance(obj, Outside) else None


def dumps(tree: object, protocol: int = 2) -> bytes:
    """Returns the pickle of a tree of stand-ins."""
    file = io.BytesIO()
    TorchWriter(file, protocol).dump(tree)
    return file.getvalue()


def storage(key: str, size: Any, code: str = "<f4", *view: None) -> Outside:
    """Stands for a storage of so many numbers; the format before zip has a None at the end."""
    return Outside("storage", STORAGES.get(code, code), key, "cpu", size, *view)


def tensor(storage: Any, shape: Any, strides: Any, offset: Any = 0) -> Call:
    """Stands for a tensor."""
    return Call(REBUILD, (storage, offset, shape, strides, False, Call(ORDERED_DICT, ())))


def strides_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """In numbers, of C order."""
    return tuple(int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape)))


def state_dict(arrays: Mapping[str, np.ndarray], *view: None) -> OrderedDict[str, Call]:
    """Stands for a module's `state_dict()`: with the versions of its modules as an attribute."""
    tree = OrderedDict()
    for key, (name, array) in enumerate(arrays.items()):
        place = storage(str(key), array.size, array.dtype.str, *view)
        tree[name] = tensor(place, array.shape, strides_of(array.shape))
    tree._metadata = OrderedDict({"": {"version": 1}, "layer1.0": {"version": 2}})
    return tree


def zipped(pickled: bytes, raws: Mapping[str, bytes], **others: bytes) -> bytes:
    """Returns a file in today's format."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, content in ({"byteorder": b"little", "version": b"3\n"} | others).items():
            archive.writestr(f"archive/{name}", content)
        for key, raw in raws.items():
            archive.writestr(f"archive/data/{key}", raw)
    return file.getvalue()


def legacy(pickled: bytes, raws: Mapping[str, tuple[int, bytes]], *, system: Any = SYSTEM) -> bytes:
    """Returns a file in the format before PyTorch 1.6; `raws` with the number of their numbers."""
    pickles = [*_LEGACY, pickle.dumps(system, 2), pickled, pickle.dumps(list(raws), 2)]
    stored = ([struct.pack("<q", size), raw] for size, raw in raws.values())
    return b"".join([*pickles, *itertools.chain.from_iterable(stored)])


def saved(arrays: Mapping[str, np.ndarray], *, is_legacy: bool = False) -> bytes:
    """Returns the file of a state dict, in either format."""
    raws = {str(key): array.tobytes() for key, array in enumerate(arrays.values())}
    if not is_legacy:
        return zipped(dumps(state_dict(arrays)), raws)
    sizes = [array.size for array in arrays.values()]
    both = {key: (size, raw) for (key, raw), size in zip(raws.items(), sizes, strict=True)}
    return legacy(dumps(state_dict(arrays, None)), both)


def few_arrays() -> dict[str, np.ndarray]:
    """A small state dict with one of each kind."""
    return {
        "conv1.weight": parity.values("conv1.weight", (4, 3, 2, 2)),
        "bn1.bias": parity.values("bn1.bias", (4,)),
        "bn1.running_var": parity.values("bn1.running_var", (4,)).astype(np.float16),
        "bn1.num_batches_tracked": np.array(7),
    }


def unpickle(data: bytes) -> dict[str, np.ndarray]:
    """Returns what `pickle` makes of a file that names nothing beyond the five allowed globals."""
    known: dict[tuple[str, str], Any] = {("collections", "OrderedDict"): OrderedDict}
    known |= {("torch", kind.name): code for code, kind in STORAGES.items()}

    class Loaded:
        def __init__(self, place, offset, shape, strides, *_):
            self.place, self.offset, self.shape, self.strides = place, offset, shape, strides

        def array(self, raw: bytes) -> np.ndarray:
            flat = np.frombuffer(raw, self.place[1])
            at = self.offset + sum(
                np.ix_(*(np.arange(n) * s for n, s in zip(self.shape, self.strides, strict=True))),
                np.zeros((), int),
            )
            array = flat[at]
            return np.asarray(array, np.int64 if array.dtype.kind == "i" else np.float32)

    known["torch._utils", "_rebuild_tensor_v2"] = Loaded

    class Reference(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            return known[module, name]

        def persistent_load(self, where: Any) -> Any:
            return where

    file = io.BytesIO(data)
    if data.startswith(b"PK"):
        with zipfile.ZipFile(file) as archive:
            [name] = [n for n in archive.namelist() if n.endswith("/data.pkl")]
            tree = Reference(io.BytesIO(archive.read(name))).load()
            folder = name.removesuffix("data.pkl") + "data/"
            return {n: t.array(archive.read(folder + t.place[2])) for n, t in tree.items()}
    for _ in range(3):
        Reference(file).load()
    tree, keys = Reference(file).load(), Reference(file).load()
    sizes = {t.place[2]: np.dtype(t.place[1]).itemsize for t in tree.values()}
    raws = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        raws[key] = file.read(size * sizes[key])
    return {n: t.array(raws[t.place[2]]) for n, t in tree.items()}
