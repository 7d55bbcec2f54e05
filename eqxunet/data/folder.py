"""A folder of images and masks as a source, in the layout of Oxford-IIIT Pet or a plain one.

Oxford: `images/`, `annotations/trimaps/`, and the lists `annotations/trainval.txt` and
`annotations/test.txt` (`name class species breed` a line, `#` starts a comment). Plain: `images/`
and `masks/` with the same stems, and optionally `train.txt`, `val.txt` and `test.txt` with a stem
a line. Without them stems are ranked by a hash and cut into tenths: one for `val`, one for `test`.
`classes.txt` may name the classes of masks that hold indices, a name a line, and `classes.csv`
(name,r,g,b) those of masks that hold colours.
"""

import hashlib
from collections import Counter
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from ..config import Labels, SplitName
from ..errors import InputError
from .classes import Classes, read_classes
from .complaints import some_of
from .example import Example
from .kinds import CLASSES, Species
from .layout import files_by_stem, missing_masks
from .lists import FEWEST, oxford_species, oxford_splits, plain_splits


@dataclass(frozen=True)
class FolderSource:
    """Pairs of image and mask files; `open_folder` finds them.

    Arguments:

    - `names`: a stem each.
    - `images`, `masks`: a file each.
    - `species`: what each pet is; none where `kind` is not `"species"`.
    - `kind`, `classes`: what labels are, see `Example`.
    - `identity`: a digest of every file's name, size and time of change.
    - `notes`: what the user should know of the folder.
    """

    names: tuple[str, ...]
    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    species: tuple[Species | None, ...]
    kind: Labels
    classes: Classes
    identity: str
    notes: tuple[str, ...] = ()

    def name(self, index: int, /) -> str:
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int, /) -> Example:
        image, mask = self.images[index], self.masks[index]
        return Example(
            image,
            mask,
            self.names[index],
            self.kind,
            self.species[index],
            self.classes,
            (str(image), str(mask)),
        )


def open_folder(
    root: Path, split: SplitName, *, kind: Labels | None = None, limit: int | None = None
) -> FolderSource:
    """Finds the pairs of one split, after checking the whole folder without decoding anything.

    Raises what `scan_folder` raises, and InputError where the split is empty.
    """
    sources = scan_folder(root, kind=kind, limit=limit)
    if not len(sources[split]):
        way_out = "add names to its list, or use another split"
        lists = [f"{name}.txt" for name in ("train", "val", "test")]
        if len(sources["all"]) < FEWEST and not any((root / name).exists() for name in lists):
            way_out = f"without lists, {FEWEST} images are the least to make three splits"
        raise InputError(f"{root}: no image belongs to its {split} split; {way_out}")
    return sources[split]


def scan_folder(
    root: Path, *, kind: Labels | None = None, limit: int | None = None
) -> dict[SplitName, FolderSource]:
    """Finds the pairs of all splits, some of which may be empty; `"all"` is all of them.

    Arguments:

    - `kind`: what labels are; by default a trimap in Oxford's layout and a mask in the plain one.
    - `limit`: the first so many of each split only.

    Raises InputError that lists duplicate stems, images without masks or, where it matters,
    species, names in a list without an image, and links that lead out of `root`, and where there
    are neither lists nor three images.
    """
    root = root.resolve()
    oxford = is_oxford(root)
    kind = kind or ("trimap" if oxford else "mask")
    mask_folder = root / "annotations" / "trimaps" if oxford else root / "masks"
    images = files_by_stem(root, root / "images")
    masks = files_by_stem(root, mask_folder)
    splits = oxford_splits(root) if oxford else plain_splits(root, images)
    splits["all"] = sorted({name for names in splits.values() for name in names} or images)
    wanted = set(splits["all"])
    if absent := sorted(wanted - images.keys()):
        way_out = "add the images, or take the names off the lists"
        if any(Path(name).stem in images for name in absent):
            way_out = "write names without their extension"
        raise InputError(
            f"{root}: its lists name images that are not there: {some_of(absent)}; {way_out}"
        )
    if absent := wanted - masks.keys():
        raise missing_masks(mask_folder, images, masks, absent)
    species: dict[str, Species] = oxford_species(root) if kind == "species" else {}
    classes = read_classes(root) if kind == "classes" else Classes(CLASSES[kind])
    notes = _notes(root, splits, images.keys(), masks.keys())
    sources: dict[SplitName, FolderSource] = {}
    for split, names in splits.items():
        first = names[:limit]
        pictures = tuple(images[name] for name in first)
        answers = tuple(masks[name] for name in first)
        shown: tuple[Species | None, ...] = tuple(species.get(name) for name in first)
        identity = _identity(pictures + answers, shown, classes.colours)
        sources[split] = FolderSource(
            tuple(first), pictures, answers, shown, kind, classes, identity, notes
        )
    return sources


def is_oxford(root: Path) -> bool:
    """Whether a folder has the layout of Oxford-IIIT Pet."""
    return (root / "annotations" / "trimaps").is_dir()


def _notes(
    root: Path, splits: dict[SplitName, list[str]], images: Set[str], masks: Set[str]
) -> tuple[str, ...]:
    notes = []
    if unused := sorted(masks - images):
        notes.append(
            f"{root}: {len(unused)} masks have no image and are left out: {some_of(unused)}"
        )
    used = Counter(name for names in splits.values() for name in names)
    used.subtract(splits["all"])
    if several := sorted(name for name, count in used.items() if count > 1):
        notes.append(
            f"{root}: {len(several)} images belong to several splits, so scores flatter: "
            f"{some_of(several)}"
        )
    if unlisted := sorted((images & masks) - set(splits["all"])):
        notes.append(
            f"{root}: {len(unlisted)} images are in no list and are left out: {some_of(unlisted)}"
        )
    if splits["train"] and not splits["test"]:
        notes.append(
            f"{root}: no image belongs to the test split; `eval --split val` scores the validation "
            "images"
        )
    return tuple(notes)


def _identity(
    files: tuple[Path, ...], species: tuple[Species | None, ...], colours: tuple[int, ...]
) -> str:
    digest = hashlib.sha256(repr((species, colours)).encode())
    for path in files:
        status = path.stat()
        digest.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return f"folder {digest.hexdigest()}"
