"""Depthwise convolution of one example, channels last, fast on CPUs.

XLA's grouped convolution is slow on CPUs, and its gradients are slower. As in `conv`, it is one of
three primitives, each bilinear with the other two for derivatives, with native kernels behind them.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .internals import define, differentiate_trilinear, placeholder, vary_alike
from .native import (
    lower_to_native_depthwise,
    native_depthwise,
    native_depthwise_input_gradient,
    native_depthwise_kernel_gradient,
)
from .window import Window, window_over


def depthwise_conv2d(
    x: Float[Array, "h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "-(-h//{stride}) -(-w//{stride}) c"]:
    """Convolves each channel of one example with a kernel of its own, with "SAME" padding."""
    window = window_over(x, kernel, stride, "SAME")
    x, kernel = vary_alike(x[None], kernel)
    return depthwise_p.bind(x, kernel, window=window)[0]


def _grouped(x: Array, kernel: Array, *, window: Window) -> Array:
    strides, numbers = (window.stride, window.stride), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        window.padding,
        dimension_numbers=numbers,
        feature_group_count=x.shape[3],
    )


def _shifted(x: Array, kernel: Array, *, window: Window) -> Array:
    """A sum of products, which XLA makes one loop of on CPUs.

    On GPUs strided slices before a product are what XLA's GemmFusion aborts on.
    """
    padded = jnp.pad(x, ((0, 0), *window.padding, (0, 0)))
    rows, columns = ((n - 1) * window.stride + 1 for n in window.y_shape)
    taps = [
        padded[:, a : a + rows : window.stride, b : b + columns : window.stride] * kernel[a, b, 0]
        for a in range(window.size)
        for b in range(window.size)
    ]
    return sum(taps[1:], taps[0])


def _input_gradient(y: Array, kernel: Array, *, window: Window, conv=_grouped) -> Array:
    x = placeholder(y, (y.shape[0], *window.shape, y.shape[3]))
    return jax.linear_transpose(lambda x: conv(x, kernel, window=window), x)(y)[0]


def _kernel_gradient(x: Array, y: Array, *, window: Window, conv=_grouped) -> Array:
    kernel = placeholder(x, (window.size, window.size, 1, x.shape[3]))
    return jax.linear_transpose(partial(conv, x, window=window), kernel)(y)[0]


# x (n, h, w, c), kernel (k, k, 1, c), y (n, h_out, w_out, c).
depthwise_p = define(  # x, kernel -> y
    "depthwise2d",
    _grouped,
    lambda x, kernel, window: (x[0], *window.y_shape, x[3]),
    examples=1,
)
input_gradient_p = define(  # y, kernel -> x
    "depthwise2d_input_gradient",
    _input_gradient,
    lambda y, kernel, window: (y[0], *window.shape, y[3]),
    examples=1,
)
kernel_gradient_p = define(  # x, y -> kernel
    "depthwise2d_kernel_gradient",
    _kernel_gradient,
    lambda x, y, window: (window.size, window.size, 1, x[3]),
    examples=None,
)
differentiate_trilinear(depthwise_p, input_gradient_p, kernel_gradient_p)
lower_to_native_depthwise(depthwise_p, native_depthwise, _shifted)
lower_to_native_depthwise(
    input_gradient_p,
    native_depthwise_input_gradient,
    partial(_input_gradient, conv=_shifted),
)
lower_to_native_depthwise(
    kernel_gradient_p,
    native_depthwise_kernel_gradient,
    partial(_kernel_gradient, conv=_shifted),
)
