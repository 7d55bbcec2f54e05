"""The Oxford-IIIT Pet dataset: fetched and prepared once, then read as encoded images.

O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar, "Cats and Dogs", CVPR 2012; CC BY-SA 4.0.
TFDS, whose import takes half a second, is imported inside functions.
"""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ..config import Labels, SplitName
from ..errors import BusyError, InputError, IntegrityError, UnavailableError
from .classes import Classes
from .example import Example, Progress
from .kinds import CLASSES, Species

T = TypeVar("T")

PATIENCE = 5.0  # seconds until a server that does not answer counts as out of reach


@dataclass(frozen=True)
class Archive:
    """An archive as published: its address, its size in bytes and its sha256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


class OxfordPets:
    """One split, sorted by stem; prepares the dataset first where that has not been done.

    `"test"` is the official test list. `"val"` is every tenth of the sorted official trainval
    list, from the first on, and `"train"` the others.

    Arguments:

    - `data_dir`: where TFDS keeps its datasets.
    - `kind`: what labels are: `"trimap"` or `"species"`.
    - `limit`: the first so many examples only.

    Raises what `prepare` raises.
    """

    notes = ()

    def __init__(
        self,
        split: SplitName,
        data_dir: Path,
        *,
        kind: Labels = "trimap",
        limit: int | None = None,
    ):
        import tensorflow_datasets as tfds

        prepare(data_dir)
        builder = _reader(data_dir)
        raw = tfds.decode.SkipDecoding()
        officials = {"test": ["test"], "all": ["train", "test"]}.get(split, ["train"])
        self._split: SplitName = split
        self._limit = limit
        self.kind: Labels = kind
        self.classes = Classes(CLASSES[kind])
        decoders = {"image": raw, "segmentation_mask": raw}
        self._records = [builder.as_data_source(name, decoders=decoders) for name in officials]
        size = sum(int(builder.info.splits[official].num_bytes) for official in officials)
        self.identity = f"{builder.info.full_name} {split} {len(self)} of {size} bytes"

    @cached_property
    def _chosen(self) -> Sequence[tuple[str, int, int]]:
        """Stem, official split and record of every example of the split."""
        ordered = sorted(
            (record["file_name"].decode().removesuffix(".jpg"), official, number)
            for official, records in enumerate(self._records)
            for number, record in enumerate(records)
        )
        return _cut(ordered, self._split, self._limit)

    def name(self, index: int, /) -> str:
        return self._chosen[index][0]

    def __len__(self) -> int:
        # A range stands in for the stems, which take a pass over the records to read.
        return len(_cut(range(sum(map(len, self._records))), self._split, self._limit))

    def __getitem__(self, index: int, /) -> Example:
        stem, official, record = self._chosen[index]
        features = self._records[official][record]
        species: Species = "dog" if features["species"] else "cat"
        return Example(features["image"], features["segmentation_mask"], stem, self.kind, species)


def prepare(
    data_dir: Path, *, archives: Path | None = None, progress: Progress | None = None
) -> None:
    """Fetches the dataset and writes it as TFDS's array_record files; does nothing where they are.

    Arguments:

    - `data_dir`: where TFDS keeps its datasets.
    - `archives`: a folder with `images.tar.gz` and `annotations.tar.gz`, fetched by hand.
    - `progress`: called with the bytes done and all bytes there are to download and to read.

    Raises UnavailableError where the server, the disk or the folder is not available;
    IntegrityError where an archive is not the published one; InputError where `archives`
    lacks one, or `data_dir` holds the dataset in a form that needs TensorFlow; BusyError where
    another process is preparing it.
    """
    if _reader(data_dir) is not None:
        return
    published = _published()
    if archives is not None:
        for archive in published:
            _verify(archives / archive.name, archive)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(data_dir / "oxford_iiit_pet.lock", timeout=0):
            if _reader(data_dir) is None:
                _fetch_and_build(data_dir, archives, published, progress or (lambda *_: None))
    except Timeout as error:
        raise BusyError(f"{data_dir}: another process is preparing oxford_iiit_pet") from error
    except OSError as error:
        raise UnavailableError(f"{data_dir}: cannot be written: {error}") from error


def _fetch_and_build(
    data_dir: Path, archives: Path | None, published: tuple[Archive, Archive], progress: Progress
) -> None:
    from .oxford_builder import build

    for torn in (data_dir / "oxford_iiit_pet").glob("incomplete.*"):
        shutil.rmtree(torn)  # what a killed process left; the lock says that none writes there
    images, annotations = published
    downloads = data_dir / "downloads" / "oxford_iiit_pet"
    # A download bears its final name once it is whole and its sha256 has been checked.
    missing = [a for a in published if not (archives or (downloads / a.name).is_file())]
    to_fetch = sum(archive.size for archive in missing)
    needed, free = to_fetch + images.size + annotations.size, shutil.disk_usage(data_dir).free
    if free < needed:
        raise UnavailableError(f"{data_dir}: {free} bytes free, {needed} needed: free some")
    total = to_fetch + 2 * images.size  # each of two splits reads all images
    if missing:
        try:
            _fetch(missing, downloads, lambda done: progress(done, total))
        except UnavailableError as error:
            raise UnavailableError(f"{error}\n{_ways_out(published)}") from error
    folder = archives or downloads
    if archives is None:
        for archive in published:  # one that was there already may be anything
            _verify(folder / archive.name, archive)
    build(
        data_dir,
        images=folder / images.name,
        annotations=folder / annotations.name,
        scratch=downloads,
        progress=lambda done: progress(to_fetch + done, total),
    )
    shutil.rmtree(downloads)
    progress(total, total)


def _fetch(missing: Sequence[Archive], folder: Path, progress: Callable[[int], None]) -> None:
    """Downloads archives, going on where an earlier call stopped.

    Raises UnavailableError, within ten seconds where the server does not answer.
    """
    from ..weights.download import download, require_answer

    require_answer(missing[0].url, timeout=PATIENCE)
    before = 0
    for archive in missing:
        download(
            archive.url,
            folder / archive.name,
            sha256=archive.sha256,
            size=archive.size,
            progress=lambda done, _, before=before: progress(before + done),
        )
        before += archive.size


def _ways_out(published: tuple[Archive, Archive]) -> str:
    urls = " and ".join(archive.url for archive in published)
    return (
        f"fetch {urls} by hand into DIR for `data prepare --archives DIR`, "
        "or use --data synthetic or --data DIR"
    )


def _verify(path: Path, archive: Archive) -> None:
    if not path.is_file():
        raise InputError(f"{path}: no such file; fetch {archive.url}")
    if (size := path.stat().st_size) != archive.size:
        raise IntegrityError(
            f"{path}: {size} bytes instead of {archive.size}; fetch {archive.url} anew"
        )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != archive.sha256:
        raise IntegrityError(
            f"{path}: sha256 {sha256} instead of {archive.sha256}; fetch {archive.url} anew"
        )


def _published() -> tuple[Archive, Archive]:
    """The archives of images and of annotations, as the official builder records them."""
    from tensorflow_datasets.datasets.oxford_iiit_pet import (
        oxford_iiit_pet_dataset_builder as official,
    )

    infos: Any = official.Builder.url_infos
    archives = (Archive(url, int(info.size), info.checksum) for url, info in infos.items())
    annotations, images = sorted(archives, key=lambda archive: archive.name)
    return images, annotations


def _reader(data_dir: Path) -> Any:
    """TFDS's builder for what is prepared in `data_dir`; `None` where nothing is."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder("oxford_iiit_pet", data_dir=data_dir)
    if not builder.data_path.exists():
        return None
    if not builder.is_prepared():
        raise IntegrityError(f"{builder.data_dir}: holds no whole dataset; remove it")
    form = builder.info.file_format.value
    if form != "array_record":
        raise InputError(
            f"{builder.data_dir}: holds {form} files, which TensorFlow alone reads; "
            "choose another --data-dir"
        )
    return builder


def _cut(ordered: Sequence[T], split: SplitName, limit: int | None) -> Sequence[T]:
    if split == "val":
        ordered = ordered[::10]
    if split == "train":
        ordered = [item for position, item in enumerate(ordered) if position % 10]
    return ordered[:limit]
