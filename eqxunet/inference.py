"""Inference on one image."""

import equinox as eqx
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from scipy.special import expit

from .data.augment import to_float
from .evaluation import forward
from .models import AbstractUNet


def predict(
    model: AbstractUNet, state: eqx.nn.State, image: UInt8[np.ndarray, "h w 3"]
) -> Float[np.ndarray, "h w"]:
    """Returns each pixel's probability of foreground, at the image's own size.

    The image is resized to the size that the model was trained at; the logits are resized back,
    and only then turned into probabilities.

    Arguments:

    - `model`: in inference mode.
    - `image`: RGB.
    """
    h, w, _ = image.shape
    size = (model.size, model.size)
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    logits = forward(model, state, to_float(small[None]))[0]
    # Pillow, since jax.image.resize would compile anew for every size of image.
    large = Image.fromarray(np.asarray(logits)).resize((w, h), Image.Resampling.BILINEAR)
    return expit(np.asarray(large))
