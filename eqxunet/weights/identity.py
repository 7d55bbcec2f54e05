"""Whether a file holds the known release, proved by the release's sha256 in every format."""

import hashlib
import json
import os
from base64 import b64decode, b64encode
from typing import NamedTuple

from ..errors import IntegrityError
from .pickle_machine import read_tree
from .serl import RELEASE, WAY_OUT, Arrays, is_safetensors, kind, parse, read_bytes

# A safetensors file made of the release carries the pickle's bytes around the arrays (under 3 kB).
# With the arrays they give the release back, which nothing else can by its sha256: the metadata
# proves itself and needs no trust.
_FRAME = "release_pickle"


class Identity(NamedTuple):
    """The sha256 of a file, and whether it holds the weights of the known release."""

    sha256: str
    known: bool


def identify(path: str | os.PathLike[str]) -> Identity:
    """Returns the file's sha256 and whether it is the known release or was converted from it."""
    return identity_of(read_bytes(path))


def verify(path: str | os.PathLike[str]) -> Identity:
    """Returns the identity of a file that holds the known release.

    Raises IntegrityError if it does not; a pickle is not parsed before its sha256 fits.
    """
    data = read_bytes(path)
    identity = identity_of(data)
    if not identity.known:
        raise IntegrityError(
            f"{path}: {kind(data)} of {len(data)} bytes with sha256 {identity.sha256} does not "
            f"hold SERL's release of {RELEASE.size} bytes with sha256 {RELEASE.sha256}.\n{WAY_OUT}"
        )
    return identity


def identity_of(data: bytes) -> Identity:
    """Returns the identity of a file's bytes."""
    sha256 = hashlib.sha256(data).hexdigest()
    return Identity(sha256, sha256 == RELEASE.sha256 or _rebuilds_release(data))


def frame_of(data: bytes) -> dict[str, str]:
    """Returns the metadata by which a file made of the release proves that it is."""
    tokens, at = [], 0
    for name, leaf in read_tree(data).items():
        assert leaf.payload is not None
        start = data.index(leaf.payload.raw, at)
        tokens += [b64encode(data[at:start]).decode(), name]
        at = start + len(leaf.payload.raw)
    return {_FRAME: " ".join([*tokens, b64encode(data[at:]).decode()])}


def _rebuilds_release(data: bytes) -> bool:
    if not is_safetensors(data):
        return False
    try:
        arrays = parse(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        release = _rebuild(header["__metadata__"][_FRAME].split(" "), arrays)
        # The names in the frame could be swapped, so what counts is what the release itself says.
        return hashlib.sha256(release).hexdigest() == RELEASE.sha256 and all(
            array.tobytes() == arrays[name].tobytes() for name, array in parse(release).items()
        )
    except (IntegrityError, KeyError, ValueError):
        return False


def _rebuild(tokens: list[str], arrays: Arrays) -> bytes:
    around = [b64decode(token, validate=True) for token in tokens[::2]]
    between = [arrays[name] for name in tokens[1::2]]
    # Sizes first: a frame could name one large array a thousand times.
    if sum(map(len, around)) + sum(array.nbytes for array in between) != RELEASE.size:
        raise ValueError("not the release's size")
    parts = [around[0]]
    for array, part in zip(between, around[1:], strict=True):
        parts += [array.tobytes(), part]
    return b"".join(parts)
