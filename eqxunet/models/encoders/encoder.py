"""What an encoder is: an image to a pyramid of feature maps."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

if TYPE_CHECKING:  # which type checkers see through only so, says Equinox's documentation
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

Pyramid = tuple[Float[Array, "_ _ _"], ...]
"""Feature maps of one image, shallow to deep, each (h, w, c) with an h, w and c of its own."""


class AbstractEncoder(eqx.Module):
    """One image in [0, 1], of any size, to its pyramid.

    - `in_channels`: of the image.
    - `channels`: of each map, shallow to deep.
    - `strides`: pixels of the image a pixel of each map, rising powers of two. Sizes round up.
    - `has_pretrained_weights`: whether weights can be had, so that freezing it makes sense.
    - `is_tuned`: whether training goes on with these weights, unless told otherwise.
    """

    in_channels: eqx.AbstractVar[int]
    channels: eqx.AbstractVar[tuple[int, ...]]
    strides: eqx.AbstractVar[tuple[int, ...]]
    has_pretrained_weights: AbstractClassVar[bool]
    is_tuned: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self, image: Float[Array, "h w c_image"], state: eqx.nn.State
    ) -> tuple[Pyramid, eqx.nn.State]:
        """Returns the maps, and the new state."""


class AbstractTorchEncoder(AbstractEncoder):
    """An encoder whose weights are those of a PyTorch network, of which it is the larger part.

    - `left_out`: beginnings of the names of the network's other modules, such as its classifier.
    """

    has_pretrained_weights: ClassVar[bool] = True
    is_tuned: ClassVar[bool] = True
    left_out: AbstractClassVar[tuple[str, ...]]

    @abstractmethod
    def torch_name(self, path: str) -> str:
        """Returns the network's name for a layer at a dotted path, such as "stem.conv"."""
