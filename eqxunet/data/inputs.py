"""The image files that paths, folders and patterns mean, and names for what is made of them."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple, NoReturn

from ..errors import InputError
from .complaints import FileError, some_of
from .layout import SUFFIXES
from .lists import composed


class InputImage(NamedTuple):
    """An image file: its absolute path, and a relative name with `/` and without suffix."""

    path: Path
    name: str


class Found(NamedTuple):
    """Images in the order of their paths, and how many other files lie beside them."""

    images: tuple[InputImage, ...]
    ignored: int


def find_images(
    inputs: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    endings: Sequence[str] = (".png",),
    is_ignored: Callable[[Path], bool] = lambda path: False,
) -> Found:
    """Finds image files; those in folders by their suffix, without hidden ones.

    A file is named by its stem, and one in a folder by its path in there. Where several would
    have one name, all of them get their suffix, the folders that they are in, or both, and where
    that does not tell them apart (`Cat.jpg`, `cat.jpg`), a number. No two files NAME + ENDING are
    one, on file systems without capital letters neither.

    Arguments:

    - `inputs`: files, folders, and patterns, in which `**` stands for any folders.
    - `recursive`: search the folders inside a folder too, but follow no links to folders.
    - `endings`: of the files that are made of an image.
    - `is_ignored`: whether a file is left out.

    Raises InputError where an input is not there, or has no images.
    """
    images: dict[Path, PurePath] = {}
    ignored: set[Path] = set()
    paths = [Path(os.path.expanduser(one)) for one in inputs]
    matches = [_matches(path) for path in paths]
    if absent := [str(path) for path, some in zip(paths, matches, strict=True) if not some]:
        raise InputError(f"{some_of(absent, 3)}: no such file or folder; check the path")
    for path, some in zip(paths, matches, strict=True):
        count = len(ignored)
        found: dict[Path, PurePath] = {}
        for match in some:
            for file, name in _files(match, recursive):
                is_meant = file == path or file.suffix.lower() in SUFFIXES
                absolute = Path(os.path.abspath(file))
                if is_meant and not is_ignored(absolute):
                    found[absolute] = name
                else:
                    ignored.add(absolute)
        if not found:
            raise _without_images(path, recursive, len(ignored) - count)
        images = found | images
    return Found(tuple(_named(images, endings)), len(ignored))


def _matches(path: Path) -> list[Path]:
    if path.exists():
        return [path]
    return [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]


def _files(path: Path, recursive: bool) -> Iterator[tuple[Path, PurePath]]:
    """A file, or those of a folder, each with its path in there."""
    if not path.is_dir():
        if path.exists() and not path.is_file():
            raise FileError(str(path), "neither a file nor a folder")
        yield path, PurePath(path.name)
        return
    for folder, inner, names in os.walk(path, onerror=_unreadable):
        inner[:] = [name for name in inner if recursive and not name.startswith(".")]
        for name in names:
            file = Path(folder, name)
            # A link to nothing is told of when it is read; a pipe would never end.
            if not name.startswith(".") and (file.is_file() or not file.exists()):
                yield file, file.relative_to(path)


def _unreadable(error: OSError) -> NoReturn:
    raise FileError(str(error.filename), f"cannot be read ({error.strerror})") from error


def _without_images(path: Path, recursive: bool, others: int) -> InputError:
    what = f"no image in it, but {others} other files" if others else "no image in it"
    is_deep = path.is_dir() and any(entry.is_dir() for entry in path.iterdir())
    hint = "; --recursive searches the folders inside it" if is_deep and not recursive else ""
    return FileError(str(path), f"{what}{hint}")


def _named(images: Mapping[Path, PurePath], endings: Sequence[str]) -> list[InputImage]:
    groups: dict[str, list[Path]] = {}
    for path in sorted(images):
        groups.setdefault(_key(images[path].with_suffix("").as_posix()), []).append(path)
    names: dict[Path, str] = {}
    for group in groups.values():
        names |= zip(group, _distinct(group, images), strict=True)
    folders = {_key(str(up)) for name in names.values() for up in PurePosixPath(name).parents}
    taken: set[str] = set()
    named = []
    for path in sorted(names):
        name, number = names[path], 1
        while (files := {_key(name + ending) for ending in endings}) & (taken | folders):
            number += 1
            name = f"{names[path]}-{number}"
        taken |= files
        named.append(InputImage(path, name))
    return named


def _distinct(group: Sequence[Path], images: Mapping[Path, PurePath]) -> list[str]:
    """The shortest names that tell all files of a group apart, if there are any."""
    names: list[str] = []
    for outward in range(max(len(path.parts) for path in group)):
        for has_suffix in (False, True):
            tried = []
            for path in group:
                parts = path.parts[1:][-len(images[path].parts) - outward :]
                name = PurePosixPath(*parts)
                tried.append(str(name if has_suffix else name.with_suffix("")))
            names = names or tried
            if len({_key(name) for name in tried}) == len(group):
                return tried
    return names


def _key(name: str) -> str:
    """What names have in common that are one on some file systems."""
    return composed(name).casefold()
