"""Every example of a split decoded once, at training size, into files that are mapped to memory.

The key of a cache holds all that its pixels depend on: the source, the size, the code that draws
and decodes, and the versions of the libraries it uses. Labels stay as they are, so one cache serves
every border policy.

A process that touches mapped memory whose file another one has cut off is killed. So files are
written once and then read-only, what differs in size from what it must be is not mapped, and small
caches are read instead.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from filelock import FileLock
from jaxtyping import UInt8

from ..config import DATA_DIR, DATASETS, Labels, SplitName
from ..errors import InputError, UnavailableError
from ..storage import cache_folder, digest_of, open_regular
from .complaints import FileError, unusable
from .decoding import decode, map_examples, resize_pair
from .example import Example, Progress, Source
from .mask_checks import check_masks
from .masks import Mask, MaskSummary
from .source import open_source
from .split import Split, crc32_of
from .streaming import stream_split

_CODE = (
    "cache.py",
    "decoding.py",
    "example.py",
    "kinds.py",
    "mask_files.py",
    "masks.py",
    "pets.py",
    "synthetic.py",
)
INDEX = "index.json"
_FILES = ("images.npy", "labels.npy")
_MAX_INDEX = 1 << 20, 1 << 12  # bytes, and for each example

_SMALL = 1 << 28
"""Bytes up to which a cache is read into memory of its own instead of being mapped."""


class Used(NamedTuple):
    """An example as it goes into the cache."""

    name: str
    mask: Mask
    pair: tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]


def load_split(
    data: str | os.PathLike[str],
    split: SplitName,
    *,
    size: int,
    labels: Labels | None = None,
    data_dir: str | os.PathLike[str] = DATA_DIR,
    cache: bool = True,
    cache_dir: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Split:
    """Loads one split at `size` x `size` pixels, from the cache where it was decoded before.

    Arguments:

    - `data`, `split`, `labels`, `data_dir`, `limit`: as in `open_source`.
    - `cache`: keep decoded pixels; without, images are decoded each time they are read.
    - `cache_dir`: where caches are kept; by default the user's cache folder.
    - `progress`: called while decoding with how many of how many examples are done.

    Raises InputError that lists every example that cannot be decoded, or where the masks
    cannot be meant; UnavailableError where the cache cannot be written; IntegrityError where packed
    data is damaged.
    """
    if size < 1:
        raise InputError(f"the size must be at least 1 pixel, not {size}")
    data = os.fspath(data)
    source = open_source(data, split, labels=labels, data_dir=Path(data_dir), limit=limit)
    if cache:
        named = data if data in DATASETS else Path(data).expanduser().resolve()
        origin = f"{named} {split}"
        arrays = decode_all(
            source, size=size, origin=origin, cache_dir=cache_dir, progress=progress
        )
    else:
        arrays = stream_split(source, size=size, progress=progress)
    try:
        warnings = check_masks(arrays.masks, split, arrays.classes) if arrays.masks else []
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    notes = (*source.notes, *(f"{data}: {warning}" for warning in warnings))
    return dataclasses.replace(arrays, notes=notes)


def decode_all(
    source: Source,
    *,
    size: int,
    origin: str = "",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Split:
    """Decodes a source into the cache, or finds it there.

    Arguments:

    - `origin`: what the source is called in `eqxunet.data.entries`.
    - `size`, `cache_dir`, `progress`: as in `load_split`.
    """
    cache_dir = cache_dir or cache_folder("data")
    key = _key(source, size)
    folder = cache_dir / key
    if arrays := _read(folder, source, size):
        return arrays
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # A second process waits here, and then finds what the first has made.
        with FileLock(cache_dir / f"{key}.lock"):
            if arrays := _read(folder, source, size):
                return arrays
            partial = cache_dir / f"{key}.partial"
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            _check_room(cache_dir, source, size)
            partial.mkdir()
            try:
                _write(source, size, origin, partial, progress)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UnavailableError(
            f"{cache_dir}: the cache of decoded images cannot be written ({error}); "
            "free space there, or set XDG_CACHE_HOME to another folder"
        ) from error
    arrays = _read(folder, source, size)
    if arrays is None:
        raise UnavailableError(f"{folder}: does not hold what was written to it; check the disk")
    return arrays


def code_digest() -> str:
    """A digest of the code that makes pixels, and of the versions of the libraries it uses."""
    digest = hashlib.sha256(f"{PIL.__version__}\0{np.__version__}\0".encode())
    for name in _CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:32]


def _key(source: Source, size: int) -> str:
    digest = hashlib.sha256()
    for part in (source.identity, source.kind, str(size), code_digest()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _write(source: Source, size: int, origin: str, folder: Path, progress: Progress | None) -> None:
    sums = [0, 0]
    names: list[str] = []
    masks: dict[str, Mask] = {}
    errors: list[FileError] = []
    # Plain writes, since a full disk kills a process that writes to mapped memory.
    with (folder / _FILES[0]).open("wb") as images, (folder / _FILES[1]).open("wb") as labels:
        files = (images, labels)
        for file, shape in zip(files, _shapes(len(source), size), strict=True):
            file.write(_header(shape))

        def use(example: Example) -> Used:
            image, labels, mask = decode(example)
            return Used(example.name, mask, resize_pair(image, labels, size))

        decoded = map_examples(use, source)
        for done, result in enumerate(decoded, start=1):
            if isinstance(result, FileError):
                errors.append(result)
            elif not errors:
                names.append(result.name)
                masks[result.name] = result.mask
                for i, (file, array) in enumerate(zip(files, result.pair, strict=True)):
                    content = array.tobytes()
                    file.write(content)
                    sums[i] = zlib.crc32(content, sums[i])
            if progress is not None:
                progress(done, len(source))
    if errors:
        raise unusable(errors, len(source))
    index = {
        "origin": origin,
        "kind": source.kind,
        "size": size,
        "code": code_digest(),
        "names": names,
        "crc32": [*sums, crc32_of(names)],
        "masks": dataclasses.asdict(MaskSummary.of(masks, source.kind)),
    }
    (folder / INDEX).write_text(json.dumps(index | {"sha256": digest_of(index)}))
    for path in folder.iterdir():
        path.chmod(0o444)


def _check_room(cache_dir: Path, source: Source, size: int) -> None:
    needed = sum(map(math.prod, _shapes(len(source), size)))
    if (free := shutil.disk_usage(cache_dir).free) < needed:
        raise UnavailableError(
            f"{cache_dir}: the decoded images take {needed / 1e6:,.0f} MB, and "
            f"{free / 1e6:,.0f} MB are free there; free space, set "
            "XDG_CACHE_HOME to another folder, or add --no-cache"
        )


def _read(folder: Path, source: Source, size: int) -> Split | None:
    """Loads a source's cache; none where it is absent, incomplete or damaged."""
    try:
        index = read_index(folder, len(source))
        names = index["names"]
        if index["sha256"] != digest_of(index) or len(names) != len(source):
            return None
        shapes = _shapes(len(source), size)
        is_small = sum(map(math.prod, shapes)) <= _SMALL
        images, labels = (
            _load(folder / name, shape, is_small)
            for name, shape in zip(_FILES, shapes, strict=True)
        )
        if [_crc32(images), _crc32(labels), crc32_of(names)] != index["crc32"]:
            return None
        identity = "-".join(f"{value:08x}" for value in index["crc32"])
        masks = MaskSummary(**index["masks"])
        classes = source.classes.names or masks.indices()
        split = Split(images, labels, tuple(names), source.kind, classes, identity, masks)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # whatever is in there, it is no cache
    # For `entries`. A folder that belongs to others can be read all the same.
    with contextlib.suppress(OSError):
        os.utime(folder / INDEX)
    return split


def read_index(folder: Path, count: int = 1 << 16) -> dict[str, Any]:
    """What a cache says of itself, which may be anything.

    Arguments:

    - `count`: how many examples it has at most.

    Raises OSError, ValueError, TypeError or RecursionError where that cannot be read.
    """
    base, each = _MAX_INDEX
    with open_regular(folder / INDEX) as file:
        return dict(json.loads(file.read(base + each * count)))


def _load(path: Path, shape: tuple[int, ...], is_small: bool) -> UInt8[np.ndarray, "n ..."]:
    """Reads or maps an array, whose header is known and so never parsed."""
    header = _header(shape)
    with open_regular(path) as file:
        is_whole = os.fstat(file.fileno()).st_size == len(header) + math.prod(shape)
        if not is_whole or file.read(len(header)) != header:
            raise ValueError("no such array")
        if not is_small:
            return np.asarray(np.memmap(file, np.uint8, "r", len(header), shape))
        array = np.fromfile(file, np.uint8, math.prod(shape)).reshape(shape)
    array.flags.writeable = False
    return array


def _shapes(count: int, size: int) -> list[tuple[int, ...]]:
    return [(count, size, size, 3), (count, size, size)]


def _header(shape: tuple[int, ...]) -> bytes:
    """What NumPy writes before the numbers of an array."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _crc32(array: UInt8[np.ndarray, "n ..."]) -> int:
    value = 0
    for part in array:
        value = zlib.crc32(part, value)
    return value
