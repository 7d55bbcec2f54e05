"""Convolution with the norm and the ReLU before it, or with the bias and the ReLU after it.

A map written once to be read once is a pass over memory, and for the gradient it is kept. On CPUs
the native kernels compute it as they read their input, and bias and ReLU as they write their
output. Elsewhere these are the plain compositions, which XLA fuses in its own ways.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .conv import conv_p, input_gradient_p, kernel_gradient_p
from .depthwise import depthwise_p
from .internals import (
    Primitive,
    define,
    differentiate_composition,
    differentiate_linear_in_last,
    vary_alike,
)
from .native import lower_to_native, native_conv, native_kernel_gradient
from .window import Padding, Window, window_over


def conv2d_of_relu(
    x: Float[Array, "h w c_in"],
    scale: Float[Array, " c_in"],
    offset: Float[Array, " c_in"],
    kernel: Float[Array, "k k c_in c_out"],
    *,
    stride: int = 1,
    padding: str | Padding = "SAME",
) -> Float[Array, "h_out w_out c_out"]:
    """conv2d(relu(scale * x + offset), kernel), of the options of `conv2d`."""
    window = window_over(x, kernel, stride, padding)
    operands = vary_alike(x[None], scale[None], offset[None], kernel)
    return _conv_of_relu_p.bind(*operands, window=window)[0]


def relu_of_conv2d(
    x: Float[Array, "h w c_in"],
    kernel: Float[Array, "k k c_in c_out"],
    bias: Float[Array, " c_out"],
    *,
    stride: int = 1,
    padding: str | Padding = "SAME",
) -> Float[Array, "h_out w_out c_out"]:
    """relu(conv2d(x, kernel) + bias), of the options of `conv2d`."""
    window = window_over(x, kernel, stride, padding)
    return _relu_of_conv_p.bind(*vary_alike(x[None], kernel, bias), window=window)[0]


def is_convolution(primitive: Primitive, *_: Any, **__: Any) -> bool:
    """Policy for `jax.checkpoint`: what is costly to compute again."""
    return primitive in (conv_p, input_gradient_p, _conv_of_relu_p, depthwise_p)


def _relu(x: Array, scale: Array, offset: Array) -> Array:
    x32 = x.astype(jnp.float32)
    return jax.nn.relu(x32 * scale[:, None, None] + offset[:, None, None]).astype(x.dtype)


def _conv_of_relu(x: Array, scale: Array, offset: Array, kernel: Array, *, window: Window) -> Array:
    return conv_p.bind(_relu(x, scale, offset), kernel, window=window)


def _tangent_by_inputs(primals: Any, tangents: Any, *, window: Window) -> Array:
    *inputs, kernel = primals
    _, relu_tangent = jax.jvp(_relu, inputs, tangents)
    return conv_p.bind(relu_tangent, kernel, window=window)


def _kernel_gradient_of_relu(
    x: Array, scale: Array, offset: Array, y: Array, *, window: Window
) -> Array:
    return kernel_gradient_p.bind(_relu(x, scale, offset), y, window=window)


def _relu_of_conv(x: Array, kernel: Array, bias: Array, *, window: Window) -> Array:
    return jax.nn.relu(conv_p.bind(x, kernel, window=window) + bias)


def _native_conv_of_relu(x: Any, scale: Any, offset: Any, kernel: Any, *, window: Window) -> Array:
    return native_conv(x, kernel, scale, offset, window=window)


def _native_kernel_gradient_of_relu(
    x: Any, scale: Any, offset: Any, y: Any, *, window: Window
) -> Array:
    return native_kernel_gradient(x, y, scale, offset, window=window)


def _native_relu_of_conv(x: Any, kernel: Any, bias: Any, *, window: Window) -> Array:
    return native_conv(x, kernel, bias=bias, window=window)


# x (n, h, w, c_in), scale and offset (n, c_in), kernel (k, k, c_in, c_out), bias (c_out,),
# y (n, h_out, w_out, c_out).
_conv_of_relu_p = define(  # x, scale, offset, kernel -> y
    "conv2d_of_relu",
    _conv_of_relu,
    lambda x, scale, offset, kernel, window: (x[0], *window.y_shape, kernel[3]),
    examples=3,
)
_kernel_gradient_of_relu_p = define(  # x, scale, offset, y -> kernel
    "conv2d_of_relu_kernel_gradient",
    _kernel_gradient_of_relu,
    lambda x, scale, offset, y, window: (window.size, window.size, x[3], y[3]),
    examples=None,
)
_relu_of_conv_p = define(  # x, kernel, bias -> y
    "relu_of_conv2d",
    _relu_of_conv,
    lambda x, kernel, bias, window: (x[0], *window.y_shape, kernel[3]),
    examples=1,
)
# Its kernel's gradient needs x, and not relu(scale * x + offset) beside it.
differentiate_linear_in_last(_conv_of_relu_p, _tangent_by_inputs, _kernel_gradient_of_relu_p.bind)
differentiate_composition(_kernel_gradient_of_relu_p, _kernel_gradient_of_relu)
differentiate_composition(_relu_of_conv_p, _relu_of_conv)
for _primitive, _native, _composition in (
    (_conv_of_relu_p, _native_conv_of_relu, _conv_of_relu),
    (_kernel_gradient_of_relu_p, _native_kernel_gradient_of_relu, _kernel_gradient_of_relu),
    (_relu_of_conv_p, _native_relu_of_conv, _relu_of_conv),
):
    lower_to_native(_primitive, _native, _composition, narrow=_composition)
