"""Images to logits and probabilities: the one way that scores, pictures and predictions share."""

import dataclasses
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ..config import Precision
from ..data.augment import to_float
from ..data.decoding import resize_image
from ..errors import InputError
from ..models import UNet, batched, fold
from ..tasks import AbstractTask, Binary, Semantic
from .images import MAX_TILED_PIXELS, Picture, Pictures, as_rgb
from .tiles import Band, bands, resize_logits, tiling

OVERLAP = 14
"""Of neighbouring tiles, in the encoder's deepest strides."""

Probabilities = Float[np.ndarray, "h w"] | Float[np.ndarray, "h w k"]


@eqx.filter_jit
def forward(
    model: UNet, state: eqx.nn.State, images: Float[Array, "b h w c"]
) -> Float[Array, "b h w k"]:
    """Logits of a batch; the model is put into inference mode."""
    model = eqx.nn.inference_mode(fold(model, state))
    return batched(model)(images, state)[0].astype(jnp.float32)


def _as_array(value: float | Float[np.ndarray, ""]) -> Float[np.ndarray, ""]:
    """Data of a compiled program, which is the same for all temperatures."""
    return np.asarray(value, np.float32)


class Predictor(eqx.Module):
    """A model's way from images to logits, the same for scores, reports and files.

    - `batch_size`: images that are computed at a time; the last batch is padded to it.
    - `temperature`: divides the logits before they become probabilities (Guo et al., "On
      Calibration of Modern Neural Networks", 2017).
    - `flip`: take the mean of the probabilities of an image and of its mirror image (left to
      right). The logits are then those of that mean.
    - `precision`: dtype that the network computes in.

    `eqx.filter_shard(predictor, device)` moves it, and all that it computes, to a device.
    """

    model: UNet
    state: eqx.nn.State
    task: AbstractTask
    batch_size: int = eqx.field(static=True, default=16)
    temperature: Float[Array | np.ndarray, ""] = eqx.field(default=1.0, converter=_as_array)
    flip: bool = eqx.field(static=True, default=False)
    precision: Precision = eqx.field(static=True, default="float32")

    def forward(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        """Logits of one batch, at its size; may be traced."""
        images = images.astype(self.precision)
        if self.flip:
            temperature = jnp.asarray(self.temperature, jnp.float32)
            return _forward_both(self.model, self.state, images, temperature)
        return forward(self.model, self.state, images)

    def logits(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w k"]:
        """Logits of images of one size, at that size."""
        batches = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch)), *[(0, 0)] * 3]
            batches.append(np.asarray(self.forward(to_float(np.pad(batch, padding))))[: len(batch)])
        return np.concatenate(batches)

    def bands(
        self, image: UInt8[np.ndarray, "h w c"], tile: int, *, overlap: int | None = None
    ) -> Iterator[Band]:
        """Yields the logits of an image of any size, at its own resolution, in bands of rows.

        Each band comes with the number of its first row, from the top down; what is held in memory
        is one row of tiles. Tiles start at multiples of the encoder's deepest stride, so that all
        pool alike. Where they overlap, logits go over from one to the next, and those next to a
        tile's border, which depend on padding in place of the image, have no weight.

        With the plain U-Net, whose norms are BatchNorm, this is what the whole image gives in one
        pass, if its sides are multiples of that stride; otherwise its last rows and columns are
        mirrored up to the next one. The statistics of a GroupNorm, as of SERL's ResNet-10, are a
        tile's own, and depend on what it shows.

        Arguments:

        - `tile`: side in pixels of what a tile adds to the image. Images that fit into one tile
          are continued by their mirror image, to a multiple of a quarter of it.
        - `overlap`: how many pixels of its neighbours a tile sees, half of them on each side; by
          default `OVERLAP` of the deepest strides, as far as the plain U-Net looks.

        Raises InputError for a tile below 1.
        """
        if tile < 1:
            raise InputError(f"a tile has 1 pixel at least, not {tile}; 512 is a good size")
        stride = self.model.encoder.strides[-1]
        overlap = OVERLAP * stride if overlap is None else overlap
        rows, columns = (tiling(size, tile, overlap, stride) for size in image.shape[:2])
        at_a_time = self.batch_size * self.model.size**2 // (rows.side * columns.side)
        return bands(
            lambda tiles: self.forward(to_float(tiles)),
            image,
            rows,
            columns,
            outputs=self.model.outputs,
            batch_size=max(1, at_a_time),
        )

    def probability(
        self, logits: Float[Array | np.ndarray, "*b h w k"]
    ) -> Float[Array | np.ndarray, "..."]:
        """Of each class; of foreground alone, without an axis for it, where that is all."""
        return self.task.probability(logits / self.temperature)

    def prediction(
        self,
        logits: Float[Array | np.ndarray, "*b h w k"],
        threshold: Float[Array, ""] | float = 0.5,
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        """The class of each pixel."""
        return self.task.prediction(logits / self.temperature, threshold)

    def probabilities(
        self, images: Picture | Pictures, *, tile: int | None = None
    ) -> Probabilities | list[Float[np.ndarray, "..."]]:
        """Each pixel's probability, at an image's own size; of several images, a list.

        Arguments and errors are those of `eqxunet.predict`.
        """
        pictures = images if isinstance(images, list) else [images]
        found = list(self._resized(pictures) if tile is None else self._tiled(pictures, tile))
        return found if isinstance(images, list) else found[0]

    def _tiled(self, pictures: Pictures, tile: int) -> Iterator[Probabilities]:
        for picture in pictures:
            pixels = as_rgb(picture, max_pixels=MAX_TILED_PIXELS)
            parts = [self.probability(logits) for _, logits in self.bands(pixels, tile)]
            yield np.concatenate(parts)

    def _resized(self, pictures: Pictures) -> Iterator[Probabilities]:
        at_a_time = 1 if len(pictures) == 1 else self.batch_size
        predictor = dataclasses.replace(self, batch_size=at_a_time)
        for start in range(0, len(pictures), at_a_time):
            batch = [as_rgb(picture) for picture in pictures[start : start + at_a_time]]
            small = np.stack([resize_image(image, self.model.size) for image in batch])
            for image, logits in zip(batch, predictor.logits(small), strict=True):
                yield np.asarray(self.probability(resize_logits(logits, image.shape[:2])))


@eqx.filter_jit
def _forward_both(
    model: UNet,
    state: eqx.nn.State,
    images: Float[Array, "b h w c"],
    temperature: Float[Array, ""],
) -> Float[Array, "b h w k"]:
    """Logits of the mean of the probabilities of images and of their mirror images."""
    plain = forward(model, state, images) / temperature
    mirrored = forward(model, state, images[:, :, ::-1])[:, :, ::-1] / temperature
    if model.outputs > 1:
        mean = jnp.logaddexp(jax.nn.log_softmax(plain), jax.nn.log_softmax(mirrored)) - jnp.log(2.0)
    else:  # the factor of 1/2 is in both
        foreground, background = (
            jnp.logaddexp(jax.nn.log_sigmoid(sign * plain), jax.nn.log_sigmoid(sign * mirrored))
            for sign in (1, -1)
        )
        mean = foreground - background
    return mean * temperature


def predict(
    model: UNet,
    state: eqx.nn.State,
    image: Picture | Pictures,
    *,
    tile: int | None = None,
    flip: bool = False,
) -> Probabilities | list[Float[np.ndarray, "..."]]:
    """Returns each pixel's probability, of foreground or of each class, at the image's own size.

    The image is resized to the size that the model was trained at; the logits are resized back,
    and only then turned into probabilities. With `tile`, it is not resized.

    Arguments:

    - `image`: as `as_rgb` takes it, or a list of such.
    - `tile`, `flip`: as in `Predictor`.
    """
    classes = tuple(map(str, range(model.outputs)))
    task = Binary() if model.outputs == 1 else Semantic(classes)
    return Predictor(model, state, task, flip=flip).probabilities(image, tile=tile)
