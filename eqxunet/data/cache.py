"""Every example of a split decoded once, at training size, into files that are mapped to memory.

The key of a cache holds all that its pixels depend on: the source, the size, the code that draws
and decodes, and the versions of the libraries it uses. Masks stay trimaps, so one cache serves
every border policy.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from filelock import FileLock
from jaxtyping import UInt8

from ..errors import InputError, UnavailableError
from .decoding import decode, map_examples, resize_pair
from .masks import Labels, Mask, MaskSummary
from .source import BORDER, DATA_DIR, PET, Example, Progress, Source, SplitName, open_source

_CODE = ("cache.py", "decoding.py", "masks.py", "pets.py", "source.py", "synthetic.py")
_FILES = ("images.npy", "labels.npy")


class Used(NamedTuple):
    """An example as it goes into the cache."""

    name: str
    labels: Labels
    mask: Mask
    pair: tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]


@dataclass(frozen=True)
class Split:
    """A decoded split, mapped to memory; read-only.

    Arguments:

    - `images`: RGB.
    - `labels`: 1 = pet, 2 = background, 3 = border.
    - `names`: a name an example, in the source's order.
    - `identity`: a digest of the pixels and names.
    - `masks`: what the masks held, at their own size.
    - `notes`: what the user should know of all this.

    Raises: `InputError` where trimaps hold another value.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    labels: UInt8[np.ndarray, "n size size"]
    names: tuple[str, ...]
    identity: str = ""
    masks: MaskSummary | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.labels.size and not PET <= self.labels.min() <= self.labels.max() <= BORDER:
            raise InputError(
                f"trimaps of values {np.unique(self.labels).tolist()}: 1 is pet, 2 is background, "
                "3 is border; np.where(mask, 1, 2) makes one of a mask of 0 and 1"
            )

    def __len__(self) -> int:
        return len(self.names)


def load_split(
    data: str,
    split: SplitName,
    *,
    size: int,
    data_dir: Path = DATA_DIR,
    cache_dir: Path | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Split:
    """Loads one split at `size` x `size` pixels, from the cache where it was decoded before.

    Arguments:

    - `data`, `split`, `data_dir`, `limit`: as in `open_source`.
    - `cache_dir`: where caches are kept; by default the user's cache folder.
    - `progress`: called while decoding with how many of how many examples are done.

    Raises: `InputError` that lists every example that cannot be decoded, or where the masks
    cannot be meant; `UnavailableError` where the cache cannot be written.
    """
    if size < 1:
        raise InputError(f"the size must be at least 1 pixel, not {size}")
    source = open_source(data, split, data_dir=data_dir, limit=limit)
    arrays = decode_all(source, size=size, cache_dir=cache_dir, progress=progress)
    try:
        warnings = arrays.masks.check(split) if arrays.masks else []
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    notes = (*source.notes, *(f"{data}: {warning}" for warning in warnings))
    return dataclasses.replace(arrays, notes=notes)


def decode_all(
    source: Source, *, size: int, cache_dir: Path | None = None, progress: Progress | None = None
) -> Split:
    """Decodes a source into the cache, or finds it there; arguments as in `load_split`."""
    cache_dir = cache_dir or default_cache_dir()
    key = _key(source, size)
    folder = cache_dir / key
    if arrays := _read(folder):
        return arrays
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # A second process waits here, and then finds what the first has made.
        with FileLock(cache_dir / f"{key}.lock"):
            if arrays := _read(folder):
                return arrays
            partial = cache_dir / f"{key}.partial"
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            try:
                _write(source, size, partial, progress)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UnavailableError(
            f"{cache_dir}: the cache of decoded images cannot be written ({error}); "
            "free space there, or set XDG_CACHE_HOME to another folder"
        ) from error
    arrays = _read(folder)
    if arrays is None:
        raise UnavailableError(f"{folder}: does not hold what was written to it; check the disk")
    return arrays


def default_cache_dir() -> Path:
    """`eqxunet/data` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqxunet" / "data"


def is_of(identity: str, names: Sequence[str]) -> bool:
    """Whether the identity of `Split` is of examples with these names."""
    return identity.rpartition("-")[2] == f"{_crc32_of(names):08x}"


def _key(source: Source, size: int) -> str:
    digest = hashlib.sha256()
    for part in (source.identity, str(size), PIL.__version__, np.__version__):
        digest.update(part.encode() + b"\0")
    for name in _CODE:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:32]


def _write(source: Source, size: int, folder: Path, progress: Progress | None) -> None:
    shapes = [(len(source), size, size, 3), (len(source), size, size)]
    sums = [0, 0]
    names: list[str] = []
    masks: list[Mask] = []
    labels: Labels = "trimap"
    errors: list[str] = []
    # Plain writes, since a full disk kills a process that writes to mapped memory.
    with (folder / _FILES[0]).open("wb") as images, (folder / _FILES[1]).open("wb") as trimaps:
        files = (images, trimaps)
        for file, shape in zip(files, shapes, strict=True):
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)

        def use(example: Example) -> Used:
            image, trimap, mask = decode(example)
            return Used(example.name, example.labels, mask, resize_pair(image, trimap, size))

        decoded = map_examples(use, source)
        for done, result in enumerate(decoded, start=1):
            if isinstance(result, InputError):
                errors.append(str(result))
            elif not errors:
                names.append(result.name)
                masks.append(result.mask)
                labels = result.labels
                for i, (file, array) in enumerate(zip(files, result.pair, strict=True)):
                    content = array.tobytes()
                    file.write(content)
                    sums[i] = zlib.crc32(content, sums[i])
            if progress is not None:
                progress(done, len(source))
    if errors:
        more = [f"and {len(errors) - 10} more"] if len(errors) > 10 else []
        what = f"{len(errors)} of {len(source)} examples cannot be used:"
        raise InputError("\n".join([what, *errors[:10], *more]))
    index = {
        "names": names,
        "crc32": [*sums, _crc32_of(names)],
        "masks": dataclasses.asdict(MaskSummary.of(masks, labels)),
    }
    (folder / "index.json").write_text(json.dumps(index))


def _read(folder: Path) -> Split | None:
    """Maps a cache to memory; none where it is absent, incomplete or damaged."""
    try:
        index = json.loads((folder / "index.json").read_text())
        images, trimaps = (np.asarray(np.load(folder / name, mmap_mode="r")) for name in _FILES)
        names = index["names"]
        if [_crc32(images), _crc32(trimaps), _crc32_of(names)] != index["crc32"]:
            return None
        identity = "-".join(f"{value:08x}" for value in index["crc32"])
        masks = MaskSummary(**index["masks"])
        return Split(images, trimaps, tuple(names), identity, masks)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None  # whatever is in there, it is no cache


def _crc32(array: UInt8[np.ndarray, "n ..."]) -> int:
    value = 0
    for part in array:
        value = zlib.crc32(part, value)
    return value


def _crc32_of(names: Sequence[str]) -> int:
    return zlib.crc32("\0".join(names).encode())
