"""Images to logits and probabilities: the one way that scores, pictures and predictions share."""

import os

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8
from PIL import Image

from ..data.augment import to_float
from ..data.decoding import read_image, resize_image
from ..errors import InputError
from ..models import UNet, batched, fold
from ..tasks import AbstractTask, Binary, Semantic

Picture = (
    Shaped[np.ndarray, "h w *c"] | Shaped[Array, "h w *c"] | Image.Image | str | os.PathLike[str]
)


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
    """

    model: UNet
    state: eqx.nn.State
    task: AbstractTask
    batch_size: int = eqx.field(static=True, default=16)
    temperature: Float[Array | np.ndarray, ""] = eqx.field(default=1.0, converter=_as_array)

    def forward(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
        """Logits of one batch, at its size; may be traced."""
        return forward(self.model, self.state, images)

    def logits(self, images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w k"]:
        """Logits of images of one size, at that size."""
        batches = []
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            padding = [(0, self.batch_size - len(batch)), *[(0, 0)] * 3]
            batches.append(np.asarray(self.forward(to_float(np.pad(batch, padding))))[: len(batch)])
        return np.concatenate(batches)

    def logits_at_own_size(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w k"]:
        """Logits of an image that is resized to the model's size, resized back to its own."""
        small = resize_image(image, self.model.size)[None]
        return resize_logits(np.asarray(self.forward(to_float(small)))[0], image.shape[:2])

    def predict(self, image: Picture) -> Float[np.ndarray, "h w"] | Float[np.ndarray, "h w k"]:
        """Returns the probability of foreground, or of each class, at the image's own size.

        The image is resized to the size that the model was trained at; the logits are resized back,
        and only then turned into probabilities.

        Arguments:

        - `image`: as `as_rgb` takes it.
        """
        return np.asarray(self.probability(self.logits_at_own_size(as_rgb(image))))

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


def resize_logits(
    logits: Float[np.ndarray, "h w k"], size: tuple[int, int]
) -> Float[np.ndarray, "..."]:
    """Resizes logits bilinearly to a height and a width."""
    # Pillow, since jax.image.resize would compile anew for every size of image.
    height, width = size
    channels = [
        Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR)
        for channel in np.moveaxis(logits, -1, 0).copy()
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def predict(
    model: UNet, state: eqx.nn.State, image: Picture
) -> Float[np.ndarray, "h w"] | Float[np.ndarray, "h w k"]:
    """As `Predictor.predict`, of a model without a run."""
    classes = tuple(map(str, range(model.outputs)))
    task = Binary() if model.outputs == 1 else Semantic(classes)
    return Predictor(model, state, task).predict(image)


def as_rgb(image: Picture) -> UInt8[np.ndarray, "h w 3"]:
    """An image as RGB in 0..255.

    Arguments:

    - `image`: a file, a Pillow image, or pixels: RGB, RGBA (transparency is dropped) or grey, of
      8 bits or as floating point in [0, 1].

    Raises InputError for a file that is no image, ValueError for other pixels.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(image)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.size and pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(
                "floating-point pixels go from 0 to 1; divide by 255, or give them as uint8"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an image is uint8 or floating point of shape (h, w), (h, w, 3) or (h, w, 4), "
            f"not {pixels.dtype} of {pixels.shape}; one at a time"
        )
    return np.ascontiguousarray(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3)))


def _read_file(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image file as RGB; raises InputError where it cannot be."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return read_image(content, str(path))
