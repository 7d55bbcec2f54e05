"""When a checkpoint is due inside an epoch."""

import time


class Pace:
    """Says when a checkpoint is due.

    - `every`: as in `TrainConfig.checkpoint_every`.
    """

    def __init__(self, every: int | str | None):
        self._steps = every if isinstance(every, int) else None
        self._seconds = 60.0 * int(every[:-1]) if isinstance(every, str) else None
        self.saved()

    def is_due(self, step: int) -> bool:
        """Whether one is, after a step."""
        if self._steps is not None:
            return step % self._steps == 0
        return self._seconds is not None and time.monotonic() - self._last >= self._seconds

    def saved(self) -> None:
        """There is one of now."""
        self._last = time.monotonic()
