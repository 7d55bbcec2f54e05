"""Builds the Oxford-IIIT Pet dataset as TFDS stores it, from its archives and without TensorFlow.

The official builder needs TensorFlow to unpack the archives and to repair the odd images; this
one reads them with `tarfile` and Pillow. Members go from the archive's stream into the records:
nothing is unpacked, so that no member, whatever its name, can land anywhere on the disk.
"""

import contextlib
import io
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from PIL import Image, ImageFile

from ..errors import IntegrityError, UnavailableError
from .decoding import FORMATS

MAX_UNPACKED = 2 << 30  # the images, which are the larger archive, hold 0.8 GB


def build(
    data_dir: Path,
    *,
    images: Path,
    annotations: Path,
    scratch: Path,
    progress: Callable[[int], None],
) -> None:
    """Writes `data_dir/oxford_iiit_pet/VERSION` as array_record files, all of it or nothing.

    Arguments:

    - `images`, `annotations`: the archives, in the official layout.
    - `scratch`: a folder that TFDS creates for downloads, and leaves empty.
    - `progress`: called with the bytes read of `images`, which each of the two splits reads.

    Raises IntegrityError where an archive holds what it should not, or lacks what it should;
    UnavailableError where the disk is full.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.oxford_iiit_pet import (
        oxford_iiit_pet_dataset_builder as official,
    )

    class Builder(official.Builder, skip_registration=True):
        name = "oxford_iiit_pet"
        # Whence TFDS takes the description, the citation and the tags.
        pkg_dir_path = official.Builder._get_pkg_dir_path()

        def _log_download_bytes(self) -> None:
            pass  # both would print; redirecting stdout instead would swallow the caller's bar

        _log_download_done = _log_download_bytes

        def _split_generators(self, dl_manager: Any) -> Any:
            notes = dict(_members(annotations))
            size = images.stat().st_size
            return {
                "train": self._generate_examples(_listed(notes, "trainval.txt"), notes, progress),
                "test": self._generate_examples(
                    _listed(notes, "test.txt"), notes, lambda done: progress(size + done)
                ),
            }

        # The official one takes three paths: with bytes at hand there are none to take.
        def _generate_examples(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
            missing: dict[str, tuple[int, int]],
            notes: dict[str, bytes],
            progress: Callable[[int], None],
        ) -> Iterator[tuple[str, dict[str, Any]]]:
            for path, data in _members(images, progress):
                stem = path.removeprefix("images/").removesuffix(".jpg")
                if stem not in missing:
                    continue
                label, species = missing.pop(stem)
                file_name = f"{stem}.jpg"
                yield (
                    file_name,
                    {
                        "image": as_jpeg(data, name=file_name),
                        "label": label - 1,
                        "species": species - 1,
                        "file_name": file_name,
                        "segmentation_mask": _note(notes, f"trimaps/{stem}.png"),
                        "head_bbox": _head(notes.get(f"annotations/xmls/{stem}.xml")),
                    },
                )
            if missing:
                raise IntegrityError(f"{images}: lacks {len(missing)} images, as {min(missing)}")

    try:
        with _quiet(tfds):
            Builder(data_dir=data_dir).download_and_prepare(
                download_dir=scratch, file_format="array_record"
            )
    except RuntimeError as error:  # so array_record reports a full disk
        raise UnavailableError(f"{data_dir}: cannot be written: {error}") from error


def as_jpeg(data: bytes, *, name: str) -> bytes:
    """Returns `data` where Pillow reads it as a whole JPEG, else its picture encoded as one.

    Some of the official images are a PNG or a GIF under a JPEG's name, or end early.

    Raises IntegrityError where Pillow finds no image at all.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.format in ("JPEG", "MPO"):
                # Reads the whole stream but computes an eighth of the rows: half the time.
                image.draft(None, (1, 1))
                image.load()
                return data
    except OSError:
        pass  # it ends early, or is none
    tolerant, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            encoded = io.BytesIO()
            image.convert("RGB").save(encoded, "JPEG", quality=95)
    except OSError as error:
        raise IntegrityError(f"images/{name}: no image: {error}") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
    return encoded.getvalue()


def _members(
    archive: Path, progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of every file in the archive, in its order."""
    unpacked = 0
    try:
        with archive.open("rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as tar:
            for member in tar:
                progress(raw.tell())
                path = PurePosixPath(member.name)
                unpacked += member.size
                if path.is_absolute() or ".." in path.parts:
                    raise IntegrityError(f"{archive}: {member.name} lies outside the archive")
                if not (member.isfile() or member.isdir()) or member.issparse():
                    raise IntegrityError(
                        f"{archive}: {member.name} is a link, a device, or a file with holes"
                    )
                if unpacked > MAX_UNPACKED:
                    raise IntegrityError(f"{archive}: holds more than {MAX_UNPACKED} bytes")
                file = tar.extractfile(member)
                # macOS wrote the `._` files; they hold attributes, no images.
                if file is not None and not path.name.startswith("._"):
                    yield str(path), file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise IntegrityError(f"{archive}: no whole tar archive: {error}") from error


def _note(notes: dict[str, bytes], path: str) -> bytes:
    try:
        return notes[f"annotations/{path}"]
    except KeyError:
        raise IntegrityError(f"annotations.tar.gz: lacks annotations/{path}") from None


def _listed(notes: dict[str, bytes], name: str) -> dict[str, tuple[int, int]]:
    """Label and species by stem, both counted from 1, as in `trainval.txt`."""
    lines = (line.split() for line in _note(notes, name).decode().splitlines())
    return {stem: (int(label), int(species)) for stem, label, species, _ in lines}


def _head(xml: bytes | None) -> Any:
    """The head's box as fractions of height and width; zeros where none is given, as in test."""
    from tensorflow_datasets.core.features import BBox

    if xml is None:
        return BBox(0.0, 0.0, 0.0, 0.0)
    root = ElementTree.fromstring(xml)

    def fraction(side: str, of: str) -> float:
        return float(root.findtext(f"object/bndbox/{side}", "")) / float(
            root.findtext(f"size/{of}", "")
        )

    return BBox(
        ymin=fraction("ymin", "height"),
        xmin=fraction("xmin", "width"),
        ymax=fraction("ymax", "height"),
        xmax=fraction("xmax", "width"),
    )


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keeps TFDS's bars, and Pillow's remarks on odd EXIF tags, off the terminal."""
    tfds.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tfds.enable_progress_bar()
