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
from ..evaluation import Predictor, predictor
from ..models import UNet, build
from ..models.leaves import named_leaves, named_state, replace_leaves, replace_state, select
from ..tasks import AbstractTask
from ..training.checkpoint import Restored, restore
from .config import RunConfig
from .directory import RUNS
from .observer import Observer


@dataclass(frozen=True)
class Run:
    """A trained run: its best checkpoint, ready for inference.

    - `model`: in inference mode.
    - `state`: BatchNorm's statistics.
    - `step`: after which the checkpoint was saved.
    """

    model: UNet
    state: eqx.nn.State
    config: RunConfig
    task: AbstractTask
    step: int
    directory: Path

    def predictor(self, *, batch_size: int = 16, flip: bool = False) -> Predictor:
        """Its way from images to logits."""
        return Predictor(self.model, self.state, self.task, batch_size, flip=flip)

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
    directory = Path(directory).resolve()
    config = RunConfig.read(directory)
    restored = restore(directory / "checkpoints", "best")
    if restored is None:
        if restore(directory / "checkpoints") is None:
            raise InputError(
                f"{directory}: nothing was saved yet; wait for its first epoch to end, or train "
                "anew with the options in its config.json and --overwrite"
            )
        raise InputError(
            f"{directory}: no validated checkpoint yet; go on with `train --resume --run "
            f"{directory}` until an epoch ends"
        )
    for damage in restored.damaged:
        (observer or Observer()).warn(f"a damaged checkpoint was passed over: {damage}")
    return _as_run(directory, config, restored)


def _as_run(directory: Path, config: RunConfig, restored: Restored) -> Run:
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
    return Run(model, state, config, task, restored.step, directory)


Picture = predictor.Picture
Probabilities = predictor.Probabilities


@overload
def predict(
    run: Run, image: Picture, /, *, tile: int | None = None, flip: bool = False
) -> Probabilities: ...
@overload
def predict(
    run: Run, images: predictor.Pictures, /, *, tile: int | None = None, flip: bool = False
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
    model: Run | UNet, *rest: Any, tile: int | None = None, flip: bool = False
) -> Probabilities | list[Float[np.ndarray, "..."]]:
    """Returns each pixel's probability, of foreground or of each class, at the image's own size.

    `predict(run, image)`, or `predict(model, state, image)`. The image is resized to the size that
    the model was trained at; the logits are resized back, and only then turned into probabilities.

    Arguments:

    - `image`: a file, a Pillow image, or pixels: RGB, RGBA (transparency is dropped) or grey, of
      8 bits or as floating point in [0, 1]. A list of images gives a list.
    - `tile`: predict at the image's own resolution, in tiles of so many pixels a side, as
      `Predictor.bands` does.
    - `flip`: take the mean of the probabilities of the image and its mirror image.

    Raises InputError for a file that is no image, ValueError for other pixels.
    """
    if isinstance(model, Run):
        (image,) = rest
        return model.predictor(flip=flip).probabilities(image, tile=tile)
    state, image = rest
    return predictor.predict(model, state, image, tile=tile, flip=flip)
