"""A packed dataset as a source: a folder of few files, read by index.

`pack.json` names the examples and their splits. Of all shards' records, number 2 i is the image
file of example i, and 2 i + 1 its mask, as they were. ArrayRecord is imported inside a function, as
most commands do without.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

from ..config import Labels, SplitName, TaskName
from ..errors import InputError, IntegrityError
from ..storage import digest_of, open_regular
from ..text import printable
from .classes import Classes
from .example import Example
from .kinds import CLASSES, Species
from .masks import MaskSummary

MANIFEST = "pack.json"
FORMAT = 1
_LONGEST = 200  # characters of what a library says
_MOST = 1 << 32  # bytes of a manifest; a million examples have some hundred million


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

    @functools.cached_property
    def digest(self) -> str:
        """Of all this."""
        return digest_of(dataclasses.asdict(self))

    def text(self) -> str:
        """As the file has it."""
        about = {"format": FORMAT, "sha256": self.digest}
        return json.dumps(dataclasses.asdict(self) | about) + "\n"


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

    def __init__(self, root: Path, manifest: Manifest):
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self.root, self.manifest = root, manifest
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
        """Raises IntegrityError where a shard is missing, of another size, or no file."""
        for shard in self.manifest.shards:
            path = self.root / shard.name
            try:
                status = path.stat()
            except OSError as error:
                raise _damaged(path, f"cannot be read ({error.strerror})") from error
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(path, "is no file")
            if status.st_size != shard.bytes:
                raise _damaged(path, f"has {status.st_size} bytes in place of {shard.bytes}")

    def source(self, split: SplitName, kind: Labels, limit: int | None) -> PackedSource:
        """A split, which may be empty, with labels of a kind."""
        manifest = self.manifest
        is_cut = limit is not None and limit < len(manifest.splits[split])
        return PackedSource(
            self,
            tuple(manifest.splits[split][:limit]),
            kind,
            manifest.classes if kind == "classes" else Classes(CLASSES[kind]),
            f"pack {manifest.digest} {split}, first {limit if is_cut else 'to last'}",
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
    """Whether a folder is a pack, and no folder of images where someone else has such a file."""
    return (root / MANIFEST).is_file() and not (root / "images").is_dir()


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
        with open_regular(path) as file:
            text = file.read(_MOST + 1)
        if len(text) > _MOST:
            raise ValueError(f"more than {_MOST / 1e9:.0f} GB")
        values: dict[str, Any] = json.loads(text)
        is_newer = values.pop("format") > FORMAT
        digest = values.pop("sha256")
        manifest = None if is_newer else _manifest(values)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise _damaged(path, f"is no whole manifest of a pack ({_short(error)})") from error
    if manifest is None:
        raise InputError(f"{path}: was written by a newer version; update this one")
    if digest != manifest.digest:
        raise _damaged(path, "is no whole manifest of a pack (its digest is another)")
    check_utf8(root)
    return Pack(root, manifest)


def check_utf8(root: Path) -> None:
    """Raises InputError where ArrayRecord cannot be told a path."""
    try:
        str(root).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{root}: ArrayRecord takes no path with a name that is no UTF-8; choose another"
        ) from error


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
    manifest = Manifest(**(values | parts))
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError where parts of it do not fit together, or lead out of its folder."""
    count = len(manifest.names)
    files = [shard.name for shard in manifest.shards]
    if any(name != Path(name).name or "\0" in name for name in files):
        raise ValueError("a shard is not in its folder")
    if any(shard.records < 1 for shard in manifest.shards) or not (
        sum(shard.records for shard in manifest.shards) == len(manifest.crc32) == 2 * count
    ):
        raise ValueError("records are missing")
    if len(manifest.species) != count or len(set(manifest.names)) != count:
        raise ValueError("names are missing, or there twice")
    if manifest.splits.keys() != set(get_args(SplitName)) or not all(
        isinstance(index, int) and 0 <= index < count
        for indices in manifest.splits.values()
        for index in indices
    ):
        raise ValueError("its splits are of other examples")
