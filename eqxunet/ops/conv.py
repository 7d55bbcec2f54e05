"""2D convolution of one example, channels last, fast on CPUs.

XLA's CPU convolution runs far below a matrix product's speed where channels are few and images
large, above all for the kernel's gradient. So convolution is a primitive of its own here, lowered
to native kernels (`eqxunet.ops.kernels`) on CPUs and to XLA's own convolutions elsewhere. It is one
of three, the ways to contract x, kernel and y of the trilinear form sum(y * conv(x, kernel)) for
the third; each is bilinear, and its derivatives are the other two.

As primitives rather than a `jax.custom_vjp`, they see the whole batch where `jax.vmap` maps them,
so the kernel's gradient is summed over it as it is computed. A rule that sees one example has to
write each example's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .internals import (
    define,
    differentiate_trilinear,
    placeholder,
    vary_alike,
)
from .native import (
    lower_to_native,
    native_conv,
    native_input_gradient,
    native_kernel_gradient,
    widened,
)
from .split_gradient import split_gradient
from .window import Padding, Window, window_over


def conv2d(
    x: Float[Array, "h w c_in"],
    kernel: Float[Array, "k k c_in c_out"],
    *,
    stride: int = 1,
    padding: str | Padding = "SAME",
) -> Float[Array, "h_out w_out c_out"]:
    """Convolves one example with an HWIO kernel of the same dtype, without flipping it.

    Arguments:

    - `padding`: `"SAME"`, `"VALID"`, or ((above, below), (left, right)) in pixels.
    """
    window = window_over(x, kernel, stride, padding)
    if window.is_pointwise and stride == 1:
        return x @ kernel[0, 0]
    x, kernel = vary_alike(x[None], kernel)
    return conv_p.bind(x, kernel, window=window)[0]


def conv2d_transpose(
    y: Float[Array, "h w c_in"], kernel: Float[Array, "k k c_in c_out"]
) -> Float[Array, "k*h k*w c_out"]:
    """Transposed convolution with stride k, as Flax's default: it does not flip the kernel.

    Windows do not overlap: output pixel (k i + a, k j + b) uses `kernel[k - 1 - a, k - 1 - b]`.
    """
    (h, w, _), size = y.shape, kernel.shape[0]
    y, kernel = vary_alike(y[None], jnp.asarray(_turned(kernel)))
    window = Window(size, size, ((0, 0), (0, 0)), (size * h, size * w))
    return input_gradient_p.bind(y, kernel, window=window)[0]


def _turned(
    kernel: Float[Array | np.ndarray, "k k c_in c_out"],
) -> Float[Array | np.ndarray, "k k c_out c_in"]:
    """The kernel of the adjoint at stride 1: turned by 180 degrees, channels swapped."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


_Convolve = Callable[[Window, Any, Any], Array]


def _xla(window: Window, x: Any, kernel: Any) -> Array:
    strides, numbers = (window.stride, window.stride), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, window.padding, dimension_numbers=numbers)


def _xla_on_cpu(window: Window, x: Any, kernel: Any) -> Array:
    """A strided 1x1 kernel as a slice and a product; on GPUs these abort XLA's GemmFusion."""
    if window.is_pointwise:
        return x[:, :: window.stride, :: window.stride] @ kernel[0, 0]
    return _xla(window, x, kernel)


def _split(window: Window, x: Any) -> Array:
    """x as (n, h_out, k, w_out, k, c), where windows tile."""
    n, h, w, c = x.shape
    return x.reshape(n, h // window.size, window.size, w // window.size, window.size, c)


def _conv(x: Array, kernel: Array, *, window: Window, conv: _Convolve = _xla) -> Array:
    if window.tiles:
        return jnp.einsum("nhawbi,abio->nhwo", _split(window, x), kernel)
    return conv(window, x, kernel)


def _input_gradient(y: Array, kernel: Array, *, window: Window, conv: _Convolve = _xla) -> Array:
    if window.stride == 1:
        return conv_p.bind(y, _turned(kernel), window=window.adjoint)
    shape = (y.shape[0], *window.shape, kernel.shape[2])
    if window.tiles:
        return jnp.einsum("nhwo,abio->nhawbi", y, kernel).reshape(shape)
    x = placeholder(y, shape)
    return jax.linear_transpose(lambda x: conv(window, x, kernel), x)(y)[0]


def _kernel_gradient(x: Array, y: Array, *, window: Window, conv: _Convolve = _xla) -> Array:
    if window.tiles:
        return jnp.einsum("nhawbi,nhwo->abio", _split(window, x), y)
    kernel = placeholder(x, (window.size, window.size, x.shape[3], y.shape[3]))
    return jax.linear_transpose(partial(conv, window, x), kernel)(y)[0]


def _kernel_gradient_on_cpu(x: Array, y: Array, *, window: Window) -> Array:
    if window.size == 3 and window.stride == 1 and window.padding == ((1, 1), (1, 1)):
        return split_gradient(x, y)
    return _kernel_gradient(x, y, window=window, conv=_xla_on_cpu)


# x (n, h, w, c_in), kernel (k, k, c_in, c_out), y (n, h_out, w_out, c_out).
conv_p = define(  # x, kernel -> y
    "conv2d",
    _conv,
    lambda x, kernel, window: (x[0], *window.y_shape, kernel[3]),
    examples=1,
)
input_gradient_p = define(  # y, kernel -> x
    "conv2d_input_gradient",
    _input_gradient,
    lambda y, kernel, window: (y[0], *window.shape, kernel[2]),
    examples=1,
)
kernel_gradient_p = define(  # x, y -> kernel
    "conv2d_kernel_gradient",
    _kernel_gradient,
    lambda x, y, window: (window.size, window.size, x[3], y[3]),
    examples=None,
)
differentiate_trilinear(conv_p, input_gradient_p, kernel_gradient_p)
lower_to_native(conv_p, native_conv, partial(_conv, conv=_xla_on_cpu), narrow=widened(conv_p))
lower_to_native(
    input_gradient_p,
    native_input_gradient,
    partial(_input_gradient, conv=_xla_on_cpu),
    narrow=widened(input_gradient_p),
    fits=lambda window: window.tiles or window.stride == 1,
)
lower_to_native(
    kernel_gradient_p,
    native_kernel_gradient,
    _kernel_gradient_on_cpu,
    narrow=widened(kernel_gradient_p),
)
