"""A pickle of weights, once, to safetensors."""

import os
from pathlib import Path

from safetensors.numpy import save

from .. import __version__
from ..errors import InputError, IntegrityError, UnavailableError
from .files import is_safetensors
from .identity import Identity, frame_of, identity_of, read_weights
from .serl import is_serl


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str]) -> Identity:
    """Writes SERL's pickle or torch's as safetensors and returns the identity of the source.

    The new file is read back and compared bit for bit before it gets its name. Its metadata holds
    the source's sha256 and this package's version; made of SERL's release, it can prove that.

    Raises InputError if `out` exists or `source` is converted already, IntegrityError if `source`
    is no such file (see `read_serl`, `read_state_dict`), UnavailableError if `out` cannot be
    written.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out}: exists. Give another name, or move it away first.")
    data, arrays = read_weights(source)
    if is_safetensors(data):
        raise InputError(f"{source}: is safetensors already. Copy it instead.")
    identity = identity_of(data)
    metadata = {"source_sha256": identity.sha256, "eqxunet_version": __version__}
    is_proved = identity.is_known and is_serl(data)
    if is_proved:
        metadata |= frame_of(data)

    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        with open(part, "xb") as file:
            file.write(save(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        written, copies = read_weights(part)
        same = all(copies[name].tobytes() == array.tobytes() for name, array in arrays.items())
        if not same or identity_of(written).is_known != is_proved:
            raise IntegrityError(f"{out}: reads back other than it was written. Check the disk.")
        os.replace(part, out)
    except OSError as error:
        raise UnavailableError(f"{out}: cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
    return identity
