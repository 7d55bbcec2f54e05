"""What `--weights auto`, `random`, a file name and a name of the hub mean."""

import importlib.metadata
import os
from pathlib import Path

from ..config import Encoder
from ..errors import InputError, UnavailableError
from .download import Progress, download, require_answer
from .hub import PREFIX, fetch_from_hub
from .identity import verify
from .releases import RELEASES, Release


def fetch_release(
    directory: str | os.PathLike[str] = "weights",
    *,
    encoder: Encoder = "resnet10",
    url: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads an encoder's release into a directory and returns its path; errors as `download`.

    Arguments:

    - `url`: a mirror, instead of the release's own.

    Raises InputError where the release comes in a package and no mirror is given.
    """
    release = RELEASES[encoder]
    url = url or release.url
    if url is None:
        raise InputError(f"{release.file}: {_package_line(release)}")
    dest = Path(directory) / release.file
    if not dest.exists():
        require_answer(url)
    return download(url, dest, sha256=release.sha256, size=release.size, progress=progress)


def resolve_weights(
    weights: str | os.PathLike[str] = "auto",
    directory: str | os.PathLike[str] = "weights",
    *,
    encoder: Encoder = "resnet10",
    progress: Progress | None = None,
) -> Path | None:
    """Returns the file to load an encoder from, or None for random weights.

    Arguments:

    - `weights`: "auto" takes the encoder's release from `directory`, SERL's also as safetensors,
      or from the package that holds it, or else downloads it there, and verifies it; "random" is
      None; "hf:OWNER/NAME[/FILE]" is a file of huggingface.co, unverified; anything else a file
      here, unverified.

    Raises IntegrityError if the file in `directory` is not the release, InputError if a named file
    does not exist, UnavailableError if the release cannot be had.
    """
    if weights == "random":
        return None
    if str(weights).startswith(PREFIX):
        return fetch_from_hub(str(weights))
    if weights != "auto":
        path = Path(weights)
        if not path.is_file():
            raise InputError(
                f"{path}: is no file. Give weights as auto, random, a file or {PREFIX}OWNER/NAME."
            )
        return path
    release = RELEASES[encoder]
    path = Path(directory) / release.file
    for found in (path.with_suffix(".safetensors"), path, _in_package(release)):
        if found is not None and found.exists():
            verify(found, encoder)
            return found
    if release.url is None:
        raise UnavailableError(
            f"{release.file}: {_package_line(release)}, or use --weights FILE or --weights random."
        )
    try:
        return fetch_release(directory, encoder=encoder, progress=progress)
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}\nFetch {release.url} by other means into {path}, or use --weights FILE or "
            "--weights random."
        ) from error


def _in_package(release: Release) -> Path | None:
    """The file where a package has it, which is not imported: that would import torch."""
    if release.package is None:
        return None
    try:
        files = importlib.metadata.files(release.package[0]) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.name == release.file), None)


def _package_line(release: Release) -> str:
    assert release.package is not None
    return f'comes with `pip install "eqxunet[{release.package[1]}]"`'
