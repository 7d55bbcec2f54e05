"""What `--weights auto`, `random` and a file name mean."""

import os
from pathlib import Path

from ..errors import InputError, UnavailableError
from .download import Progress, download
from .identity import verify
from .serl import RELEASE

NAME = "resnet10_params"


def fetch_release(
    directory: str | os.PathLike[str] = "weights",
    *,
    url: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads SERL's release into a directory and returns its path; errors as `download`.

    Arguments:

    - `url`: a mirror, instead of the release's own.
    """
    dest = Path(directory) / f"{NAME}.pkl"
    return download(
        url or RELEASE.url, dest, sha256=RELEASE.sha256, size=RELEASE.size, progress=progress
    )


def resolve_weights(
    weights: str | os.PathLike[str] = "auto",
    directory: str | os.PathLike[str] = "weights",
    *,
    progress: Progress | None = None,
) -> Path | None:
    """Returns the file to load the encoder from, or None for random weights.

    Arguments:

    - `weights`: "auto" takes the release from `directory`, as safetensors or as SERL's pickle, or
      downloads it there, and verifies it; "random" is None; anything else is a file, unverified.

    Raises IntegrityError if the file in `directory` is not the release, InputError if a named file
    does not exist, UnavailableError if the release can be had neither way.
    """
    if weights == "random":
        return None
    if weights != "auto":
        path = Path(weights)
        if not path.is_file():
            raise InputError(f"{path}: is no file. Give weights as auto, random or a file.")
        return path
    for suffix in (".safetensors", ".pkl"):
        path = Path(directory) / (NAME + suffix)
        if path.exists():
            verify(path)
            return path
    try:
        return fetch_release(directory, progress=progress)
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}\nFetch {RELEASE.url} by other means into {Path(directory) / NAME}.pkl, or "
            "use --weights FILE or --weights random."
        ) from error
