"""The terminal: consoles, progress bars, and what several commands say."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

_LINE_SECONDS = 60.0  # between two lines about steps where there is no bar

console = Console(highlight=False, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


@contextmanager
def progress_bar(
    description: str, *, unit: str = "items"
) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar while work goes on; yields what to call with how much of how much is done.

    Arguments:

    - `unit`: `"items"` or `"bytes"`.
    """
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Says what is being done while there is nothing to count."""
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        console.print(text)
        yield


@contextmanager
def steps_bar(total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """Shows a bar of training steps; yields what to call with the steps done and a text.

    Where there is no terminal, says a line at the first step and then every minute.
    """
    if not console.is_terminal:
        yield _step_lines(total, done)
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with _progress(*columns) as progress:
        task = progress.add_task("compiling", total=total, completed=done)
        yield lambda step, text: progress.update(task, completed=step, description=text)


def _step_lines(total: int, done: int) -> Callable[[int, str], None]:
    if total > done:
        console.print(f"compiling the training step; {total - done} steps to go")
    first: tuple[int, float] | None = None
    said = -_LINE_SECONDS

    def say(step: int, text: str) -> None:
        nonlocal first, said
        now = time.monotonic()
        first = first or (step, now)
        if now - said < _LINE_SECONDS:
            return
        said = now
        steps, seconds = step - first[0], now - first[1]
        left = f"  {seconds / steps * (total - step):.0f} s left" if steps else ""
        console.print(f"step {step} of {total}  {text}{left}".rstrip(), soft_wrap=True)

    return say


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def program() -> str:
    """How the user called this program."""
    path = sys.argv[0]
    return f"python {path}" if path.endswith(".py") else Path(path).name


def warn(texts: Iterable[str]) -> None:
    """Says what the user should know."""
    for text in texts:
        errors.print(f"[yellow]warning:[/] {escape(text)}")


def display(path: Path) -> str:
    """A path as the user would type it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
