"""What goes on in a run, on the terminal."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import jax
from rich.markup import escape

from ..data.example import Progress
from ..runs import Observer, Request
from .console import console, errors, progress_bar, stage, steps_bar, warn
from .signals import stop_signals


class Terminal(Observer):
    """Shows bars, lines and warnings, and stops a training at the first SIGINT or SIGTERM.

    - `received`: that signal, if it came.
    """

    def __init__(self):
        self.received: list[signal.Signals] = []

    def stage(self, text: str) -> AbstractContextManager[Any]:
        return stage(text)

    def progress(
        self, text: str, unit: Literal["items", "bytes"] = "items"
    ) -> AbstractContextManager[Progress]:
        return progress_bar(text, unit=unit)

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[Callable[[int, str], Request]]:
        jax.clear_caches()  # 100 MB of programs that have done their work in this process
        with stop_signals(_acknowledge) as received, steps_bar(total, done) as bar:
            self.received = received

            def tell(step: int, text: str) -> Request:
                bar(step, text)
                return "stop" if received else "go on"

            yield tell

    def record(self, record: Mapping[str, Any], is_best: bool) -> bool:
        console.print(_line(record, is_best=is_best), soft_wrap=True)
        return False

    def note(self, text: str) -> None:
        console.print(escape(text.replace(f"{os.getcwd()}{os.sep}", "")), soft_wrap=True)

    def warn(self, text: str) -> None:
        warn([text])


def number(value: float | None) -> str:
    """A score or a loss, which may be none."""
    return "none" if value is None else f"{value:.4f}"


def _line(record: Mapping[str, Any], *, is_best: bool) -> str:
    """One line of at most 80 columns."""
    speed = record.get("images_per_second")
    return (
        f"epoch {record['epoch']:>3}  step {record['step']:>5}  "
        f"loss {number(record['train/loss'])}  val {number(record['val/loss'])}  "
        f"IoU {record['val/iou']:.4f}"
        + (f"  {speed:.0f} img/s" if speed else "")
        + ("  [green]best[/]" if is_best else "")
    )


def _acknowledge(received: signal.Signals) -> None:
    (console if console.is_terminal else errors).print(
        f"{received.name}: this step will be finished and saved; a second time quits at once"
    )
