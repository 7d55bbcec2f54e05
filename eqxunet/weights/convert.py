"""SERL's pickle, once, to safetensors."""

import os
from pathlib import Path

from safetensors.numpy import save

from .. import __version__
from ..errors import InputError, IntegrityError, UnavailableError
from .identity import Identity, frame_of, identity_of
from .serl import is_safetensors, read


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Identity:
    """Writes a pickle of SERL's weights as safetensors and returns the identity of the source.

    The new file is read back and compared bit for bit before it gets its name. Its metadata holds
    the source's sha256 and this package's version; made of the known release, it can prove that.

    Raises InputError if `out` exists or `source` is converted already, IntegrityError if `source`
    is not SERL's tree (see `read_serl`), UnavailableError if `out` cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: exists. Give another name, or move it away first.")
    data, arrays = read(source)
    if is_safetensors(data):
        raise InputError(f"{source}: is safetensors already. Copy it instead.")
    identity = identity_of(data)
    metadata = {"source_sha256": identity.sha256, "eqxunet_version": __version__}
    if identity.known:
        metadata |= frame_of(data)

    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as file:
            file.write(save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        written, copies = read(part)
        same = all(copies[name].tobytes() == array.tobytes() for name, array in arrays.items())
        if not same or identity_of(written).known != identity.known:
            raise IntegrityError(f"{out}: reads back other than it was written. Check the disk.")
        os.replace(part, out)
    except OSError as error:
        raise UnavailableError(f"{out}: cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
    return identity
