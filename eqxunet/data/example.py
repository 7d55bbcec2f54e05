"""What sources hold: one image with its mask, encoded or drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ..config import Labels
from .classes import Classes
from .kinds import Species

Progress = Callable[[int, int | None], None]
"""Called with how much is done, and of how much where that is known."""


@dataclass(frozen=True)
class Example:
    """One image with its mask, in files, encoded as in a file, or drawn.

    Arguments:

    - `image`: an image file, its bytes, or RGB pixels.
    - `mask`: an image file, its bytes, or pixels of `kind`; a trimap where `kind` is `"species"`.
    - `name`: names the example in reports and errors.
    - `kind`: what its labels are to be.
    - `species`: what the pet is, where that is known.
    - `classes`: names and colours, where `kind` is `"classes"`.
    - `files`: what image and mask are called in errors.
    """

    image: Path | bytes | UInt8[np.ndarray, "h w 3"]
    mask: Path | bytes | UInt8[np.ndarray, "h w"]
    name: str
    kind: Labels = "trimap"
    species: Species | None = None
    classes: Classes = Classes()
    files: tuple[str, str] | None = None


@runtime_checkable
class Source(Protocol):
    """A sequence of examples.

    `identity` changes whenever any of them does; `kind` and `classes` are what their labels
    are; `notes` are what the user should know of all this. `name` tells the name of an example
    without reading it.
    """

    @property
    def identity(self) -> str: ...

    @property
    def kind(self) -> Labels: ...

    @property
    def classes(self) -> Classes: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    def name(self, index: int, /) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


def names_of(source: Source) -> tuple[str, ...]:
    """The names of all examples."""
    return tuple(map(source.name, range(len(source))))
