"""Whether a file holds a known release, proved by the release's sha256 in every format."""

import hashlib
import json
import os
from base64 import b64decode, b64encode
from typing import NamedTuple

from ..config import Encoder
from ..errors import IntegrityError
from . import serl, state_dict
from .files import is_safetensors, kind, read_bytes
from .pickle_machine import read_tree
from .releases import RELEASES
from .serl import WAY_OUT, Arrays, parse

# A safetensors file made of SERL's release carries the pickle's bytes around the arrays (under 3
# kB). With the arrays they give the release back, which nothing else can by its sha256: the
# metadata proves itself and needs no trust.
_FRAME = "release_pickle"


class Identity(NamedTuple):
    """The sha256 of a file, and which known release it holds, if any."""

    sha256: str
    release: str | None

    @property
    def is_known(self) -> bool:
        """Whether it holds a known release."""
        return self.release is not None

    def __str__(self) -> str:
        return f"{self.release or 'unverified, no known release'}, sha256 {self.sha256}"


def read_weights(path: str | os.PathLike[str]) -> tuple[bytes, state_dict.StateDict]:
    """Returns the bytes and arrays of a file of any kind; see `read_serl`, `read_state_dict`."""
    data = _read(path)
    return serl.read(path) if serl.is_serl(data) else state_dict.read(path)


def identify(path: str | os.PathLike[str]) -> Identity:
    """Returns the file's sha256, and the known release that it is or was converted from."""
    return identity_of(_read(path))


def verify(path: str | os.PathLike[str], encoder: Encoder | None = None) -> Identity:
    """Returns the identity of a file that holds a known release.

    Arguments:

    - `encoder`: whose it has to be, where not any will do.

    Raises IntegrityError if it does not; a pickle is not parsed before its sha256 fits.
    """
    data = _read(path)
    identity = identity_of(data)
    wanted = [RELEASES[encoder]] if encoder else RELEASES.values()
    if identity.release not in [release.title for release in wanted]:
        known = " or ".join(f"{release.title} (sha256 {release.sha256})" for release in wanted)
        raise IntegrityError(
            f"{path}: {kind(data)} of {len(data)} bytes with sha256 {identity.sha256} does not "
            f"hold {known}.\n{WAY_OUT}"
        )
    return identity


def identity_of(data: bytes) -> Identity:
    """Returns the identity of a file's bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    for release in RELEASES.values():
        if sha256.startswith(release.sha256):
            return Identity(sha256, release.title)
    return Identity(sha256, RELEASES["resnet10"].title if _rebuilds_release(data) else None)


def frame_of(data: bytes) -> dict[str, str]:
    """Returns the metadata by which a file made of SERL's release proves that it is."""
    tokens, at = [], 0
    for name, leaf in read_tree(data).items():
        assert leaf.payload is not None
        start = data.index(leaf.payload.raw, at)
        tokens += [b64encode(data[at:start]).decode(), name]
        at = start + len(leaf.payload.raw)
    return {_FRAME: " ".join([*tokens, b64encode(data[at:]).decode()])}


def _read(path: str | os.PathLike[str]) -> bytes:
    return read_bytes(path, state_dict.MAX_BYTES, WAY_OUT)


def _rebuilds_release(data: bytes) -> bool:
    if not is_safetensors(data):
        return False
    try:
        arrays = parse(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        release = _rebuild(header["__metadata__"][_FRAME].split(" "), arrays)
        # The names in the frame could be swapped, so what counts is what the release itself says.
        return hashlib.sha256(release).hexdigest() == RELEASES["resnet10"].sha256 and all(
            array.tobytes() == arrays[name].tobytes() for name, array in parse(release).items()
        )
    except (IntegrityError, KeyError, ValueError):
        return False


def _rebuild(tokens: list[str], arrays: Arrays) -> bytes:
    around = [b64decode(token, validate=True) for token in tokens[::2]]
    between = [arrays[name] for name in tokens[1::2]]
    # Sizes first: a frame could name one large array a thousand times.
    size = sum(map(len, around)) + sum(array.nbytes for array in between)
    if size != RELEASES["resnet10"].size:
        raise ValueError("not the release's size")
    parts = [around[0]]
    for array, part in zip(between, around[1:], strict=True):
        parts += [array.tobytes(), part]
    return b"".join(parts)
