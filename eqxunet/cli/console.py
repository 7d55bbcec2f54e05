"""The terminal: consoles, progress bars, and what several commands say."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text

from ..text import printable, printable_lines
from .signals import hung_up

_LINE_SECONDS = 60.0  # between two lines about steps where there is no bar


class _Console(Console):
    """Shows texts as they are: none is markup, and no control character of theirs gets through."""

    def __init__(self, name: Literal["stdout", "stderr"], **options: Any):
        stream: Any = _Stream(name)  # as much of a file as a console asks for
        super().__init__(file=stream, highlight=False, emoji=False, markup=False, **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)


class _Stream:
    """A standard stream of the process, for as long as there is one.

    What a terminal would get that was closed is lost, so that a training can still be saved.
    """

    def __init__(self, name: Literal["stdout", "stderr"]):
        self._name = name

    @property
    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # while there is a bar

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self._stream.write(text.encode("ascii", "backslashreplace").decode())
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        is_broken = error.errno == errno.EPIPE and hung_up.is_set()
        if error.errno != errno.EIO and not is_broken:
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())  # with what the stream has still to write
        os.close(nowhere)


console = _Console("stdout")
errors = _Console("stderr", soft_wrap=True)


@contextmanager
def progress_bar(
    description: str, *, unit: str = "items"
) -> Iterator[Callable[[int, int | None], None]]:
    """Shows a bar while work goes on; yields what to call with how much of how much is done.

    Arguments:

    - `unit`: `"items"` or `"bytes"`.
    """
    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (_description(), BarColumn(), amount, TimeRemainingColumn())
    with _progress(*columns) as progress:
        task = progress.add_task(printable(description), total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Says what is being done while there is nothing to count."""
    if console.is_terminal:
        with console.status(Text(printable(text))):
            yield
    else:
        console.print(printable(text))
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
        _description(),
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


def _description() -> ProgressColumn:
    return TextColumn("{task.description}", markup=False)


def _progress(*columns: ProgressColumn) -> Progress:
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def program() -> str:
    """How the user called this program."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"python -m {path.parent.name}"
    return f"python {path}" if path.suffix == ".py" else path.name


def say_error(text: str) -> None:
    """Says what went wrong, and the way out."""
    errors.print(Text.assemble(("error:", "red"), " ", printable_lines(text)))


def warn(texts: Iterable[str]) -> None:
    """Says what the user should know."""
    for text in texts:
        errors.print(Text.assemble(("warning:", "yellow"), " ", printable_lines(text)))


def show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """Shows what Python's `warnings` would, in a line and without the place in the code.

    Of JAX's compilation cache, which warns of every program, the first.
    """
    global _has_cache_warned
    is_of_cache = "persistent compilation cache" in str(message)
    if not (is_of_cache and _has_cache_warned):
        warn([str(message)])
    _has_cache_warned |= is_of_cache


_has_cache_warned = False


def display(path: Path) -> str:
    """A path as the user would type it, without what acts on a terminal."""
    try:
        return printable(str(path.relative_to(Path.cwd())))
    except ValueError:
        return printable(str(path))
