"""Checkpoints: named arrays in Orbax, with a digest of each, since Orbax reads a flipped bit back
without a word."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Shaped
from orbax.checkpoint import v1 as ocp

from .errors import IntegrityError

SCHEMA = 1
BEST = "val/iou"
"""The metric by which the best checkpoint is chosen; higher is better."""

_policies = ocp.training.preservation_policies


class Restored(NamedTuple):
    """A checkpoint that was read and verified; `damaged` lists those that were passed over."""

    step: int
    arrays: dict[str, Shaped[np.ndarray, "..."]]
    metrics: dict[str, float]
    damaged: list[str]


def open_checkpoints(directory: Path) -> ocp.training.Checkpointer:
    """Opens a directory of checkpoints that keeps the latest three and the best one."""
    keep = [
        _policies.LatestN(3),
        _policies.BestN(
            get_metric_fn=lambda metrics: metrics[BEST],
            n=1,
            keep_checkpoints_without_metrics=False,
        ),
    ]
    return ocp.training.Checkpointer(
        str(directory.absolute()),
        # Orbax declares the protocol with a stricter signature than its own policies have.
        preservation_policy=_policies.AnyPreservationPolicy(keep),  # pyright: ignore[reportArgumentType]
        cleanup_tmp_directories=True,
    )


def save(
    checkpoints: ocp.training.Checkpointer,
    step: int,
    arrays: Mapping[str, Shaped[Array | np.ndarray, "..."]],
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Saves named arrays; the writing goes on in the background, atomically.

    Arguments:

    - `metrics`: of this step; checkpoints without any are never the best.
    """
    # Copies, since the next step overwrites the donated originals while these are written.
    copies: dict[str, Any] = {name: np.array(array) for name, array in arrays.items()}
    digests = {name: _digest(array) for name, array in copies.items()}
    about: dict[str, Any] = {"schema": SCHEMA, "sha256": digests}
    checkpoints.save_async(
        step,
        copies,
        force=True,  # else a save that is still under way would drop this one
        overwrite=True,
        metrics=dict(metrics) if metrics else None,
        custom_metadata=about,
    )


def restore(
    checkpoints: ocp.training.Checkpointer, which: Literal["latest", "best"] = "latest"
) -> Restored | None:
    """Reads and verifies the latest or the best checkpoint, or None where there is none.

    A damaged one is passed over for the next latest or next best. Raises IntegrityError where all
    are damaged, or where a newer eqxunet wrote them.
    """
    found: list[Any] = sorted(
        checkpoints.checkpoints, key=lambda checkpoint: checkpoint.step, reverse=True
    )
    if which == "best":
        scored = [checkpoint for checkpoint in found if checkpoint.metrics]
        found = sorted(scored, key=lambda c: c.metrics[BEST], reverse=True) or found
    damaged = []
    for checkpoint in found:
        try:
            arrays = _load(checkpoints, checkpoint.step)
        except IntegrityError as error:
            damaged.append(str(error))
        else:
            return Restored(checkpoint.step, arrays, checkpoint.metrics or {}, damaged)
    if damaged:
        raise IntegrityError(
            f"{checkpoints.directory}: every checkpoint is damaged ({'; '.join(damaged)})"
        )
    return None


def _load(checkpoints: ocp.training.Checkpointer, step: int) -> dict[str, np.ndarray]:
    try:
        metadata = checkpoints.metadata(step)
        described = metadata.metadata
        note: Any = metadata.custom_metadata
        template = {name: np.empty(array.shape, array.dtype) for name, array in described.items()}
        arrays = checkpoints.load(step, template)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"step {step} cannot be read: {error}") from error
    if note["schema"] > SCHEMA:
        raise IntegrityError(f"step {step} is of a newer eqxunet: upgrade eqxunet to read it")
    wrong = [name for name in note["sha256"] if _digest(arrays[name]) != note["sha256"][name]]
    if wrong:
        raise IntegrityError(f"step {step} has other bytes than were saved in {', '.join(wrong)}")
    return arrays


def _digest(array: Shaped[np.ndarray, "..."]) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
