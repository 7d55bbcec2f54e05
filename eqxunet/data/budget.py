"""How much threads decode at a time, all together."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """An amount that threads share: many small jobs run at once, and large ones one by one.

    Arguments:

    - `total`: what is shared. A job that needs more runs alone.
    """

    def __init__(self, total: int):
        self._total = self._left = total
        self._change = threading.Condition()

    @contextmanager
    def taking(self, amount: int) -> Iterator[None]:
        """Waits until so much is left, and gives it back at the end. Not to be nested."""
        amount = min(amount, self._total)
        with self._change:
            self._change.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._change:
                self._left += amount
                self._change.notify_all()
