"""What goes on in a run, on the terminal."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import jax
from rich.text import Text

from ..data.example import Progress
from ..runs import Observer, Request
from ..text import printable_lines
from .console import console, errors, progress_bar, stage, steps_bar, warn
from .signals import advise, listening


class Terminal(Observer):
    """Shows bars, lines and warnings, and stops or saves a training where a signal asks for it.

    - `received`: the signal that stopped it, if one came.
    """

    def __init__(self):
        self.received: signal.Signals | None = None

    def stage(self, text: str) -> AbstractContextManager[Any]:
        return stage(text)

    def progress(
        self, text: str, unit: Literal["items", "bytes"] = "items"
    ) -> AbstractContextManager[Progress]:
        return progress_bar(text, unit=unit)

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[Callable[[int, str], Request]]:
        jax.clear_caches()  # 100 MB of programs that have done their work in this process
        with (
            listening() as listener,
            steps_bar(total, done) as bar,
            listener.collected(_acknowledge) as take,
        ):

            def tell(step: int, text: str) -> Request:
                bar(step, text)
                request = take()
                self.received = listener.stop
                return request

            yield tell
            # Where a signal comes later than the last step, or while pictures are drawn.
            advise("all steps are saved, and `train --resume` of this run draws the pictures")

    def record(self, record: Mapping[str, Any], is_best: bool) -> bool:
        best = ("  best", "green") if is_best else ""
        console.print(Text.assemble(_line(record), best), soft_wrap=True)
        return False

    def note(self, text: str) -> None:
        console.print(printable_lines(text.replace(f"{os.getcwd()}{os.sep}", "")), soft_wrap=True)

    def warn(self, text: str) -> None:
        warn([text])


def number(value: float | None) -> str:
    """A score or a loss, which may be none."""
    return "none" if value is None else f"{value:.4f}"


def _line(record: Mapping[str, Any]) -> str:
    """One line of at most 80 columns."""
    speed = record.get("images_per_second")
    return (
        f"epoch {record['epoch']:>3}  step {record['step']:>5}  "
        f"loss {number(record['train/loss'])}  val {number(record['val/loss'])}  "
        f"IoU {record['val/iou']:.4f}" + (f"  {speed:.0f} img/s" if speed else "")
    )


def _acknowledge(received: signal.Signals) -> None:
    if received == signal.SIGUSR1:
        text = "this step will be finished and saved, and training goes on"
    else:
        text = "this step will be finished and saved; a second time quits at once"
    (console if console.is_terminal else errors).print(f"{received.name}: {text}")
