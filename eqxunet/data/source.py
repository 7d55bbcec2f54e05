"""Where examples come from: one protocol, and the choice behind `--data`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ..config import DATA_DIR as DATA_DIR
from ..config import SplitName as SplitName
from ..errors import InputError

Progress = Callable[[int, int | None], None]

PET, BACKGROUND, BORDER = 1, 2, 3


@dataclass(frozen=True)
class Example:
    """One image with its mask, encoded as in a file or drawn.

    Arguments:

    - `image`: bytes of an image file, or RGB pixels.
    - `mask`: bytes of an image file, or a trimap: 1 = pet (foreground), 2 = background,
      3 = border.
    - `name`: names the example in reports and errors.
    - `labels`: what an encoded mask holds: a trimap, or 0 for background and anything else for
      foreground.
    - `files`: where image and mask were read, for errors.
    """

    image: bytes | UInt8[np.ndarray, "h w 3"]
    mask: bytes | UInt8[np.ndarray, "h w"]
    name: str
    labels: Literal["trimap", "binary"] = "trimap"
    files: tuple[str, str] | None = None


@runtime_checkable
class Source(Protocol):
    """A sequence of examples.

    `identity` changes whenever any of them does; `notes` are what the user should know of them.
    """

    @property
    def identity(self) -> str: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def open_source(
    data: str, split: SplitName, *, data_dir: Path = DATA_DIR, limit: int | None = None
) -> Source:
    """Opens one split of a dataset, without decoding anything.

    Arguments:

    - `data`: `"oxford_iiit_pet"`, `"synthetic"`, or a folder (see `eqxunet.data.folder`).
    - `data_dir`: where TFDS keeps its datasets; `oxford_iiit_pet` only.
    - `limit`: the first so many examples only.

    Raises: `InputError` where `data` is none of these or the folder is not in order.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1, not {limit}")
    if data == "oxford_iiit_pet":
        from .oxford import OxfordPets

        return OxfordPets(split, data_dir.expanduser(), limit=limit)
    if data == "synthetic":
        from .synthetic import SyntheticPets

        return SyntheticPets(split, limit=limit)
    root = Path(data).expanduser()
    if not root.is_dir():
        raise InputError(
            f"{data}: not a folder; give a folder, `synthetic`, or `oxford_iiit_pet` as data"
        )
    from .folder import open_folder

    return open_folder(root, split, limit=limit)


def listed(items: Sequence[str], most: int = 10) -> str:
    """The first items as one line, then how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
