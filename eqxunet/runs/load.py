"""A trained run, ready for inference."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float

from ..errors import InputError, IntegrityError
from ..evaluation import Calibration, Predictor, predictor
from ..models import UNet, build
from ..models.leaves import named_leaves, named_state, replace_leaves, replace_state, select
from ..tasks import AbstractTask
from ..training.checkpoint import Restored, restore
from .config import RunConfig
from .directory import RUNS
from .documents import is_number, read_json, shown
from .observer import Observer


@dataclass(frozen=True)
class Run:
    """A trained run: its best checkpoint, ready for inference.

    - `model`: in inference mode.
    - `state`: BatchNorm's statistics.
    - `step`: after which the checkpoint was saved.
    - `calibration`: taken on validation images when training ended; none where it did not.
    """

    model: UNet
    state: eqx.nn.State
    config: RunConfig
    task: AbstractTask
    step: int
    directory: Path
    calibration: Calibration | None = None

    def predictor(self, *, batch_size: int = 16, flip: bool = False) -> Predictor:
        """Its way from images to logits, and with its calibration to probabilities."""
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        return Predictor(self.model, self.state, self.task, batch_size, temperature, flip=flip)

    def __repr__(self) -> str:
        return (
            f"Run({str(self.directory)!r}: {self.config.model.encoder}, {self.config.task} on "
            f"{self.config.data}, best at step {self.step})"
        )


def load_run(
    directory: str | os.PathLike[str] = RUNS / "latest", *, observer: Observer | None = None
) -> Run:
    """Loads the best checkpoint of a run, with the model in inference mode.

    Warns of damaged ones that were passed over, through the observer if there is one.

    Raises InputError where the directory holds no run, or none that was validated, IntegrityError
    where every checkpoint is damaged.
    """
    directory = Path(os.path.realpath(directory))
    config = RunConfig.read(directory)
    restored = restore(directory / "checkpoints", "best")
    if restored is None:
        if restore(directory / "checkpoints") is None:
            raise InputError(
                f"{directory}: nothing was saved yet; wait for its first epoch to end, or start "
                f"it anew:\n{config.command(directory)}"
            )
        raise InputError(
            f"{directory}: no validated checkpoint yet; go on with `train --resume --run "
            f"{directory}` until an epoch ends"
        )
    for damage in restored.damaged:
        (observer or Observer()).warn(f"a damaged checkpoint was passed over: {damage}")
    if (values := restored.about.get("config")) is not None:
        saved = RunConfig.from_values(values, f"{directory}: a checkpoint's configuration")
        for name in ("model", "task", "labels", "classes"):
            if getattr(saved, name) != getattr(config, name):
                raise IntegrityError(
                    f"{directory}: its config.json was changed since its checkpoint was saved: "
                    f"{name} was {shown(getattr(saved, name))}; undo that"
                )
    return _as_run(directory, config, restored)


def _as_run(directory: Path, config: RunConfig, restored: Restored) -> Run:
    if config.labels is None:
        raise IntegrityError(
            f"{directory}: its config.json does not say what its labels are; train anew"
        )
    task = config.make_task()
    # Shapes alone: drawing random weights would take seconds.
    model, state = eqx.filter_eval_shape(
        build, config.model, outputs=task.outputs, key=jax.random.key(0)
    )
    leaves, statistics = (select(restored.arrays, part) for part in ("model", "state"))
    missing = named_leaves(model).keys() - leaves.keys()
    missing |= named_state(model, state).keys() - statistics.keys()
    if missing:
        raise IntegrityError(
            f"{directory}: the checkpoint lacks {sorted(missing)[:3]} and is perhaps of an older "
            "eqxunet; train anew"
        )
    model = eqx.nn.inference_mode(replace_leaves(model, leaves))
    state = replace_state(model, state, statistics)
    calibration = _read_calibration(directory, restored.step)
    return Run(model, state, config, task, restored.step, directory, calibration)


def calibration_file(directory: Path) -> Path:
    """Where a run keeps its calibration."""
    return directory / "calibration.json"


def _read_calibration(directory: Path, step: int) -> Calibration | None:
    """The calibration of the weights of a step, if there is one."""
    path = calibration_file(directory)
    try:
        values = read_json(path)
        calibration = Calibration(**values) if values.pop("step") == step else None
        if calibration is not None and not _is_calibration(calibration):
            raise ValueError("its values cannot be those of a calibration")
        return calibration
    except FileNotFoundError:
        return None
    except (IntegrityError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(
            f"{path}: cannot be read ({shown(error).removeprefix(f'{path}: ')}); remove it, and"
            f" `eval --threshold auto` makes it anew"
        ) from error


def _is_calibration(values: Calibration) -> bool:
    numbers = (values.temperature, values.ece, values.ece_before, values.threshold)
    tables = [values.bins, *([] if values.curve is None else [values.curve])]
    names = [("confidence", "accuracy", "count"), ("threshold", "dice", "precision", "recall")]
    return (
        all(map(is_number, numbers))
        and values.temperature > 0
        and 0 <= values.threshold <= 1
        and all(map(_is_table, tables, names))
    )


def _is_table(table: object, names: tuple[str, ...]) -> bool:
    """Whether it holds columns of numbers that are as long as each other."""
    if not isinstance(table, dict) or table.keys() != set(names):
        return False
    columns = table.values()
    return (
        all(isinstance(column, list) and all(map(is_number, column)) for column in columns)
        and len({len(column) for column in columns}) == 1
    )


Picture = predictor.Picture
Probabilities = predictor.Probabilities


RunLike = Run | str | os.PathLike[str]
"""A run, or the directory of one."""


def as_run(run: RunLike, observer: Observer | None = None) -> Run:
    """The run itself, loaded where its directory is given."""
    return run if isinstance(run, Run) else load_run(run, observer=observer)


@overload
def predict(
    run: RunLike, image: Picture, /, *, tile: int | None = None, flip: bool = False
) -> Probabilities: ...
@overload
def predict(
    run: RunLike, images: predictor.Pictures, /, *, tile: int | None = None, flip: bool = False
) -> list[Float[np.ndarray, "..."]]: ...
@overload
def predict(
    model: UNet,
    state: eqx.nn.State,
    image: Picture,
    /,
    *,
    tile: int | None = None,
    flip: bool = False,
) -> Probabilities: ...
@overload
def predict(
    model: UNet,
    state: eqx.nn.State,
    images: predictor.Pictures,
    /,
    *,
    tile: int | None = None,
    flip: bool = False,
) -> list[Float[np.ndarray, "..."]]: ...
def predict(
    model: RunLike | UNet, *rest: Any, tile: int | None = None, flip: bool = False
) -> Probabilities | list[Float[np.ndarray, "..."]]:
    """Returns each pixel's probability, of foreground or of each class, at the image's own size.

    `predict(run, image)`, where a run or its directory is given and its temperature is used, or
    `predict(model, state, image)`. The image is resized to the size that
    the model was trained at; the logits are resized back, and only then turned into probabilities.

    Arguments:

    - `image`: a file, a Pillow image, or pixels: RGB, RGBA (transparency is dropped) or grey, of
      8 bits or as floating point in [0, 1]. A list of images gives a list.
    - `tile`: predict at the image's own resolution, in tiles of so many pixels a side, as
      `Predictor.bands` does.
    - `flip`: take the mean of the probabilities of the image and its mirror image.

    Raises InputError for a file that is no image, ValueError for other pixels.
    """
    if isinstance(model, UNet):
        state, image = rest
        return predictor.predict(model, state, image, tile=tile, flip=flip)
    (image,) = rest
    return as_run(model).predictor(flip=flip).probabilities(image, tile=tile)
