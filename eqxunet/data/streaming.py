"""A split without the cache: looked through once, and then decoded as it is read."""

import hashlib

from .check import look_through
from .complaints import unusable
from .example import Progress, Source, names_of
from .masks import MaskSummary
from .pack import PackedSource
from .split import Split, crc32_of
from .undecoded import Undecoded


def stream_split(source: Source, *, size: int, progress: Progress | None = None) -> Split:
    """A split whose pixels are decoded each time they are read, at `size` x `size`.

    Every example is decoded once before, to see whether it can be, unless it is of a pack, whose
    examples were.

    Arguments:

    - `progress`: called with how many of how many examples are done.

    Raises InputError that lists every example that cannot be decoded.
    """
    masks = source.masks if isinstance(source, PackedSource) else None
    if masks is None:
        found, errors = look_through(source, progress)
        if errors:
            raise unusable(errors, len(source))
        masks = MaskSummary.of(found, source.kind)
    names = names_of(source)
    digest = hashlib.sha256(f"{source.identity}\0{source.kind}\0{size}".encode()).hexdigest()
    return Split(
        Undecoded(source, size, "images"),
        Undecoded(source, size, "labels"),
        names,
        source.kind,
        source.classes.names or masks.indices(),
        f"{digest[:16]}-{crc32_of(names):08x}",
        masks,
    )
