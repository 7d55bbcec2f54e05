"""Writes a dataset as a pack, which is whole or not there."""

import dataclasses
import io
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import UInt8
from PIL import Image

from ..config import DATA_DIR, Labels, SplitName, TaskName
from ..errors import BusyError, InputError, UnavailableError
from ..storage import open_regular, replace_text, sync_folder
from .complaints import FileError, unusable
from .decoding import decode, decode_mask, map_examples
from .example import Example, Progress, Source, names_of
from .kinds import Species
from .masks import Mask, MaskSummary
from .pack import MANIFEST, Manifest, Shard, check_utf8
from .source import label_kinds, open_splits

SHARD_BYTES = 1 << 30
"""After which another shard begins: each one is an open file while it is read."""
_LOCK = ".lock"


class _Packed(NamedTuple):
    """An example as it goes into a pack; `masks` by the kinds of labels that its mask has."""

    name: str
    species: Species | None
    records: tuple[bytes, bytes]
    masks: dict[Labels, Mask]


def pack(
    data: str | os.PathLike[str],
    out: Path,
    *,
    data_dir: Path = DATA_DIR,
    progress: Progress | None = None,
) -> Manifest:
    """Decodes every example once, and packs its files as they are; pixels that were drawn as PNG.

    Arguments:

    - `data`, `data_dir`: as in `open_source`.
    - `out`: the folder to write, which appears when all of it is on the disk.
    - `progress`: called with how many of how many examples are done.

    Raises InputError where `out` exists or that lists every example that cannot be decoded,
    BusyError where another process is writing it, UnavailableError where it cannot be written.
    """
    out = Path(os.path.abspath(out))
    _check_out(out)
    data = os.fspath(data)
    kinds = label_kinds(data)
    splits = _open_all(data, kinds, data_dir)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with FileLock(partial / _LOCK, timeout=0):
            try:
                _check_out(out)
                for leftover in partial.iterdir():  # of a process that was killed
                    if leftover.name != _LOCK:
                        leftover.unlink()
                manifest = _write(data, splits, kinds, partial, progress)
                partial.rename(out)
                (out / _LOCK).unlink()
                sync_folder(out.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Timeout as error:
        raise BusyError(f"{out}: another process is writing it; wait for it") from error
    except OSError as error:
        raise UnavailableError(
            f"{out}: cannot be written ({error.strerror or error}); free space there, or name "
            "another folder"
        ) from error
    return manifest


def _check_out(out: Path) -> None:
    if os.path.lexists(out):
        raise InputError(f"{out}: exists; name another folder, or remove it first")
    check_utf8(out)


def _open_all(
    data: str, kinds: dict[TaskName, tuple[Labels, ...]], data_dir: Path
) -> Mapping[SplitName, Source]:
    """All splits, with all that is known of the labels."""
    if "classes" in kinds["semantic"]:
        return open_splits(data, labels="classes", data_dir=data_dir)
    try:
        return open_splits(data, labels="species", data_dir=data_dir)
    except InputError:  # of a folder that knows no species, or is not in order whatever the labels
        return open_splits(data, labels="trimap", data_dir=data_dir)


def _write(
    data: str,
    splits: Mapping[SplitName, Source],
    kinds: dict[TaskName, tuple[Labels, ...]],
    folder: Path,
    progress: Progress | None,
) -> Manifest:
    everything = splits["all"]
    wanted: list[Labels] = list(dict.fromkeys(kind for task in kinds.values() for kind in task))
    first, *others = wanted
    shards = _Shards(folder)
    names: list[str] = []
    species: list[Species | None] = []
    crc32: list[int] = []
    masks: dict[Labels, dict[str, Mask]] = {kind: {} for kind in wanted}
    errors: list[FileError] = []

    def use(example: Example) -> _Packed:
        found: dict[Labels, Mask] = {first: decode(dataclasses.replace(example, kind=first)).mask}
        found |= _masks(example, others)
        files = example.files or (example.name, f"mask of {example.name}")
        image, mask = (
            _encoded(part, file)
            for part, file in zip((example.image, example.mask), files, strict=True)
        )
        return _Packed(example.name, example.species, (image, mask), found)

    for done, result in enumerate(map_examples(use, everything), start=1):
        if isinstance(result, FileError):
            errors.append(result)
        elif not errors:
            names.append(result.name)
            species.append(result.species)
            for kind, mask in result.masks.items():
                masks[kind][result.name] = mask
            for record in result.records:
                crc32.append(zlib.crc32(record))
                shards.write(record)
        if progress is not None:
            progress(done, len(everything))
    if errors:
        raise unusable(errors, len(everything))
    index = {name: i for i, name in enumerate(names)}
    members: dict[SplitName, list[int]] = {
        split: [index[name] for name in names_of(source)] for split, source in splits.items()
    }
    summaries: dict[Labels, dict[SplitName, MaskSummary]] = {
        kind: {
            split: MaskSummary.of({names[i]: of_kind[names[i]] for i in chosen}, kind)
            for split, chosen in members.items()
        }
        for kind, of_kind in masks.items()
        if len(of_kind) == len(names)
    }
    manifest = Manifest(
        data,
        kinds,
        names,
        species,
        crc32,
        members,
        summaries,
        everything.classes,
        everything.notes,
        shards.close(),
    )
    replace_text(folder / MANIFEST, manifest.text())
    return manifest


def _masks(example: Example, kinds: Sequence[Labels]) -> dict[Labels, Mask]:
    """What a mask holds as labels of those kinds that it has."""
    found: dict[Labels, Mask] = {}
    for kind in kinds:
        try:
            found[kind] = decode_mask(dataclasses.replace(example, kind=kind))
        except FileError:
            continue  # which is said where such labels are asked for
    return found


def _encoded(part: Path | bytes | UInt8[np.ndarray, "..."], file: str) -> bytes:
    """A file's bytes; pixels as PNG, from which they come back as they are."""
    match part:
        case bytes():
            return part
        case Path():
            try:
                with open_regular(part) as opened:
                    return opened.read()
            except OSError as error:
                raise FileError(file, f"cannot be read ({error.strerror or error})") from error
    encoded = io.BytesIO()
    Image.fromarray(part).save(encoded, "PNG")
    return encoded.getvalue()


class _Shards:
    """Writes records into one file after the other."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._shards: list[Shard] = []
        self._writer: Any = None
        self._records = self._bytes = 0

    def write(self, record: bytes) -> None:
        """Appends a record."""
        from array_record.python.array_record_module import ArrayRecordWriter

        if self._bytes >= SHARD_BYTES:
            self._end()
        if self._writer is None:
            # A record a chunk, as reading at random wants it; images are compressed already.
            self._writer = ArrayRecordWriter(str(self._path), "group_size:1,uncompressed")
        with _as_os_error():
            self._writer.write(record)
        self._records += 1
        self._bytes += len(record)

    def close(self) -> list[Shard]:
        """Puts everything on the disk."""
        if self._writer is not None:
            self._end()
        return self._shards

    @property
    def _path(self) -> Path:
        return self._folder / f"shard-{len(self._shards):05}.array_record"

    def _end(self) -> None:
        with _as_os_error():
            self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        self._shards.append(Shard(self._path.name, self._records, size))
        self._writer, self._records, self._bytes = None, 0, 0


@contextmanager
def _as_os_error() -> Iterator[None]:
    """ArrayRecord reports a full disk by a RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).partition(";")[0]) from error
