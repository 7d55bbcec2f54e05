"""Real processes of the command line, to be killed, starved and stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--data", "synthetic", "--size", "32", "--channels", "4,8", "--limit", "12"),
    *("--batch-size", "4"),
]
"""Of a training whose steps take milliseconds: 3 a epoch."""

HUNG = 600
"""Seconds after which a process counts as hung, however slow the machine is."""


class Command:
    """A process of `python -m eqxunet ...`, in a session of its own; both outputs in `log`."""

    def __init__(self, *arguments, cwd, env=None, prefix=()):
        self.log = Path(cwd) / f"log-{time.monotonic_ns()}"
        command = [*prefix, sys.executable, "-m", "eqxunet", *map(str, arguments)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self):
        return self.log.read_text(errors="replace")

    def wait(self, timeout=HUNG):
        """Its exit code: negative where a signal ended it."""
        return self.process.wait(timeout)

    def send(self, number):
        """Sends a signal to the process alone."""
        self.process.send_signal(number)

    def kill(self):
        """Ends it and its children at once, as a power cut would."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def until(self, is_reached, timeout=HUNG):
        """Waits until a condition holds; fails where the process ends before."""
        end = time.monotonic() + timeout
        while not is_reached():
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.output[-3000:]}")
            assert time.monotonic() < end, f"not reached in {timeout} s: {self.output[-3000:]}"
            time.sleep(0.005)

    def until_says(self, text, timeout=HUNG):
        """Waits until its output holds a text."""
        self.until(lambda: text in self.output, timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()


def run(*arguments, cwd, timeout=HUNG, **options):
    """Runs a command to its end; returns its exit code and its output."""
    with Command(*arguments, cwd=cwd, **options) as command:
        code = command.wait(timeout)
        return code, command.output


def records(directory):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def steps(directory):
    """The steps of a run's complete checkpoints."""
    folder = directory / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())
