"""2D convolution of one example, channels last, fast on CPUs.

XLA's CPU convolution runs far below a matrix product's speed where channels are few and images
large, above all for the kernel's gradient. So convolution is a primitive of its own here, lowered
to native kernels (`eqxunet.kernels`) on CPUs and to XLA's own convolutions elsewhere. It is one of
three, the ways to contract x, kernel and y of the trilinear form sum(y * conv(x, kernel)) for the
third; each is bilinear, and its derivatives are the other two.

As primitives rather than a `jax.custom_vjp`, they see the whole batch where `jax.vmap` maps them,
so the kernel's gradient is summed over it as it is computed. A rule that sees one example has to
write each example's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from ..kernels import is_native
from .split_gradient import split_gradient
from .varying import vary_alike

Padding = tuple[tuple[int, int], tuple[int, int]]

# Narrower outputs do not fill the native kernels' tiles, and XLA's own are faster.
_NARROW = 6
_NO_TABLE, _NO_BIAS = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)


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
    (h, w, _), size = x.shape, kernel.shape[0]
    if isinstance(padding, str):
        rows, columns = lax.padtype_to_pads((h, w), (size, size), (stride, stride), padding)
        padding = ((rows[0], rows[1]), (columns[0], columns[1]))
    if size == 1 and stride == 1 and padding == ((0, 0), (0, 0)):
        return x @ kernel[0, 0]
    x, kernel = vary_alike(x[None], kernel)
    return conv_p.bind(x, kernel, window=Window(size, stride, padding, (h, w)))[0]


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


class Window(NamedTuple):
    """How y = conv(x, kernel) slides: `size` of the kernel, and height and width of x."""

    size: int
    stride: int
    padding: Padding
    shape: tuple[int, int]

    def conv(self, x: Any, kernel: Any) -> Array:
        strides, numbers = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=numbers)

    def conv_on_cpu(self, x: Any, kernel: Any) -> Array:
        """A strided 1x1 kernel as a slice and a product; on GPUs these abort XLA's GemmFusion."""
        if self.is_pointwise:
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        return self.conv(x, kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output pixel is made of one input pixel, without padding."""
        return self.size == 1 and self.padding == ((0, 0), (0, 0))

    @property
    def tiles(self) -> bool:
        """Whether windows neither overlap nor leave gaps, which makes all three a product."""
        whole = all(n % self.size == 0 for n in self.shape)
        return whole and self.stride == self.size and self.padding == ((0, 0), (0, 0))

    def split(self, x: Any) -> Array:
        """x as (n, h_out, k, w_out, k, c)."""
        n, h, w, c = x.shape
        return x.reshape(n, h // self.size, self.size, w // self.size, self.size, c)

    def y_shape(self) -> list[int]:
        return [
            (n + sum(padding) - self.size) // self.stride + 1
            for n, padding in zip(self.shape, self.padding, strict=True)
        ]


Convolve = Callable[[Window, Any, Any], Array]


def _turned(
    kernel: Float[Array | np.ndarray, "k k c_in c_out"],
) -> Float[Array | np.ndarray, "k k c_out c_in"]:
    """The kernel of the adjoint at stride 1: turned by 180 degrees, channels swapped."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


# x (n, h, w, c_in), kernel (k, k, c_in, c_out), y (n, h_out, w_out, c_out).
conv_p = Primitive("conv2d")  # x, kernel -> y
input_gradient_p = Primitive("conv2d_input_gradient")  # y, kernel -> x
kernel_gradient_p = Primitive("conv2d_kernel_gradient")  # x, y -> kernel


def _conv(x: Array, kernel: Array, *, window: Window, conv: Convolve = Window.conv) -> Array:
    if window.tiles:
        return jnp.einsum("nhawbi,abio->nhwo", window.split(x), kernel)
    return conv(window, x, kernel)


def _input_gradient(
    y: Array, kernel: Array, *, window: Window, conv: Convolve = Window.conv
) -> Array:
    if window.stride == 1:
        rest, ((above, below), (left, right)) = window.size - 1, window.padding
        padding = ((rest - above, rest - below), (rest - left, rest - right))
        around = Window(window.size, 1, padding, (y.shape[1], y.shape[2]))
        return conv_p.bind(y, _turned(kernel), window=around)
    shape = (y.shape[0], *window.shape, kernel.shape[2])
    if window.tiles:
        return jnp.einsum("nhwo,abio->nhawbi", y, kernel).reshape(shape)
    x = jax.ShapeDtypeStruct(shape, y.dtype)
    return jax.linear_transpose(lambda x: conv(window, x, kernel), x)(y)[0]


def _kernel_gradient(x: Array, y: Array, *, window: Window, conv: Convolve = Window.conv) -> Array:
    if window.tiles:
        return jnp.einsum("nhawbi,nhwo->abio", window.split(x), y)
    kernel = jax.ShapeDtypeStruct((window.size, window.size, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(partial(conv, window, x), kernel)(y)[0]


def _kernel_gradient_on_cpu(x: Array, y: Array, *, window: Window) -> Array:
    if window.size == 3 and window.stride == 1 and window.padding == ((1, 1), (1, 1)):
        return split_gradient(x, y)
    return _kernel_gradient(x, y, window=window, conv=Window.conv_on_cpu)


def _define(primitive: Primitive, stock: Any, shape: Any, derivatives: Any) -> None:
    """Defines all but the CPU's lowering and batching, from XLA's own implementation."""

    def abstract(first: Any, second: Any, *, window: Window) -> Any:
        return first.update(shape=tuple(shape(first.shape, second.shape, window)))

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    ad.defbilinear(primitive, *derivatives)
    mlir.register_lowering(primitive, mlir.lower_fun(stock, multiple_results=False))


def _batch(primitive: Primitive, stock: Any) -> None:
    """More examples are more of axis 0; an example's own kernel is XLA's business."""

    def batched(arrays: tuple[Array, Array], axes: tuple[Any, Any], *, window: Window):
        first, kernel = arrays
        if axes[1] is not None:
            return jax.vmap(partial(stock, window=window), axes)(first, kernel), 0
        first = jnp.moveaxis(first, axes[0], 0)
        b, n, *example = first.shape
        out = primitive.bind(first.reshape(b * n, *example), kernel, window=window)
        return out.reshape(b, n, *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = batched


def _wide(primitive: Primitive) -> Any:
    def wide(first: Array, second: Array, *, window: Window) -> Array:
        out = primitive.bind(first.astype(jnp.float32), second.astype(jnp.float32), window=window)
        return out.astype(first.dtype)

    return wide


def lower_on_cpu(primitive: Primitive, native: Any, other: Any, *, narrow: Any) -> None:
    """Lowers to `native` where it fits, `narrow` where the dtype is narrower, else to `other`."""

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, window: Window):
        first: Any = ctx.avals_in[0]
        fits = window.y_shape()[1] >= _NARROW and first.size > 0
        fits &= all(0 <= pad < window.size for pads in window.padding for pad in pads)
        if primitive is input_gradient_p:
            fits &= window.tiles or window.stride == 1
        fits &= first.dtype.itemsize <= 4 and not window.is_pointwise
        if _is_partitioned(ctx) or not (fits and is_native()):
            chosen = other
        else:
            chosen = native if first.dtype == jnp.float32 else narrow
        return mlir.lower_fun(chosen, multiple_results=False)(ctx, *operands, window=window)

    mlir.register_lowering(primitive, lower, platform="cpu")


def native_call(name: str, *operands: Any, shape: Any, window: Window, **attributes: Any) -> Array:
    """Calls a function of `eqxunet.kernels`."""
    (top, _), (left, _) = window.padding
    call = jax.ffi.ffi_call(f"eqxunet_{name}", jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    sizes = {"stride": window.stride, "top": top, "left": left}
    return call(*operands, **{name: np.int64(n) for name, n in sizes.items()}, **attributes)


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
    return native_call(
        "conv2d",
        *(x, kernel, scale, offset, bias),
        shape=(x.shape[0], *window.y_shape(), kernel.shape[3]),
        window=window,
        relu=bias is not _NO_BIAS,
    )


def _native_input_gradient(y: Any, kernel: Any, *, window: Window) -> Array:
    shape = (y.shape[0], *window.shape, kernel.shape[2])
    return native_call("conv2d_input_gradient", y, kernel, shape=shape, window=window)


def native_kernel_gradient(
    x: Any, y: Any, scale: Any = _NO_TABLE, offset: Any = _NO_TABLE, *, window: Window
) -> Array:
    """The kernel's gradient of conv(relu(scale * x + offset), kernel)."""
    shape = (window.size, window.size, x.shape[3], y.shape[3])
    operands = (x, y, scale, offset)
    return native_call("conv2d_kernel_gradient", *operands, shape=shape, window=window)


def _is_partitioned(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether XLA divides this program among devices; it cannot divide a native kernel."""
    context: Any = ctx.module_context.axis_context
    if hasattr(context, "num_devices"):
        return context.num_devices > 1
    return frozenset(context.mesh.axis_names) != context.manual_axes


_define(
    conv_p,
    _conv,
    lambda x, kernel, window: (x[0], *window.y_shape(), kernel[3]),
    (
        lambda y, x, kernel, **window: input_gradient_p.bind(y, kernel, **window),
        lambda y, x, kernel, **window: kernel_gradient_p.bind(x, y, **window),
    ),
)
_define(
    input_gradient_p,
    _input_gradient,
    lambda y, kernel, window: (y[0], *window.shape, kernel[2]),
    (
        lambda x, y, kernel, **window: conv_p.bind(x, kernel, **window),
        lambda x, y, kernel, **window: kernel_gradient_p.bind(x, y, **window),
    ),
)
_define(
    kernel_gradient_p,
    _kernel_gradient,
    lambda x, y, window: (window.size, window.size, x[3], y[3]),
    (
        lambda kernel, x, y, **window: input_gradient_p.bind(y, kernel, **window),
        lambda kernel, x, y, **window: conv_p.bind(x, kernel, **window),
    ),
)
_batch(conv_p, _conv)
_batch(input_gradient_p, _input_gradient)
batching.primitive_batchers[kernel_gradient_p] = lambda arrays, axes, *, window: (
    jax.vmap(partial(_kernel_gradient, window=window), axes)(*arrays),
    0,
)
for _primitive, _native, _other in (
    (conv_p, native_conv, partial(_conv, conv=Window.conv_on_cpu)),
    (
        input_gradient_p,
        _native_input_gradient,
        partial(_input_gradient, conv=Window.conv_on_cpu),
    ),
    (kernel_gradient_p, native_kernel_gradient, _kernel_gradient_on_cpu),
):
    lower_on_cpu(_primitive, _native, _other, narrow=_wide(_primitive))
