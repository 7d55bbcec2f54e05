"""Signals, answered at once at any moment of a command."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runs import Request

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNALS = (*STOPPING, signal.SIGUSR1)


class Stopped(Exception):
    """A signal asked a loop to stop that had ended by itself."""

    def __init__(self, received: signal.Signals):
        super().__init__(_stopped_by(received))
        self.exit_code = 128 + received


class Listener:
    """Answers signals in a thread of its own.

    Python runs its handlers between two of its own instructions, so not while a step or the
    compiler runs, and what they raise is lost where a library has called back. The bytes that it
    writes at every signal arrive at once.

    SIGINT, SIGTERM and SIGHUP end the process with a line, unless they are `collected`; then a
    SIGINT or SIGTERM that comes second does. SIGUSR1 never does. What is ignored from the start
    stays so, as SIGHUP is under nohup, and SIGINT where a shell without job control starts
    something in the background.
    """

    def __init__(self):
        self._lock = threading.Lock()
        # While they are collected.
        self._acknowledge: Callable[[signal.Signals], None] | None = None
        self._stop: signal.Signals | None = None
        self._is_taken = False
        self._save = False
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, lambda *_: None)
            for number in SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }

    def close(self) -> None:
        """Puts handlers back as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._descriptor)
        os.close(self._writer)
        self._thread.join()
        os.close(self._reader)

    @property
    def stop(self) -> signal.Signals | None:
        """The signal that the loop is to stop for."""
        return self._stop

    @contextmanager
    def collected(
        self, acknowledge: Callable[[signal.Signals], None]
    ) -> "Iterator[Callable[[], Request]]":
        """Leaves the first signal to a loop, which ends when it can, and SIGUSR1 too.

        Yields what the loop is to ask at every step.

        Arguments:

        - `acknowledge`: called with each of them, in a thread.

        Raises Stopped at the end, where a signal came that the loop has not asked for.
        """
        with self._lock:
            self._acknowledge = acknowledge
        try:
            yield self._take
        finally:
            with self._lock:
                self._acknowledge = None
        if self._stop and not self._is_taken:
            raise Stopped(self._stop)

    def _take(self) -> "Request":
        with self._lock:
            if self._stop:
                self._is_taken = True
                return "stop"
            is_asked, self._save = self._save, False
            return "save" if is_asked else "go on"

    def _listen(self) -> None:
        while byte := os.read(self._reader, 1):
            if byte[0] in SIGNALS:
                self._answer(signal.Signals(byte[0]))

    def _answer(self, received: signal.Signals) -> None:
        if received == signal.SIGHUP:
            hung_up.set()
        with self._lock:
            acknowledge = self._acknowledge
            if received == signal.SIGUSR1:
                self._save = acknowledge is not None
            elif self._stop and received == signal.SIGHUP:
                return  # of a terminal, and again of the shell in it
            elif self._stop:
                _quit(received, f"{received.name}: quit at once")
            elif acknowledge is None:
                _quit(received, _stopped_by(received))
            else:
                self._stop = received
        if acknowledge is None:
            _say(f"{received.name}: there is nothing to save now")
        else:
            # In a thread of its own, as it may wait for the terminal, and a second signal must not.
            threading.Thread(target=acknowledge, args=(received,), daemon=True).start()


hung_up = threading.Event()
"""Whether the terminal is gone, or somebody said so: what is printed may be lost."""

_process: Listener | None = None
_advice = "nothing was saved, and the same command starts anew"


def listen() -> None:
    """Answers the signals of this process, from now to its end."""
    global _process
    _process = Listener()


@contextmanager
def listening() -> Iterator[Listener]:
    """The listener of this process, or one for the time being."""
    if _process:
        yield _process
        return
    listener = Listener()
    try:
        yield listener
    finally:
        listener.close()


def advise(text: str) -> None:
    """Sets what is said from now on where a signal ends the process, such as how to go on."""
    global _advice
    _advice = text


def ignore() -> None:
    """Ignores signals, where all is done and the interpreter takes itself apart."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _stopped_by(received: signal.Signals) -> str:
    return f"stopped by {received.name}; {_advice}"


def _quit(received: signal.Signals, text: str) -> None:
    """Ends the process without asking the main thread, which may be busy or hold locks."""
    for stream in (1, 2):
        if os.isatty(stream):
            _write(stream, b"\r\x1b[2K\x1b[?25h")  # the bar's line, and its hidden cursor
            break
    _say(text)
    os._exit(128 + received)


def _say(text: str) -> None:
    _write(2, f"{text}\n".encode())


def _write(stream: int, content: bytes) -> None:
    """Writes where it can be written to without waiting."""
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [stream], [], 0)[1]:
            os.write(stream, content)
