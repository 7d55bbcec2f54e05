"""2D convolution of one example, channels last, with fast gradients on CPUs.

XLA's CPU convolution is fast forward but computes the kernel's gradient far below a matrix
product's speed. So 3x3 convolution is a primitive of its own here: it sees the whole batch where
`jax.vmap` maps it, differentiates into two more of its kind, and has its own lowering on CPUs.
Other platforms get XLA's own convolutions. As a primitive rather than a `jax.custom_vjp`, it sums
the gradient over the batch as it goes; a rule that sees one example has to write each example's.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

Padding = str | tuple[tuple[int, int], tuple[int, int]]

# Pixels whose products one matrix multiplication sums: its operands then fit in a core's L2.
_PIXELS = 2048


def conv2d(
    x: Float[Array, "h w c_in"],
    kernel: Float[Array, "kh kw c_in c_out"],
    *,
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "h_out w_out c_out"]:
    """Convolves one example with an HWIO kernel of the same dtype, without flipping it.

    Arguments:

    - `padding`: `"SAME"`, `"VALID"`, or ((above, below), (left, right)) in pixels.
    """
    if kernel.shape[:2] == (3, 3) and stride == 1 and padding == "SAME":
        x, kernel = _vary_alike(x[None], kernel)
        return _conv_p.bind(x, kernel)[0]
    return _stock(x[None], kernel, stride=stride, padding=padding)[0]


def _stock(
    x: Float[Array, "n h w c_in"],
    kernel: Float[Array, "kh kw c_in c_out"],
    *,
    stride: int = 1,
    padding: Padding = "SAME",
) -> Float[Array, "n h_out w_out c_out"]:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _stock_gradient(
    x: Float[Array, "n h w c_in"], g: Float[Array, "n h w c_out"]
) -> Float[Array, "3 3 c_in c_out"]:
    kernel = jax.ShapeDtypeStruct((3, 3, x.shape[-1], g.shape[-1]), x.dtype)
    (gradient,) = jax.linear_transpose(partial(_stock, x), kernel)(g)
    return gradient


def _split_gradient(
    x: Float[Array, "n h w c_in"], g: Float[Array, "n h w c_out"]
) -> Float[Array, "3 3 c_in c_out"]:
    """The kernel's gradient, sum over pixels p of x[p + tap] g[p], as matrix products.

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
    total, _ = lax.scan(products, _vary_alike(zeros, x)[0], pairs)
    total = jnp.sum(total, axis=0).reshape(3, c_in, 3, c_out)
    return total.transpose(2, 0, 1, 3).astype(x.dtype)


def _turned(
    kernel: Float[Array | np.ndarray, "3 3 c_in c_out"],
) -> Float[Array | np.ndarray, "3 3 c_out c_in"]:
    """The kernel of the adjoint: turned by 180 degrees, channels swapped."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _vary_alike(*arrays: Array) -> list[Array]:
    """Inside `jax.shard_map`: as varying as any of them, which makes a kernel's gradient a sum."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    together = frozenset().union(*axes)
    return [
        lax.pcast(array, tuple(together - own), to="varying") if together - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]


# (n, h, w, c_in), (3, 3, c_in, c_out) -> (n, h, w, c_out)
_conv_p = Primitive("conv3x3")
# (n, h, w, c_in), (n, h, w, c_out) -> (3, 3, c_in, c_out)
_gradient_p = Primitive("conv3x3_kernel_gradient")


def _conv_shape(x: Any, kernel: Any) -> Any:
    return x.update(shape=(*x.shape[:3], kernel.shape[3]))


def _gradient_shape(x: Any, g: Any) -> Any:
    return x.update(shape=(3, 3, x.shape[3], g.shape[3]))


def _conv_batched(arrays: tuple[Array, Array], axes: tuple[Any, Any]):
    x, kernel = arrays
    if axes[1] is None:  # the usual case: more examples
        x = jnp.moveaxis(x, axes[0], 0)
        b, n, h, w, _ = x.shape
        out = _conv_p.bind(x.reshape(b * n, h, w, -1), kernel)
        return out.reshape(b, n, h, w, -1), 0
    return jax.vmap(_stock, axes)(x, kernel), 0


def _gradient_batched(arrays: tuple[Array, Array], axes: tuple[int | None, int | None]):
    return jax.vmap(_stock_gradient, axes)(*arrays), 0


_conv_p.def_abstract_eval(_conv_shape)
_conv_p.def_impl(jax.jit(_conv_p.bind))
mlir.register_lowering(_conv_p, mlir.lower_fun(_stock, multiple_results=False))
batching.primitive_batchers[_conv_p] = _conv_batched
ad.defbilinear(
    _conv_p,
    lambda g, x, kernel: _conv_p.bind(g, _turned(kernel)),
    lambda g, x, kernel: _gradient_p.bind(x, g),
)

_gradient_p.def_abstract_eval(_gradient_shape)
_gradient_p.def_impl(jax.jit(_gradient_p.bind))
mlir.register_lowering(_gradient_p, mlir.lower_fun(_stock_gradient, multiple_results=False))
mlir.register_lowering(
    _gradient_p, mlir.lower_fun(_split_gradient, multiple_results=False), platform="cpu"
)
batching.primitive_batchers[_gradient_p] = _gradient_batched
ad.defbilinear(
    _gradient_p,
    lambda kernel, x, g: _conv_p.bind(g, _turned(kernel)),
    lambda kernel, x, g: _conv_p.bind(x, kernel),
)
