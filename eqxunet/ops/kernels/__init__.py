"""Native kernels for CPUs, compiled on first use with the machine's own C++ compiler.

Compiled here and now, they use all that this processor has, fit the installed JAX, and the package
stays pure Python. Without a compiler, or with `EQXUNET_NATIVE=0`, XLA's own operations do the same
work, slower.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import jax

KERNELS = tuple(
    f"{name}{part}"
    for name in ("conv2d", "depthwise2d")
    for part in ("", "_input_gradient", "_kernel_gradient")
)
"""Functions of the library; XLA knows each as `eqxunet_` and this name."""

_FILES = ("conv.cc", "depthwise.h", "direct.h", "winograd.h", "tiles.h")
_SOURCES = [Path(__file__).with_name(name) for name in _FILES]
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")


@functools.cache
def is_native() -> bool:
    """Whether the native kernels are there; the first call compiles, loads and registers them.

    Warns, once, with the reason and the way out where they cannot be compiled.
    """
    if os.environ.get("EQXUNET_NATIVE") == "0":
        return False
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        warnings.warn(
            "convolutions run without native kernels, which is slow "
            f"({reason.strip().splitlines()[-1]}); install a C++17 compiler such as g++, or set "
            "EQXUNET_NATIVE=0 to leave it at that",
            stacklevel=2,
        )
        return False
    for name in KERNELS:
        capsule = jax.ffi.pycapsule(library[name])
        jax.ffi.register_ffi_target(f"eqxunet_{name}", capsule, platform="cpu")
    return True


def _compiled() -> Path:
    """The compiled library, from the user's cache folder where it was compiled before."""
    found = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((path for name in found if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler on the PATH")
    key = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES))
    for part in (*_FLAGS, compiler, version("jaxlib"), _processor()):
        key.update(part.encode() + b"\0")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqxunet" / "kernels"
    library = cache / f"conv-{key.hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / "conv.so"
            include = f"-I{jax.ffi.include_dir()}"
            command = [compiler, *_FLAGS, include, str(_SOURCES[0]), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            made.replace(library)  # whole, whoever else compiles at the same time
    return library


def _processor() -> str:
    """What `-march=native` depends on: a home folder may serve several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return next(
            (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")),
            platform.machine(),
        )
    return platform.processor() or platform.machine()
