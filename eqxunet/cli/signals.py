"""Ctrl-C and SIGTERM, answered at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(acknowledge: Callable[[signal.Signals], None]) -> Iterator[list[signal.Signals]]:
    """Collects the first SIGINT or SIGTERM, for a loop to end when it can; a second one quits.

    Python runs its handlers between two of its own instructions, so not while a step or the
    compiler runs. The bytes that it writes at every signal arrive at once, in a thread.

    Arguments:

    - `acknowledge`: called with the first signal, in a thread.
    """
    received: list[signal.Signals] = []
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def listen() -> None:
        while byte := os.read(reader, 1):
            number = byte[0]
            if number not in STOPPING:
                continue
            if received:
                _quit(number)
            received.append(signal.Signals(number))
            # In a thread of its own, as it may wait for the terminal, and a second signal must not.
            threading.Thread(target=acknowledge, args=(received[0],), daemon=True).start()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, lambda *_: None) for number in STOPPING}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        os.close(writer)
        thread.join()
        os.close(reader)


def _quit(number: int) -> None:
    """Ends the process without asking the main thread, which may be busy or hold locks."""
    for stream in (1, 2):
        if os.isatty(stream):
            os.write(stream, b"\r\x1b[2K\x1b[?25h")  # the bar's line, and its hidden cursor
            break
    os._exit(128 + number)
