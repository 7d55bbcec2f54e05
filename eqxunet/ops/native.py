"""Calls of the native kernels, and where they fit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .internals import Implementation, Primitive, lower_on_cpu
from .kernels import is_native
from .window import Window

# Narrower outputs do not fill the native kernels' tiles, and XLA's own are faster.
_NARROW = 6
_CHANNELS = 16  # which are whole vectors on every processor
_NO_TABLE, _NO_BIAS = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)


def lower_to_native(
    primitive: Primitive,
    native: Implementation,
    other: Implementation,
    *,
    narrow: Implementation,
    fits: Callable[[Window], bool] = lambda window: True,
) -> None:
    """Lowers on CPUs to `native` where it fits, else to `other`.

    Arguments:

    - `narrow`: in the place of `native` for dtypes narrower than its float32.
    - `fits`: which windows `native` knows, beside what no native kernel does.
    """

    def choose(first: Any, window: Window) -> Implementation | None:
        suits = window.y_shape[1] >= _NARROW and first.size > 0 and first.dtype.itemsize <= 4
        suits &= all(0 <= pad < window.size for pads in window.padding for pad in pads)
        if not (suits and not window.is_pointwise and fits(window) and is_native()):
            return None
        return native if first.dtype == jnp.float32 else narrow

    lower_on_cpu(primitive, other, choose)


def native_conv(
    x: Any,
    kernel: Any,
    scale: Any = _NO_TABLE,
    offset: Any = _NO_TABLE,
    bias: Any = _NO_BIAS,
    *,
    window: Window,
) -> Array:
    """relu(conv(relu(scale * x + offset), kernel) + bias), without the steps of what is empty."""
    return _call(
        "conv2d",
        *(x, kernel, scale, offset, bias),
        shape=(x.shape[0], *window.y_shape, kernel.shape[3]),
        window=window,
        relu=bias is not _NO_BIAS,
    )


def native_input_gradient(y: Any, kernel: Any, *, window: Window) -> Array:
    """At stride 1, or where windows tile."""
    shape = (y.shape[0], *window.shape, kernel.shape[2])
    return _call("conv2d_input_gradient", y, kernel, shape=shape, window=window)


def native_kernel_gradient(
    x: Any, y: Any, scale: Any = _NO_TABLE, offset: Any = _NO_TABLE, *, window: Window
) -> Array:
    """The kernel's gradient of conv(relu(scale * x + offset), kernel)."""
    shape = (window.size, window.size, x.shape[3], y.shape[3])
    return _call("conv2d_kernel_gradient", x, y, scale, offset, shape=shape, window=window)


def widened(primitive: Primitive) -> Implementation:
    """A primitive of two operands, computed in float32."""

    def wide(first: Array, second: Array, *, window: Window) -> Array:
        out = primitive.bind(first.astype(jnp.float32), second.astype(jnp.float32), window=window)
        return out.astype(first.dtype)

    return wide


def lower_to_native_depthwise(
    primitive: Primitive, native: Implementation, other: Implementation
) -> None:
    """Lowers on CPUs to `native` where channels are whole vectors, else to `other`."""

    def choose(first: Any, window: Window) -> Implementation | None:
        suits = first.shape[3] % _CHANNELS == 0 and first.size > 0 and first.dtype.itemsize <= 4
        if not (suits and is_native()):
            return None
        return native if first.dtype == jnp.float32 else widened(primitive)

    lower_on_cpu(primitive, other, choose)


def native_depthwise(x: Any, kernel: Any, *, window: Window) -> Array:
    """Each channel with a kernel of its own."""
    shape = (x.shape[0], *window.y_shape, x.shape[3])
    return _call("depthwise2d", x, kernel, shape=shape, window=window)


def native_depthwise_input_gradient(y: Any, kernel: Any, *, window: Window) -> Array:
    """At any stride; at stride 1 a convolution with the kernel turned around."""
    if window.stride == 1:
        return native_depthwise(y, kernel[::-1, ::-1], window=window.adjoint)
    shape = (y.shape[0], *window.shape, y.shape[3])
    return _call("depthwise2d_input_gradient", y, kernel, shape=shape, window=window)


def native_depthwise_kernel_gradient(x: Any, y: Any, *, window: Window) -> Array:
    """At any stride."""
    shape = (window.size, window.size, 1, x.shape[3])
    return _call("depthwise2d_kernel_gradient", x, y, shape=shape, window=window)


def _call(name: str, *operands: Any, shape: Any, window: Window, **attributes: Any) -> Array:
    (top, _), (left, _) = window.padding
    call = jax.ffi.ffi_call(f"eqxunet_{name}", jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    sizes = {"stride": window.stride, "top": top, "left": left}
    return call(*operands, **{name: np.int64(n) for name, n in sizes.items()}, **attributes)
