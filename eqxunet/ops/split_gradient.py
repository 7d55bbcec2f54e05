"""The gradient of a 3x3 kernel as matrix products, for CPUs without native kernels."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .internals import vary_alike

# Pixels whose products one matrix multiplication sums: its operands then fit in a core's L2.
_PIXELS = 2048


def split_gradient(
    x: Float[Array, "n h w c_in"], g: Float[Array, "n h w c_out"]
) -> Float[Array, "3 3 c_in c_out"]:
    """Sums x[p + tap] g[p] over pixels p, at which XLA's own convolution is slow.

    Three horizontal shifts of x beside each other, (pixels, 3 c_in), and three vertical ones of g,
    (pixels, 3 c_out): their product holds all nine taps. im2col of one side would copy it nine
    times, and its product would be of a worse shape for few channels.
    """
    (n, h, w, c_in), c_out = x.shape, g.shape[-1]
    images = max(d for d in range(1, n + 1) if n % d == 0 and (d == 1 or d * h * w <= _PIXELS))
    rows = min(h, max(1, _PIXELS // w))
    blocks = -(-h // rows)
    # A product of few channels runs on one core, two in a batch on two.
    halves = 2 if c_in < 64 and rows % 2 == 0 else 1
    below = blocks * rows - h

    def products(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        x, g = pair
        x = jnp.pad(x, ((0, 0), (0, below), (1, 1), (0, 0)))
        g = jnp.pad(g, ((0, 0), (1, 1 + below), (0, 0), (0, 0)))
        for top in range(0, h, rows):
            bottom = top + rows
            across = jnp.concatenate([x[:, top:bottom, i : i + w] for i in range(3)], axis=-1)
            down = jnp.concatenate([g[:, top + i : bottom + i] for i in (2, 1, 0)], axis=-1)
            total += lax.dot_general(
                across.reshape(halves, -1, 3 * c_in),
                down.reshape(halves, -1, 3 * c_out),
                (((1,), (1,)), ((0,), (0,))),
                preferred_element_type=jnp.float32,
            )
        return total, None

    pairs = (x.reshape(-1, images, h, w, c_in), g.reshape(-1, images, h, w, c_out))
    zeros = jnp.zeros((halves, 3 * c_in, 3 * c_out), jnp.float32)
    total, _ = lax.scan(products, vary_alike(zeros, x)[0], pairs)
    total = jnp.sum(total, axis=0).reshape(3, c_in, 3, c_out)
    return total.transpose(2, 0, 1, 3).astype(x.dtype)
