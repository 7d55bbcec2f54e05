"""Checkpoints: named arrays in Orbax, with a digest of each, since Orbax reads a flipped bit back
without a word."""

import contextlib
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Shaped
from orbax.checkpoint import v1 as ocp

from ..errors import IntegrityError, UnavailableError

SCHEMA = 1
BEST = "val/iou"
"""The metric by which the best checkpoint is chosen; higher is better."""

_STEP = "step"  # kept beside the metrics
_policies = ocp.training.preservation_policies
_RELISTS = 20  # how often a reader starts over because the writer removed what it was reading
_REMOVAL_SECONDS = 1.0  # that the removal of a checkpoint may take


class Restored(NamedTuple):
    """A checkpoint that was read and verified; `damaged` lists those that were passed over."""

    step: int
    arrays: dict[str, Shaped[np.ndarray, "..."]]
    metrics: dict[str, float]
    about: dict[str, Any]
    damaged: list[str]


class Writer:
    """Saves checkpoints into a directory, of which it keeps the latest three and the best one.

    There must be one at a time: it removes what an earlier writer left unfinished. It is a
    context manager, which on leaving waits until everything is written; without it the last save
    may be lost.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        # It alone hashes and writes, and has the Checkpointer, which is for one thread.
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._pending: Future[None] | None = None
        self._thread.submit(self._open).result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except UnavailableError:
            if kind is None:  # otherwise what is under way says more
                raise
        finally:
            self._thread.submit(self._close)
            self._thread.shutdown()

    def save(
        self,
        step: int,
        arrays: Mapping[str, Shaped[Array | np.ndarray, "..."]],
        metrics: Mapping[str, float] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves named arrays; the writing goes on in the background, atomically.

        Raises UnavailableError where the save before failed.

        Arguments:

        - `metrics`: of this step; checkpoints without any are never the best.
        """
        # Copies, since the next step overwrites the donated originals while these are written.
        copies = {name: np.array(array) for name, array in jax.device_get(dict(arrays)).items()}
        self.wait()
        self._pending = self._thread.submit(self._write, step, copies, metrics, about)

    def _write(
        self,
        step: int,
        arrays: dict[str, np.ndarray],
        metrics: Mapping[str, float] | None,
        about: Mapping[str, Any] | None,
    ) -> None:
        digests = {name: _digest(array) for name, array in arrays.items()}
        note: dict[str, Any] = {"schema": SCHEMA, "sha256": digests, "about": dict(about or {})}
        with_step: dict[str, Any] | None = {**metrics, _STEP: step} if metrics else None
        checkpointer = self._checkpointer or self._open()
        try:
            checkpointer.save(
                step,
                arrays,
                force=True,  # whatever Orbax's own policy for saving
                overwrite=True,
                metrics=with_step,
                custom_metadata=note,
            )
        except Exception:
            # Orbax would raise this again at whatever is asked of it next.
            with contextlib.suppress(OSError, ValueError):
                self._close()
            raise

    def _open(self) -> ocp.training.Checkpointer:
        keep = [
            _policies.LatestN(3),
            _policies.BestN(
                # Of equals the first; Orbax only compares what this returns. Saves of earlier
                # versions have no step among their metrics.
                get_metric_fn=lambda metrics: (metrics[BEST], -metrics.get(_STEP, 0)),  # pyright: ignore[reportArgumentType]
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._checkpointer = ocp.training.Checkpointer(
            str(self._directory.absolute()),
            # Orbax declares the protocol with a stricter signature than its own policies have.
            preservation_policy=_policies.AnyPreservationPolicy(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )
        return self._checkpointer

    def _close(self) -> None:
        checkpointer, self._checkpointer = self._checkpointer, None
        if checkpointer is not None:
            checkpointer.close()

    def wait(self) -> None:
        """Waits until the last save is written; raises UnavailableError where that failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, ValueError) as error:  # TensorStore raises ValueError on a full disk
            raise UnavailableError(
                f"{self._directory}: the checkpoint cannot be written ({error}); free "
                "space, or name another --run"
            ) from error


def restore(directory: Path, which: Literal["latest", "best"] = "latest") -> Restored | None:
    """Reads and verifies the latest or the best checkpoint, or None where there is none.

    The best is chosen among those that were saved with metrics. A damaged one is passed over for
    the next latest or next best. Changes nothing in the directory, in which a `Writer` may be at
    work.

    Raises IntegrityError where all are damaged, or where a newer eqxunet wrote them.
    """
    if not directory.is_dir():
        return None
    for _ in range(_RELISTS):
        try:
            return _restore(directory, which)
        except _RemovedMeanwhile:
            continue
    raise IntegrityError(f"{directory}: its checkpoints are removed faster than they are read")


class _RemovedMeanwhile(Exception):
    pass


def _restore(directory: Path, which: Literal["latest", "best"]) -> Restored | None:
    try:
        checkpointer = ocp.training.Checkpointer(str(directory.absolute()))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _RemovedMeanwhile from error
    with checkpointer:
        try:
            found: list[Any] = sorted(checkpointer.checkpoints, key=lambda c: c.step, reverse=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _RemovedMeanwhile from error
        if which == "best":
            scored = [checkpoint for checkpoint in found if checkpoint.metrics]
            found = sorted(scored, key=lambda c: (-c.metrics[BEST], c.step))
        damaged = []
        for checkpoint in found:
            try:
                arrays, about = _load(checkpointer, checkpoint.step)
            except IntegrityError as error:
                if _is_removed(directory / str(checkpoint.step)):
                    raise _RemovedMeanwhile from error
                damaged.append(str(error))
            else:
                metrics = dict(checkpoint.metrics or {})
                metrics.pop(_STEP, None)
                return Restored(checkpoint.step, arrays, metrics, about, damaged)
    if damaged:
        raise IntegrityError(f"{directory}: every checkpoint is damaged ({'; '.join(damaged)})")
    return None


def _is_removed(path: Path) -> bool:
    """Whether a folder is no longer there, or not for long."""
    patience = time.monotonic() + _REMOVAL_SECONDS
    while path.exists():
        if time.monotonic() > patience:
            return False
        time.sleep(0.02)
    return True


def _load(
    checkpointer: ocp.training.Checkpointer, step: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        metadata = checkpointer.metadata(step)
        described = metadata.metadata
        note: Any = metadata.custom_metadata
        schema, digests = note["schema"], note["sha256"]
        template = {name: np.empty(array.shape, array.dtype) for name, array in described.items()}
        arrays = checkpointer.load(step, template)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"step {step} cannot be read: {error}") from error
    if schema > SCHEMA:
        raise IntegrityError(f"step {step} is of a newer eqxunet: upgrade eqxunet to read it")
    wrong = [name for name in digests if _digest(arrays[name]) != digests[name]]
    if wrong:
        raise IntegrityError(f"step {step} has other bytes than were saved in {', '.join(wrong)}")
    return arrays, note.get("about", {})


def _digest(array: Shaped[np.ndarray, "..."]) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
