"""A run's best checkpoint, applied to image files: all that the command `predict` does."""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..data.complaints import FileError
from ..data.inputs import find_images
from ..errors import InputError
from ..evaluation import Predictor
from ..models.leaves import named_leaves, named_state
from .calibration import with_threshold
from .load import RunLike, as_run
from .observer import Observer
from .outputs import ENDINGS, check_writable, plan, read_record
from .pipeline import Job, predict_all


@dataclass(frozen=True)
class Predictions:
    """What became of image files.

    - `written`, `kept`: the file NAME.png of each image; `kept` were there already.
    - `failed`: an error for each image that could not be used.
    - `ignored`: how many files of folders are no images.
    - `seconds`: from the first image to the last, compiling included.
    """

    written: tuple[Path, ...]
    kept: tuple[Path, ...]
    failed: tuple[FileError, ...]
    ignored: int
    seconds: float


def predict_files(
    run: RunLike,
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] = "predictions",
    *,
    threshold: float | Literal["auto"] = 0.5,
    tile: int | None = None,
    flip: bool = False,
    overlay: bool = False,
    probability: bool = False,
    recursive: bool = False,
    overwrite: bool = False,
    shard: tuple[int, int] = (1, 1),
    observer: Observer | None = None,
) -> Predictions:
    """Predicts image files, each at its own size and upright, into files of a folder.

    For an image NAME.jpg that is NAME.png: 0 and 255 for foreground, or class indices with a
    palette of the task's colours. On request NAME.probability.png has 16 bits, round(65535 p), or,
    of several classes, NAME.probability.npy float16 of shape (h, w, k); NAME.overlay.png is the
    image with the prediction over it. Images in folders keep their paths in there, and images that
    would have one name get longer ones.

    A file that is there is whole. What is there already of the same weights, image and options is
    kept, so that a job that was stopped goes on; what is there of others is an error.

    Arguments:

    - `inputs`: files, folders, and patterns such as `photos/**/*.jpg`.
    - `run`: a run, or its directory.
    - `threshold`: probability that counts as foreground; `"auto"` takes the one with the best Dice
      on the run's validation images.
    - `tile`, `flip`: as in `Predictor`; without `tile` images are resized to the model's size.
    - `overlay`, `probability`: write these files too.
    - `recursive`: search the folders inside folders.
    - `overwrite`: predict all images, and replace what is there.
    - `shard`: (i, n), the i-th of n parts of the sorted images, from 1. Names do not depend on it.
    - `observer`: is told what goes on.

    Raises InputError where an input is not there or has no images, a number is meaningless, or
    something else is in the place of a file; UnavailableError where files cannot be written. An
    image that cannot be used stops nothing.
    """
    observer = observer or Observer()
    run = as_run(run, observer)
    _check_numbers(tile, shard)
    several = [inputs] if isinstance(inputs, str | os.PathLike) else list(inputs)
    folder = Path(out)
    found = find_images(
        several,
        recursive=recursive,
        endings=tuple(ENDINGS.values()),
        is_ignored=lambda path: _is_prediction(path, folder),
    )
    run, threshold = with_threshold(run, threshold, observer)
    predictor = run.predictor(flip=flip)
    is_binary = run.task.outputs == 1
    kinds = ["probability" if is_binary else "probabilities"] if probability else []
    kinds += ["overlay"] if overlay else []
    conditions = {
        "run": run.directory.name,
        "step": run.step,
        "weights": _digest(predictor),
        "threshold": threshold if is_binary else None,
        "tile": tile,
        "flip": flip,
    }
    part, parts = shard
    mine = found.images[part - 1 :: parts]
    todo, kept, failed = plan(mine, found.images, folder, kinds, conditions, overwrite=overwrite)
    check_writable(folder)
    written: list[Path] = []
    began = time.perf_counter()
    job = Job(predictor, threshold, tile, tuple(kinds))
    with contextlib.closing(predict_all(job, todo, observer)) as results:
        for output, error in results:
            if error is None:
                written.append(output.files["mask"])
            else:
                failed.append(error)
    seconds = time.perf_counter() - began
    return Predictions(tuple(written), tuple(kept), tuple(failed), found.ignored, seconds)


def _check_numbers(tile: int | None, shard: tuple[int, int]) -> None:
    if tile is not None and tile < 1:
        raise InputError(f"a tile has 1 pixel at least, not {tile}; 512 is a good size")
    part, parts = shard
    if not 1 <= part <= parts:
        raise InputError(f"there is no part {part} of {parts}; count from 1/{parts} up")


def _is_prediction(path: Path, out: Path) -> bool:
    """Whether a file is one of ours, of which nothing is to be made when a job goes on."""
    return (
        path.suffix == ".png"
        and path.is_relative_to(os.path.abspath(out))
        and bool(read_record(path))
    )


def _digest(predictor: Predictor) -> str:
    """Tells weights, and what else of a run predictions depend on, from others."""
    model, state = predictor.model, predictor.state
    digest = hashlib.sha256(repr((model.size, float(predictor.temperature))).encode())
    arrays: dict[str, Any] = {**named_leaves(model), **named_state(model, state)}
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.asarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]
