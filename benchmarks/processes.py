"""Contenders in processes of their own, run in turn so that drift hits all alike."""

import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

Setup = Callable[[Any], Callable[[], float]]


class Contender:
    """A process that prepares a step once and runs it when told.

    Arguments:

    - `setup`: called in the process with `options`; returns the step, which returns a number.
    - `environment`: variables set before the process starts.
    """

    def __init__(self, setup: Setup, options: Any, environment: Mapping[str, str]):
        saved = dict(os.environ)
        os.environ.update(environment)
        try:
            context = multiprocessing.get_context("spawn")
            self._pipe, pipe = context.Pipe()
            self._process = context.Process(target=_serve, args=(setup, options, pipe))
            self._process.start()
            pipe.close()
        finally:
            os.environ.clear()
            os.environ.update(saved)
        self.seconds: list[float] = []

    def run(self) -> tuple[float, float]:
        """Runs one step; returns its seconds and its number."""
        return self._ask("run")

    def sample(self) -> None:
        """Runs four steps and keeps the time of the last.

        The first ones find the caches and the free memory as another process left them, which a
        loop of steps does not.
        """
        for _ in range(3):
            self.run()
        self.seconds.append(self.run()[0])

    def close(self) -> float:
        """Ends the process; returns its largest resident set in bytes."""
        peak = self._ask("close")
        self._process.join()
        return peak

    def _ask(self, request: str) -> Any:
        self._pipe.send(request)
        try:
            return self._pipe.recv()
        except EOFError:
            raise RuntimeError("A contender ended early; see its traceback above.") from None

    def summary(self) -> dict[str, float]:
        """Median and quartiles of the times, in seconds."""
        low, median, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return {"median": median, "low": low, "high": high, "min": min(self.seconds)}


def _serve(setup: Setup, options: Any, pipe: Connection) -> None:
    step = setup(options)
    while pipe.recv() == "run":
        start = time.perf_counter()
        number = step()
        pipe.send((time.perf_counter() - start, number))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            info = file.read()
        model = next(line.split(": ")[1] for line in info.splitlines() if "model name" in line)
        extensions = [name for name in ("avx2", "avx512f", "amx_tile") if f" {name}" in info]
    else:
        extensions = []
    versions = {}
    for package in ("jax", "jaxlib", "equinox", "flax", "torch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "processor": model,
        "extensions": extensions,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions,
    }
