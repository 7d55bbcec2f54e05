"""Depthwise convolution of one example, channels last, fast on CPUs."""

from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .window import Window, window_over


def depthwise_conv2d(
    x: Float[Array, "h w c"], kernel: Float[Array, "k k 1 c"], *, stride: int = 1
) -> Float[Array, "-(-h//{stride}) -(-w//{stride}) c"]:
    """Convolves each channel of one example with a kernel of its own, with "SAME" padding.

    XLA's grouped convolution is slow on CPUs, and shifted products become one loop there. On GPUs
    strided slices before a product are what XLA's GemmFusion aborts on.
    """
    window = window_over(x, kernel, stride, "SAME")
    shifted, grouped = partial(_shifted, window=window), partial(_grouped, window=window)
    return lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


def _shifted(x: Array, kernel: Array, *, window: Window) -> Array:
    padded = jnp.pad(x, (*window.padding, (0, 0)))
    rows, columns = ((n - 1) * window.stride + 1 for n in window.y_shape)
    taps = [
        padded[a : a + rows : window.stride, b : b + columns : window.stride] * kernel[a, b, 0]
        for a in range(window.size)
        for b in range(window.size)
    ]
    return sum(taps[1:], taps[0])


def _grouped(x: Array, kernel: Array, *, window: Window) -> Array:
    strides, numbers = (window.stride, window.stride), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x[None],
        kernel,
        strides,
        window.padding,
        dimension_numbers=numbers,
        feature_group_count=x.shape[2],
    )[0]
