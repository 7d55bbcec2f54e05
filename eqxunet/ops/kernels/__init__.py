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
import signal
import stat
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import jax

from ...storage import cache_folder

KERNELS = tuple(
    f"{name}{part}"
    for name in ("conv2d", "depthwise2d")
    for part in ("", "_input_gradient", "_kernel_gradient")
)
"""Functions of the library; XLA knows each as `eqxunet_` and this name."""

_FILES = ("conv.cc", "depthwise.h", "direct.h", "winograd.h", "tiles.h")
_SOURCES = [Path(__file__).with_name(name) for name in _FILES]
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_PATIENCE = 120  # seconds for the compiler, which takes about ten


@functools.cache
def is_native() -> bool:
    """Whether the native kernels are there; the first call compiles, loads and registers them.

    Warns, once, with the reason and the way out where they cannot be compiled.
    """
    if os.environ.get("EQXUNET_NATIVE") == "0":
        return False
    try:
        with _compiled() as path:
            library = ctypes.CDLL(str(path))
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


@contextmanager
def _compiled() -> Iterator[Path]:
    """The compiled library, from the user's cache folder where it was compiled before.

    A library can do all that the user can, and a damaged one kills the process that loads it: it is
    taken only from a folder that nobody else can write to, and if its name tells its content.
    """
    found = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    compiler = next((path for name in found if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler on the PATH")
    key = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES))
    for part in (*_FLAGS, compiler, version("jaxlib"), _processor()):
        key.update(part.encode() + b"\0")
    name = f"conv-{key.hexdigest()[:16]}"
    cache = cache_folder("kernels")
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    if cache.stat().st_uid == os.geteuid():
        cache.chmod(stat.S_IMODE(cache.stat().st_mode) & ~_OTHERS)
    if _is_private(cache):
        yield _kept(cache, name) or _made(cache, name, compiler)
        return
    warnings.warn(
        f"{cache} belongs to another user, or others can write to it, so the native kernels are "
        "compiled anew each time; set XDG_CACHE_HOME to a folder of your own",
        stacklevel=4,
    )
    with tempfile.TemporaryDirectory() as folder:
        yield _made(Path(folder), name, compiler)


def _is_private(path: Path) -> bool:
    """Whether it is this user's or the system's, and no other user can write to it."""
    status = path.stat()
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & _OTHERS


def _kept(cache: Path, name: str) -> Path | None:
    """A whole library of a cache; others by its name are removed."""
    for library in sorted(cache.glob(f"{name}-*.so")):
        is_ours = library.is_file() and not library.is_symlink() and _is_private(library)
        if is_ours and library.stem == f"{name}-{_digest(library)}":
            return library
        library.unlink(missing_ok=True)
    return None


def _made(folder: Path, name: str, compiler: str) -> Path:
    """Compiles the library into a folder."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, log = Path(scratch) / "conv.so", Path(scratch) / "log"
        include = f"-I{jax.ffi.include_dir()}"
        _run([compiler, *_FLAGS, include, str(_SOURCES[0]), "-o", str(made)], log)
        library = folder / f"{name}-{_digest(made)}.so"
        made.chmod(0o755)
        made.replace(library)  # whole, whoever else compiles at the same time
    return library


def _run(command: list[str], log: Path) -> None:
    """Runs a command to its end; raises SubprocessError where it fails or takes too long."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # so that what it starts can be ended with it
        )
        try:
            code = process.wait(_PATIENCE)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code:
        said = log.read_text(errors="replace")
        raise subprocess.CalledProcessError(code, command, stderr=said)


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:32]


def _processor() -> str:
    """What `-march=native` depends on: a home folder may serve several machines."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return next(
            (line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")),
            platform.machine(),
        )
    return platform.processor() or platform.machine()
