"""Where predictions go: files that are whole or not there, and that say what they were made of."""

import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..data.complaints import FileError, some_of
from ..data.inputs import InputImage
from ..errors import InputError, UnavailableError
from ..storage import open_regular

ENDINGS = {
    "mask": ".png",
    "probability": ".probability.png",
    "probabilities": ".probability.npy",
    "overlay": ".overlay.png",
}
"""Of the files of one image, by their kind."""

Content = Image.Image | Float[np.ndarray, "h w k"]

_KEY = "eqxunet"
_HEAD = 8192  # bytes, in which a PNG says what it is
_END = b"IEND\xaeB`\x82"
_LONGEST_NAME = 255  # bytes


@dataclass(frozen=True)
class Output:
    """The files of one image.

    - `files`: by kind, the mask first.
    - `record`: what they are made of, and how; every PNG carries it.
    - `stale`: files of another prediction, which the new ones replace.
    """

    image: InputImage
    files: Mapping[str, Path]
    record: Mapping[str, Any]
    stale: tuple[Path, ...]


class Plan(NamedTuple):
    """What is to be made, what is there already, and what cannot be."""

    todo: list[Output]
    done: list[Path]
    failed: list[FileError]


def plan(
    images: Sequence[InputImage],
    inputs: Sequence[InputImage],
    out: Path,
    kinds: Sequence[str],
    conditions: Mapping[str, Any],
    *,
    overwrite: bool,
) -> Plan:
    """Says of each image what its files are, before anything is written.

    Arguments:

    - `inputs`: all that is not to be written to.
    - `kinds`: of the files beside the mask.
    - `conditions`: what predictions depend on beside their images.
    - `overwrite`: replace files that are there.

    Raises InputError where files are in the way: of other conditions or images, of other programs,
    inputs, and links that lead out of `out`.
    """
    result = Plan([], [], [])
    in_the_way: list[str] = []
    read = {_inode(image.path) for image in inputs} - {None}
    for folder in {(out / image.name).parent for image in images}:
        _check_folder(folder, out)
    for image in images:
        files = {kind: out / f"{image.name}{ENDINGS[kind]}" for kind in ("mask", *kinds)}
        if max(len(os.fsencode(_partial(path).name)) for path in files.values()) > _LONGEST_NAME:
            complaint = "its name leaves no room for those of its predictions; shorten it"
            result.failed.append(FileError(str(image.path), complaint))
            continue
        there = {kind for kind, path in files.items() if os.path.lexists(path)}
        for path in (files[kind] for kind in there):
            if _inode(path) in read:
                raise InputError(
                    f"{path}: is an input, which a prediction would replace; name another folder "
                    "(--out)"
                )
            if path.is_dir():
                raise InputError(f"{path}: is a folder; name another one (--out)")
        before = read_record(files["mask"])
        record = {**conditions, "source": _source(image.path)}
        differences = _differences(before, record)
        known = set(before.get("files", ())) if before else set()
        if not overwrite:
            if differences:
                in_the_way.append(f"{files['mask'].name} ({differences})")
            elif others := [
                files[kind].name
                for kind in sorted(there - known - {"mask"})
                if _differences(read_record(files[kind]), record)
            ]:
                in_the_way += others
            elif before is not None and there == files.keys():
                result.done.append(files["mask"])
                continue
        stale = tuple(out / f"{image.name}{ENDINGS[kind]}" for kind in known if differences)
        record["files"] = sorted(set(kinds) | (set() if differences else known))
        result.todo.append(Output(image, files, record, stale))
    if in_the_way:
        raise InputError(
            f"{out}: {len(in_the_way)} files by these names are something else: "
            f"{some_of(in_the_way, 3)}; name another folder (--out), or add --overwrite"
        )
    return result


def read_record(path: Path) -> dict[str, Any] | None:
    """What a PNG of ours says of itself; nothing of another file, and none where there is no
    whole one."""
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - len(_END)))
            tail = file.read()
    except FileNotFoundError:
        return None
    except OSError:
        return {}
    start = head.find(b"tEXt" + _KEY.encode() + b"\0")
    if not head or (start >= 0 and tail != _END):
        return None
    if start < 0:
        return {}
    length = int.from_bytes(head[start - 4 : start])
    try:
        record = dict(json.loads(head[start + 4 : start + 4 + length].partition(b"\0")[2]))
        are_known = set(record["files"]) <= ENDINGS.keys()
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return record if are_known else {}


def check_writable(out: Path) -> None:
    """Makes a folder; raises UnavailableError where nothing can be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UnavailableError(
            f"{out}: cannot be written ({error.strerror}); name another folder (--out)"
        ) from error


def save(output: Output, contents: Mapping[str, Content]) -> None:
    """Writes an image's files beside their places, and then puts all of them there.

    Raises UnavailableError where they cannot be written.
    """
    partial = {kind: _partial(output.files[kind]) for kind in contents}
    info = PngInfo()
    info.add_text(_KEY, json.dumps(output.record))
    try:
        output.files["mask"].parent.mkdir(parents=True, exist_ok=True)
        for kind, content in contents.items():
            partial[kind].unlink(missing_ok=True)
            with partial[kind].open("xb") as file:
                if isinstance(content, np.ndarray):
                    np.save(file, content)
                else:
                    # Runs of equal values alone compress areas as well as a search, and sooner.
                    strategy = zlib.Z_RLE if kind == "mask" else zlib.Z_DEFAULT_STRATEGY
                    content.save(
                        file, "PNG", pnginfo=info, compress_level=1, compress_type=strategy
                    )
        for path in output.stale:
            path.unlink(missing_ok=True)
        for kind, path in output.files.items():
            partial[kind].replace(path)
    except OSError as error:
        raise UnavailableError(
            f"{output.files['mask']}: cannot be written ({error.strerror or error}); free space "
            "there, or name another folder (--out)"
        ) from error
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _differences(before: Mapping[str, Any] | None, record: Mapping[str, Any]) -> str:
    """In what respect a file is of something else than a record; empty where it is not."""
    if before is None:
        return ""
    if not before:
        return "no prediction of eqxunet"
    if before.get("weights") != record["weights"]:
        return f"of {before.get('run')} at step {before.get('step')}"
    if before.get("source") != record["source"]:
        return "of another image, or the image has changed"
    return ", ".join(
        _option(name, before.get(name))
        for name in ("threshold", "tile", "flip")
        if before.get(name) != record[name]
    )


def _option(name: str, value: Any) -> str:
    """How the command line's options made a file, as one would type them."""
    if name == "flip":
        return "made with --tta" if value else "made without --tta"
    return f"made without --{name}" if value is None else f"made with --{name} {value}"


def _check_folder(folder: Path, out: Path) -> None:
    root = out.resolve()
    if not folder.resolve().is_relative_to(root):
        raise InputError(f"{folder}: leads out of {out}; remove the link, or name another --out")
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: is a file, where a folder is needed; name another (--out)")


def _inode(path: Path) -> tuple[int, int] | None:
    """What a path leads to, however it is spelt."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _source(path: Path) -> str:
    """Tells an image from others, and from what it becomes when it is changed."""
    try:
        status = path.stat()
    except OSError:  # reading it will tell
        return path.name
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"
