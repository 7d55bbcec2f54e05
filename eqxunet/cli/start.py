"""The command line as a program of its own."""

import atexit
import os
import platform
import signal
import sys
import warnings

from . import signals


def main(prog_name: str | None = None) -> None:
    """Runs the command line, whose signals are answered from here on."""
    # Until they are listened to they wait, a second start of the program included.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    _use_huge_pages()
    atexit.register(signals.ignore)  # the first that is registered is the last that is called
    signals.listen()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)

    from .commands import app
    from .console import show_warning

    warnings.showwarning = show_warning
    app(prog_name=prog_name)


def _use_huge_pages() -> None:
    """Starts the program over, once, with an allocator that asks Linux for huge pages.

    A training step writes to hundreds of megabytes that the allocator has just been given, page by
    page. glibc 2.35 and newer read the setting at the start only.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if (
        platform.libc_ver()[0] != "glibc"
        or os.environ.get("EQXUNET_HUGE_PAGES") == "0"
        or "glibc.malloc.hugetlb" in tunables
        or {"--help", "-h", "--version"} & set(sys.argv)
    ):
        return
    setting = ":".join(filter(None, [tunables, "glibc.malloc.hugetlb=1"]))
    os.execve(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        os.environ | {"GLIBC_TUNABLES": setting},
    )
