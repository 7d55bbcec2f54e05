"""A folder of images and masks as a source, in the layout of Oxford-IIIT Pet or a plain one.

Oxford: `images/`, `annotations/trimaps/`, and the lists `annotations/trainval.txt` and
`annotations/test.txt` (`name class species breed` a line, `#` starts a comment). Plain: `images/`
and `masks/` with the same stems, and optionally `train.txt`, `val.txt` and `test.txt` with a stem
a line. Without them stems are ranked by a hash and cut into tenths: one for `val`, one for `test`.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError
from .masks import Labels
from .source import Example, SplitName, listed

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
"""What counts as an image while listing a folder; decoding looks at the content only."""

FEWEST = 3
"""Images that make a training, a validation and a test split."""

_OXFORD_FIELDS = re.compile(r"(\s+\d+){3}$")


@dataclass(frozen=True)
class FolderSource:
    """Pairs of image and mask files; `open_folder` finds them.

    Arguments:

    - `names`: a stem each.
    - `images`, `masks`: a file each.
    - `labels`: what the masks hold, see `Example`.
    - `identity`: a digest of every file's name, size and time of change.
    - `notes`: what the user should know of the folder.
    """

    names: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    labels: Labels
    identity: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Example:
        image, mask = self.images[index], self.masks[index]
        try:
            encoded = image.read_bytes(), mask.read_bytes()
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error
        return Example(*encoded, self.names[index], self.labels, (str(image), str(mask)))


def open_folder(root: Path, split: SplitName, *, limit: int | None = None) -> FolderSource:
    """Finds the pairs of one split, after checking the whole folder without decoding anything.

    Raises: what `scan_folder` raises, and `InputError` where the split is empty.
    """
    sources = scan_folder(root, limit=limit)
    if not len(sources[split]):
        way_out = "add names to its list, or use another split"
        lists = [f"{name}.txt" for name in ("train", "val", "test")]
        if len(sources["all"]) < FEWEST and not any((root / name).exists() for name in lists):
            way_out = f"without lists, {FEWEST} images are the least to make three splits"
        raise InputError(f"{root}: no image belongs to its {split} split; {way_out}")
    return sources[split]


def scan_folder(root: Path, *, limit: int | None = None) -> dict[SplitName, FolderSource]:
    """Finds the pairs of all splits, some of which may be empty; `"all"` is all of them.

    Raises: `InputError` that lists duplicate stems, images without masks, names in a list
    without an image, and links that lead out of `root`, and where there are neither lists nor
    three images.
    """
    root = root.resolve()
    is_oxford = (root / "annotations" / "trimaps").is_dir()
    mask_folder = root / "annotations" / "trimaps" if is_oxford else root / "masks"
    images = _files_by_stem(root, root / "images")
    masks = _files_by_stem(root, mask_folder)
    splits = _oxford_splits(root) if is_oxford else _plain_splits(root, images)
    splits["all"] = sorted({name for names in splits.values() for name in names} or images)
    wanted = set(splits["all"])
    if absent := sorted(wanted - images.keys()):
        way_out = "add the images, or take the names off the lists"
        if any(Path(name).stem in images for name in absent):
            way_out = "write names without their extension"
        raise InputError(
            f"{root}: its lists name images that are not there: {listed(absent)}; {way_out}"
        )
    if absent := sorted(wanted - masks.keys()):
        raise InputError(f"{mask_folder}: no mask for {listed(absent)}; add them as NAME.png")
    notes = _notes(root, splits, images.keys(), masks.keys())
    labels: Labels = "trimap" if is_oxford else "binary"
    sources: dict[SplitName, FolderSource] = {}
    for split, names in splits.items():
        first = names[:limit]
        pictures = tuple(images[name] for name in first)
        answers = tuple(masks[name] for name in first)
        identity = _identity(labels, pictures + answers)
        sources[split] = FolderSource(tuple(first), pictures, answers, labels, identity, notes)
    return sources


def _notes(
    root: Path, splits: dict[SplitName, list[str]], images: Set[str], masks: Set[str]
) -> tuple[str, ...]:
    notes = []
    if unused := sorted(masks - images):
        notes.append(
            f"{root}: {len(unused)} masks have no image and are left out: {listed(unused)}"
        )
    used = Counter(name for names in splits.values() for name in names)
    used.subtract(splits["all"])
    if several := sorted(name for name, count in used.items() if count > 1):
        notes.append(
            f"{root}: {len(several)} images belong to several splits, so scores flatter: "
            f"{listed(several)}"
        )
    if unlisted := sorted((images & masks) - set(splits["all"])):
        notes.append(
            f"{root}: {len(unlisted)} images are in no list and are left out: {listed(unlisted)}"
        )
    if splits["train"] and not splits["test"]:
        notes.append(
            f"{root}: no image belongs to the test split; `eval --split val` scores the validation "
            "images"
        )
    return tuple(notes)


def _identity(labels: str, files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256(labels.encode())
    for path in files:
        status = path.stat()
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return f"folder {digest.hexdigest()}"


def _files_by_stem(root: Path, folder: Path) -> dict[str, Path]:
    """Image files by stem, in Unicode's composed form: archives made on macOS decompose names."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; expected images/ with masks/ or annotations/trimaps/"
        )
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    links = [path for path in entries if path.is_symlink() and not _is_inside(root, path)]
    if not folder.resolve().is_relative_to(root):
        links = [folder]
    if links:
        raise InputError(
            f"{folder}: links that lead out of {root}, in a circle or to no file: "
            f"{listed([path.name for path in links])}; copy the files instead"
        )
    paths = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    stems = [_composed(path.stem) for path in paths]
    if repeated := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise InputError(f"{folder}: several files for one stem: {listed(repeated)}; keep one each")
    if not paths:
        raise InputError(f"{folder}: no image in it; folders inside it are not searched")
    return dict(zip(stems, paths, strict=True))


def _is_inside(root: Path, link: Path) -> bool:
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # it dangles, or leads to itself
        return False
    return target.is_file() and target.is_relative_to(root)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _oxford_splits(root: Path) -> dict[SplitName, list[str]]:
    lists = [f"annotations/{name}.txt" for name in ("trainval", "test")]
    if not any((root / name).exists() for name in lists):
        raise InputError(f"{root}: has neither {lists[0]} nor {lists[1]}; add lists of names")
    trainval, test = (_read_list(root, name) if (root / name).exists() else [] for name in lists)
    return {
        "train": [name for i, name in enumerate(sorted(trainval)) if i % 10],
        "val": sorted(trainval)[::10],
        "test": test,
    }


def _plain_splits(root: Path, images: dict[str, Path]) -> dict[SplitName, list[str]]:
    splits: dict[SplitName, list[str]] = {"train": [], "val": [], "test": []}
    lists: list[SplitName] = [split for split in splits if (root / f"{split}.txt").exists()]
    for split in lists:
        splits[split] = _read_list(root, f"{split}.txt")
    if lists:
        return splits
    # Which images a split holds depends on all names, so that its share is exact.
    ranked = sorted(images, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(ranked) < FEWEST:
        return splits
    tenth = max(1, round(len(ranked) / 10))
    splits["val"] = sorted(ranked[:tenth])
    splits["test"] = sorted(ranked[tenth : 2 * tenth])
    splits["train"] = sorted(ranked[2 * tenth :])
    return splits


def _read_list(root: Path, name: str) -> list[str]:
    """Reads a name a line. A name may hold spaces; Oxford's three numbers after it are cut off."""
    path = root / name
    if path.is_symlink() and not _is_inside(root, path):
        raise InputError(f"{path}: leads out of {root} or to no file; copy the list instead")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of names ({error})") from error
    lines = [line.strip() for line in lines]
    names = [
        _composed(_OXFORD_FIELDS.sub("", line))
        for line in lines
        if line and not line.startswith("#")
    ]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path}: names that stand in it more than once: {listed(repeated)}")
    return names
