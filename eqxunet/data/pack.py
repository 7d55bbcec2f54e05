"""A packed dataset as a source: a folder of few files, read by index.

`manifest.json` names the examples and their splits. Of all shards' records, number 2 i is the image
file of example i, and 2 i + 1 its mask, as they were. ArrayRecord is imported inside a function, as
most commands do without.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..config import Labels, SplitName, TaskName
from ..errors import InputError, IntegrityError
from ..storage import digest_of, open_regular
from ..text import printable
from .classes import Classes
from .example import Example
from .kinds import CLASSES, Species
from .masks import MaskSummary

MANIFEST = "manifest.json"
FORMAT = 1
_LONGEST = 200  # characters of what a library says


class Shard(NamedTuple):
    """A file of records: its name, how many it holds, and its size in bytes."""

    name: str
    records: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a pack holds.

    Arguments:

    - `origin`: what was packed.
    - `kinds`: the labels that each task may take, its default first.
    - `names`, `species`: of the examples; `crc32`: of their records, two each.
    - `splits`: by split, its examples by index, in order.
    - `masks`: by kind of labels and split, what the masks hold; not of a kind that some are not of.
    - `classes`: of labels of kind `"classes"`.
    - `notes`: what the user should know of all this.
    """

    origin: str
    kinds: dict[TaskName, tuple[Labels, ...]]
    names: list[str]
    species: list[Species | None]
    crc32: list[int]
    splits: dict[SplitName, list[int]]
    masks: dict[Labels, dict[SplitName, MaskSummary]]
    classes: Classes
    notes: tuple[str, ...]
    shards: list[Shard]

    def text(self) -> str:
        """As the file has it."""
        values = dataclasses.asdict(self) | {"format": FORMAT}
        return json.dumps(values | {"sha256": digest_of(values)}) + "\n"


@dataclass(frozen=True)
class PackedSource:
    """One split of a pack; `open_pack` opens it.

    Arguments:

    - `pack`: all of it.
    - `indices`: which of its examples these are.
    - `masks`: what their masks hold, where the pack says so.
    """

    pack: "Pack"
    indices: tuple[int, ...]
    kind: Labels
    classes: Classes
    identity: str
    masks: MaskSummary | None
    notes: tuple[str, ...]

    def name(self, index: int, /) -> str:
        return self.pack.manifest.names[self.indices[index]]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Example:
        i = self.indices[index]
        manifest = self.pack.manifest
        image, mask = self.pack.record(2 * i), self.pack.record(2 * i + 1)
        return Example(image, mask, manifest.names[i], self.kind, manifest.species[i], self.classes)


class Pack:
    """An opened pack, whose records several threads may read."""

    def __init__(self, root: Path, manifest: Manifest, digest: str):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.root, self.manifest, self.digest = root, manifest, digest
        self._ends = list(itertools.accumulate(shard.records for shard in manifest.shards))
        self._records = ArrayRecordDataSource(
            [
                _Part(str(root / shard.name), 0, shard.records, shard.records)
                for shard in manifest.shards
            ]
        )

    def record(self, index: int) -> bytes:
        """A record, as it was packed.

        Raises IntegrityError where it cannot be read as such.
        """
        cause = "its bytes are others"
        try:
            record = self._records[index]
        except (RuntimeError, IndexError, ValueError) as error:
            record, cause = None, _short(error)
        if record is None or zlib.crc32(record) != self.manifest.crc32[index]:
            shard = self.manifest.shards[bisect.bisect_right(self._ends, index)]
            raise _damaged(
                self.root / shard.name, f"is damaged at {self.manifest.names[index // 2]} ({cause})"
            )
        return record

    def check_shards(self) -> None:
        """Raises IntegrityError where a shard is missing or of another size."""
        for shard in self.manifest.shards:
            path = self.root / shard.name
            try:
                size = path.stat().st_size
            except OSError as error:
                raise _damaged(path, f"cannot be read ({error.strerror})") from error
            if size != shard.bytes:
                raise _damaged(path, f"has {size} bytes in place of {shard.bytes}")

    def source(self, split: SplitName, kind: Labels, limit: int | None) -> PackedSource:
        """A split, which may be empty, with labels of a kind."""
        manifest = self.manifest
        is_cut = limit is not None and limit < len(manifest.splits[split])
        return PackedSource(
            self,
            tuple(manifest.splits[split][:limit]),
            kind,
            manifest.classes if kind == "classes" else Classes(CLASSES[kind]),
            f"pack {self.digest} {split}, first {limit if is_cut else 'to last'}",
            None if is_cut else manifest.masks.get(kind, {}).get(split),
            manifest.notes,
        )


@dataclass
class _Part:
    """A whole shard, as ArrayRecord is told of it, so that it need not be opened to count."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


def is_pack(root: Path) -> bool:
    """Whether a folder is a pack."""
    return (root / MANIFEST).is_file()


def open_pack(root: Path) -> Pack:
    """Opens a pack, whose manifest and shards must be all there.

    Raises IntegrityError where they are not, InputError where a newer version wrote it.
    """
    root = root.resolve()
    status = (root / MANIFEST).stat()
    pack = _opened(root, status.st_ino, status.st_mtime_ns)
    pack.check_shards()
    return pack


@functools.lru_cache(maxsize=2)  # a manifest of a million names takes seconds to read
def _opened(root: Path, *_: int) -> Pack:
    path = root / MANIFEST
    try:
        str(root).encode()
        with open_regular(path) as file:
            values: dict[str, Any] = json.loads(file.read())
        if values["format"] > FORMAT:
            raise InputError(f"{path}: was written by a newer version; update this one")
        digest = values.pop("sha256")
        if digest != digest_of(values):
            raise ValueError("its digest is another")
        del values["format"]
        return Pack(root, _manifest(values), digest)
    except UnicodeEncodeError as error:
        raise InputError(
            f"{root}: ArrayRecord reads no path that is no UTF-8; rename it"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, f"is no whole manifest of a pack ({_short(error)})") from error


def _damaged(path: Path, complaint: str) -> IntegrityError:
    return IntegrityError(
        printable(f"{path}: {complaint}; copy it again from where it came, or pack the data anew")
    )


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:_LONGEST]


def _manifest(values: dict[str, Any]) -> Manifest:
    classes = values["classes"]
    parts: dict[str, Any] = {
        "kinds": {task: tuple(kinds) for task, kinds in values["kinds"].items()},
        "classes": Classes(tuple(classes["names"]), tuple(classes["colours"]), classes["file"]),
        "masks": {
            kind: {split: MaskSummary(**summary) for split, summary in splits.items()}
            for kind, splits in values["masks"].items()
        },
        "notes": tuple(values["notes"]),
        "shards": [Shard(*shard) for shard in values["shards"]],
    }
    return Manifest(**(values | parts))
