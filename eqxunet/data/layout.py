"""Which files of a folder are its images and masks, and what to do where they are none."""

import os
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from ..errors import InputError
from .complaints import some_of
from .lists import composed, is_inside

SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)
"""What counts as an image while listing a folder; decoding looks at the content only."""

_ALIASES = {
    "images": "image images img imgs photos pictures jpegimages".split(),
    "masks": "mask masks label labels annotation annotations segmentation segmentations "
    "segmentationclass gt groundtruth target targets".split(),
}
"""What people call these folders, in small letters."""
_AS_PNG = "save them as PNG, as Image.fromarray(array.astype(np.uint8)).save() does"


def files_by_stem(root: Path, folder: Path) -> dict[str, Path]:
    """Image files of a folder in `root` by stem.

    Raises InputError where there are none, several for one stem, or links that lead out.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {_renaming(root, folder.name)}")
    entries = _entries(folder)
    links = [path for path in entries if path.is_symlink() and not is_inside(root, path)]
    if not folder.resolve().is_relative_to(root):
        links = [folder]
    if links:
        raise InputError(
            f"{folder}: links that lead out of {root}, in a circle or to no file: "
            f"{some_of([path.name for path in links])}; copy the files instead"
        )
    paths = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    stems = [composed(path.stem) for path in paths]
    if repeated := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise InputError(
            f"{folder}: several files for one stem: {some_of(repeated)}; keep one each"
        )
    if not paths:
        if arrays := [path.name for path in entries if path.suffix.lower() in (".npy", ".npz")]:
            raise InputError(
                f"{folder}: no image in it, but {len(arrays)} arrays: {some_of(arrays, 3)}; "
                f"{_AS_PNG}"
            )
        raise InputError(f"{folder}: no image in it; folders inside it are not searched")
    return dict(zip(stems, paths, strict=True))


def missing_masks(
    folder: Path, images: dict[str, Path], masks: dict[str, Path], absent: Collection[str]
) -> InputError:
    """The error that names images without a mask, with what their masks may be called instead."""
    absent = sorted(absent)
    if affixes := _affixes(absent, masks):
        before, after = affixes
        image = images[absent[0]].name
        return InputError(
            f"{folder}: {len(absent)} masks are called {before}NAME{after}, as "
            f"{masks[before + absent[0] + after].name} for {image}; call a mask as its image, "
            f"{absent[0]}.png"
        )
    files = {composed(path.stem): path.name for path in _entries(folder)}
    if others := [files[name] for name in absent if name in files]:
        return InputError(
            f"{folder}: {len(others)} masks are no images: {some_of(others, 3)}; {_AS_PNG}"
        )
    return InputError(f"{folder}: no mask for {some_of(absent)}; add them as NAME.png")


def _affixes(names: Collection[str], masks: Iterable[str]) -> tuple[str, str] | None:
    """What masks' stems have before and after the images' stems, the same for all of them."""
    stems = set(masks)
    first, *_ = names
    for stem in sorted(stems):
        before, found, after = stem.partition(first)
        if found and all(before + name + after in stems for name in names):
            return before, after
    return None


def _renaming(root: Path, name: str) -> str:
    if not root.is_dir():
        return "give an existing folder"
    aliases = _ALIASES.get(name, [])
    found = [
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and entry.name.lower().replace("_", "").replace("-", "") in aliases
    ]
    if found:
        return f"rename {' or '.join(sorted(found))} to {name}"
    return "expected images/ with masks/ or annotations/trimaps/"


def _entries(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
