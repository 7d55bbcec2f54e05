"""How the kernel of a convolution slides over an image."""

from typing import NamedTuple

import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

Padding = tuple[tuple[int, int], tuple[int, int]]
"""((above, below), (left, right)) in pixels."""


class Window(NamedTuple):
    """How y = conv(x, kernel) slides: `size` of the kernel, and height and width of x."""

    size: int
    stride: int
    padding: Padding
    shape: tuple[int, int]

    @property
    def is_pointwise(self) -> bool:
        """Whether every output pixel is made of one input pixel, without padding."""
        return self.size == 1 and self.padding == ((0, 0), (0, 0))

    @property
    def tiles(self) -> bool:
        """Whether windows neither overlap nor leave gaps, which makes all three a product."""
        whole = all(n % self.size == 0 for n in self.shape)
        return whole and self.stride == self.size and self.padding == ((0, 0), (0, 0))

    @property
    def y_shape(self) -> tuple[int, int]:
        """Height and width of y."""
        rows, columns = (
            (n + sum(padding) - self.size) // self.stride + 1
            for n, padding in zip(self.shape, self.padding, strict=True)
        )
        return rows, columns

    @property
    def adjoint(self) -> "Window":
        """At stride 1: how the kernel, turned around, slides over y to make x."""
        rest, ((above, below), (left, right)) = self.size - 1, self.padding
        padding = ((rest - above, rest - below), (rest - left, rest - right))
        return Window(self.size, 1, padding, self.y_shape)


def window_over(
    x: Shaped[Array | np.ndarray, "h w c_in"],
    kernel: Shaped[Array | np.ndarray, "k k _ c_out"],
    stride: int,
    padding: str | Padding,
) -> Window:
    """The window for a padding in pixels, or `"SAME"` or `"VALID"` as XLA understands them."""
    (h, w, _), size = x.shape, kernel.shape[0]
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads((h, w), (size, size), (stride, stride), padding)
        padding = ((rows[0], rows[1]), (columns[0], columns[1]))
    return Window(size, stride, padding, (h, w))
