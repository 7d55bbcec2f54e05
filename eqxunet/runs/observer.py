"""What goes on in a run, for whoever shows it."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

from ..data.example import Progress

Request = Literal["go on", "save", "stop"]
"""What is to be done after a step: nothing, save a checkpoint, or save one and leave."""


class Observer:
    """Is told what goes on; this one shows warnings alone, and stops nothing."""

    def stage(self, text: str) -> AbstractContextManager[Any]:
        """What is being done while there is nothing to count."""
        return nullcontext()

    def progress(
        self, text: str, unit: Literal["items", "bytes"] = "items"
    ) -> AbstractContextManager[Progress]:
        """Work that can be counted; yields what is called with how much of how much is done."""
        return nullcontext(lambda done, total: None)

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[Callable[[int, str], Request]]:
        """Training; yields what is called with the steps done and a text, after each of them and
        before each validation.

        Where that returns "save", a checkpoint is saved at this step; where it returns "stop", it
        is saved and the run left, to be resumed.
        """
        yield lambda step, text: "go on"

    def record(self, record: Mapping[str, Any], is_best: bool) -> bool:
        """A line of `metrics.jsonl`; true ends the run here, as `patience` does."""
        return False

    def note(self, text: str) -> None:
        """What one may want to know."""

    def warn(self, text: str) -> None:
        """What one should know."""
        warnings.warn(text, stacklevel=2)
