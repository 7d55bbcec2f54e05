"""Checkpoints of a training: written off the step's path, of which the latest and the best stay."""

import contextlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped

from ..errors import IntegrityError, UnavailableError
from ..storage import delete
from . import checkpoint_files as files

BEST = "val/iou"
"""The metric by which the best checkpoint is chosen; higher is better."""

_LATEST = 3  # that are kept, beside the best
_RELISTS = 20  # how often a reader starts over because the writer removed what it was reading


class Restored(NamedTuple):
    """A checkpoint that was read and verified; `damaged` lists those that were passed over."""

    step: int
    arrays: dict[str, Shaped[np.ndarray, "..."]]
    metrics: dict[str, float]
    about: dict[str, Any]
    damaged: list[str]


class Writer:
    """Saves checkpoints into a directory, of which it keeps the latest three and the best one.

    There must be one at a time: it removes what an earlier writer left unfinished, and with each
    step that it saves those after it, which a reader passed over. It is a context manager, which on
    leaving waits until everything is written; without it the last save may be lost.

    Raises IntegrityError where a newer eqxunet has saved, and UnavailableError where nothing can be
    written.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._scores = _verified_scores(directory)
            self._clean()
        except OSError as error:
            raise self._unwritten(error) from error
        # It alone hashes, writes and removes.
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UnavailableError:
            if kind is None:  # otherwise what is under way says more
                raise
        finally:
            self._thread.shutdown()

    def save(
        self,
        step: int,
        arrays: Mapping[str, Shaped[Array | np.ndarray, "..."]],
        metrics: Mapping[str, float] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves named arrays and what belongs to them, all of it or nothing.

        The writing goes on in the background. What is then among the checkpoints is on the disk.

        Raises UnavailableError where the save before failed.

        Arguments:

        - `metrics`: of this step; checkpoints without `BEST` are never the best.
        - `about`: whatever else is to be read with the arrays, as JSON has it.
        """
        # Copies, since the next step overwrites the donated originals while these are written.
        copies = {name: np.array(array) for name, array in jax.device_get(dict(arrays)).items()}
        values = json.loads(
            json.dumps({"metrics": dict(metrics or {}), "about": dict(about or {})})
        )
        self.wait()
        self._pending = self._thread.submit(self._write, step, copies, values)

    def _write(self, step: int, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        try:
            files.write(self._directory / str(step), step, arrays, values)
            self._prune(step, values["metrics"].get(BEST))
        except MemoryError:
            raise
        # TensorStore raises ValueError on a full disk, and Orbax whatever it likes.
        except Exception as error:
            with contextlib.suppress(OSError):  # the next writer cleans it
                self._clean()
            raise self._unwritten(error) from error

    def _prune(self, step: int, score: float | None) -> None:
        """Removes all but the latest and the best up to a step that was saved."""
        scores = {s: value for s, value in self._scores.items() if s < step} | {step: score}
        kept = {*sorted(scores)[-_LATEST:], *_ranked(scores)[:1]}
        self._scores = {s: scores[s] for s in kept}
        for s in _steps(self._directory).keys() - kept:
            files.remove(self._directory / str(s))

    def _clean(self) -> None:
        for path in self._directory.iterdir():
            if files.is_unfinished(path):
                delete(path)

    def _unwritten(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"{self._directory}: the checkpoint cannot be written ({files.brief(error)}); free "
            "space, or name another --run"
        )

    def wait(self) -> None:
        """Waits until the last save is on the disk; raises UnavailableError where that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def restore(directory: Path, which: Literal["latest", "best"] = "latest") -> Restored | None:
    """Reads and verifies the latest or the best checkpoint, or None where there is none.

    The best is chosen among those that were saved with `BEST`; of equals it is the first. A damaged
    one is passed over for the next latest or next best. Changes nothing in the directory, in which
    a `Writer` may be at work.

    Raises IntegrityError where all are damaged, or where a newer eqxunet wrote any of them, and
    UnavailableError where the directory cannot be read.
    """
    for _ in range(_RELISTS):
        try:
            return _restore(directory, which)
        except _RemovedMeanwhile:
            continue
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(
                f"{directory}: cannot be read ({error.strerror}); mend that, or name another run"
            ) from error
    raise IntegrityError(f"{directory}: its checkpoints are removed faster than they are read")


class _RemovedMeanwhile(Exception):
    pass


def _restore(directory: Path, which: Literal["latest", "best"]) -> Restored | None:
    steps = _steps(directory)
    notes: dict[int, files.Note] = {}
    damaged: dict[int, str] = {}

    def pass_over(step: int, error: files.Damaged) -> None:
        if _steps(directory).get(step) != steps[step]:
            raise _RemovedMeanwhile from error
        damaged[step] = str(error)

    for step in steps:
        try:
            notes[step] = files.read_note(directory / str(step))
        except files.Damaged as error:
            pass_over(step, error)
    if which == "best":
        order = _ranked({step: note.metrics.get(BEST) for step, note in notes.items()})
    else:
        order = sorted(notes, reverse=True)
    for step in order:
        try:
            arrays = files.read_arrays(directory / str(step), notes[step].digests)
        except files.Damaged as error:
            pass_over(step, error)
        else:
            # One whose metrics are damaged may have been the best.
            told = [text for s, text in sorted(damaged.items()) if which == "best" or s > step]
            return Restored(step, arrays, notes[step].metrics, notes[step].about, told)
    if damaged:
        told = [text for _, text in sorted(damaged.items())]
        raise IntegrityError(
            f"{directory}: every checkpoint is damaged ({'; '.join(told)}); train anew"
        )
    return None


def _verified_scores(directory: Path) -> dict[int, float | None]:
    """By which the best is chosen, of every step whose note is intact, and the best's arrays."""
    scores = {}
    for step in _steps(directory):
        with contextlib.suppress(files.Damaged):
            scores[step] = files.read_note(directory / str(step)).metrics.get(BEST)
    for step in _ranked(scores):  # one that is damaged would stay the best for ever
        try:
            files.read_arrays(directory / str(step), files.read_note(directory / str(step)).digests)
            break
        except files.Damaged:
            del scores[step]
    return scores


def _ranked(scores: Mapping[int, float | None]) -> list[int]:
    """The steps that have a score, the best first; of equals the first."""
    found = [(-score, step) for step, score in scores.items() if score is not None]
    return [step for _, step in sorted(found)]


def _steps(directory: Path) -> dict[int, int]:
    """The inode of each step's folder, which tells whether another took its place."""
    with os.scandir(directory) as entries:
        found = {entry.name: entry.inode() for entry in entries}
    return {
        int(name): inode
        for name, inode in found.items()
        if name.isascii() and name.isdigit() and str(int(name)) == name
    }
