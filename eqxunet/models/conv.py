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

Padding = tuple[tuple[int, int], tuple[int, int]]

# Narrower outputs do not fill the native kernels' tiles, and XLA's own are faster.
_NARROW = 8
# Pixels whose products one matrix multiplication sums: its operands then fit in a core's L2.
_PIXELS = 2048


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
    if size == 1 and padding == ((0, 0), (0, 0)):
        return x[::stride, ::stride] @ kernel[0, 0]
    x, kernel = _vary_alike(x[None], kernel)
    return _conv_p.bind(x, kernel, window=_Window(size, stride, padding, (h, w)))[0]


def conv2d_transpose(
    y: Float[Array, "h w c_in"], kernel: Float[Array, "k k c_in c_out"]
) -> Float[Array, "k*h k*w c_out"]:
    """Transposed convolution with stride k, as Flax's default: it does not flip the kernel.

    Windows do not overlap: output pixel (k i + a, k j + b) uses `kernel[k - 1 - a, k - 1 - b]`.
    """
    (h, w, _), size = y.shape, kernel.shape[0]
    y, kernel = _vary_alike(y[None], jnp.asarray(_turned(kernel)))
    window = _Window(size, size, ((0, 0), (0, 0)), (size * h, size * w))
    return _input_gradient_p.bind(y, kernel, window=window)[0]


class _Window(NamedTuple):
    """How y = conv(x, kernel) slides: `size` of the kernel, and height and width of x."""

    size: int
    stride: int
    padding: Padding
    shape: tuple[int, int]

    def conv(self, x: Any, kernel: Any) -> Array:
        strides, numbers = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, self.padding, dimension_numbers=numbers)

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


def _turned(
    kernel: Float[Array | np.ndarray, "k k c_in c_out"],
) -> Float[Array | np.ndarray, "k k c_out c_in"]:
    """The kernel of the adjoint at stride 1: turned by 180 degrees, channels swapped."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _vary_alike(*arrays: Array) -> list[Array]:
    """Inside `jax.shard_map`: as varying as any of them, which makes a kernel's gradient a sum."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    together = frozenset().union(*axes)
    return [
        lax.pcast(array, tuple(together - own), to="varying") if together - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]


# x (n, h, w, c_in), kernel (k, k, c_in, c_out), y (n, h_out, w_out, c_out).
_conv_p = Primitive("conv2d")  # x, kernel -> y
_input_gradient_p = Primitive("conv2d_input_gradient")  # y, kernel -> x
_kernel_gradient_p = Primitive("conv2d_kernel_gradient")  # x, y -> kernel


def _conv(x: Array, kernel: Array, *, window: _Window) -> Array:
    if window.tiles:
        return jnp.einsum("nhawbi,abio->nhwo", window.split(x), kernel)
    return window.conv(x, kernel)


def _input_gradient(y: Array, kernel: Array, *, window: _Window) -> Array:
    if window.stride == 1:
        rest, ((above, below), (left, right)) = window.size - 1, window.padding
        padding = ((rest - above, rest - below), (rest - left, rest - right))
        around = _Window(window.size, 1, padding, (y.shape[1], y.shape[2]))
        return _conv_p.bind(y, _turned(kernel), window=around)
    shape = (y.shape[0], *window.shape, kernel.shape[2])
    if window.tiles:
        return jnp.einsum("nhwo,abio->nhawbi", y, kernel).reshape(shape)
    x = jax.ShapeDtypeStruct(shape, y.dtype)
    return jax.linear_transpose(lambda x: window.conv(x, kernel), x)(y)[0]


def _kernel_gradient(x: Array, y: Array, *, window: _Window) -> Array:
    if window.tiles:
        return jnp.einsum("nhawbi,nhwo->abio", window.split(x), y)
    kernel = jax.ShapeDtypeStruct((window.size, window.size, x.shape[3], y.shape[3]), x.dtype)
    return jax.linear_transpose(partial(window.conv, x), kernel)(y)[0]


def _kernel_gradient_on_cpu(x: Array, y: Array, *, window: _Window) -> Array:
    if window.size == 3 and window.stride == 1 and window.padding == ((1, 1), (1, 1)):
        return _split_gradient(x, y)
    return _kernel_gradient(x, y, window=window)


def _split_gradient(
    x: Float[Array, "n h w c_in"], g: Float[Array, "n h w c_out"]
) -> Float[Array, "3 3 c_in c_out"]:
    """The kernel's gradient, sum over pixels p of x[p + tap] g[p], as matrix products.

    Used without native kernels, in place of XLA's own. Three horizontal shifts of x
    beside each other, (pixels, 3 c_in), and three vertical ones of g, (pixels, 3 c_out): their
    product holds all nine taps. im2col of one side would copy it nine times, and its product would
    be of a worse shape for few channels.
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


def _define(primitive: Primitive, stock: Any, shape: Any, derivatives: Any) -> None:
    """Defines all but the CPU's lowering and batching, from XLA's own implementation."""

    def abstract(first: Any, second: Any, *, window: _Window) -> Any:
        return first.update(shape=tuple(shape(first.shape, second.shape, window)))

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    ad.defbilinear(primitive, *derivatives)
    mlir.register_lowering(primitive, mlir.lower_fun(stock, multiple_results=False))


def _batch(primitive: Primitive, stock: Any) -> None:
    """More examples are more of axis 0; an example's own kernel is XLA's business."""

    def batched(arrays: tuple[Array, Array], axes: tuple[Any, Any], *, window: _Window):
        first, kernel = arrays
        if axes[1] is not None:
            return jax.vmap(partial(stock, window=window), axes)(first, kernel), 0
        first = jnp.moveaxis(first, axes[0], 0)
        b, n, *example = first.shape
        out = primitive.bind(first.reshape(b * n, *example), kernel, window=window)
        return out.reshape(b, n, *out.shape[1:]), 0

    batching.primitive_batchers[primitive] = batched


def _lower_on_cpu(primitive: Primitive, other: Any) -> None:
    native = jax.ffi.ffi_lowering(f"eqxunet_{primitive.name}")

    def wide(first: Array, second: Array, *, window: _Window) -> Array:
        out = primitive.bind(first.astype(jnp.float32), second.astype(jnp.float32), window=window)
        return out.astype(first.dtype)

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, window: _Window):
        first: Any = ctx.avals_in[0]
        fits = window.y_shape()[1] >= _NARROW and first.size > 0
        fits &= all(0 <= pad < window.size for pads in window.padding for pad in pads)
        if primitive is _input_gradient_p:
            fits &= window.tiles or window.stride == 1
        if _is_partitioned(ctx) or not (fits and is_native()):
            return mlir.lower_fun(other, multiple_results=False)(ctx, *operands, window=window)
        if first.dtype != jnp.float32:
            return mlir.lower_fun(wide, multiple_results=False)(ctx, *operands, window=window)
        (top, _), (left, _) = window.padding
        sizes = {"stride": window.stride, "top": top, "left": left}
        return native(ctx, *operands, **{name: np.int64(n) for name, n in sizes.items()})

    mlir.register_lowering(primitive, lower, platform="cpu")


def _is_partitioned(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether XLA divides this program among devices; it cannot divide a native kernel."""
    context: Any = ctx.module_context.axis_context
    if hasattr(context, "num_devices"):
        return context.num_devices > 1
    return frozenset(context.mesh.axis_names) != context.manual_axes


_define(
    _conv_p,
    _conv,
    lambda x, kernel, window: (x[0], *window.y_shape(), kernel[3]),
    (
        lambda y, x, kernel, **window: _input_gradient_p.bind(y, kernel, **window),
        lambda y, x, kernel, **window: _kernel_gradient_p.bind(x, y, **window),
    ),
)
_define(
    _input_gradient_p,
    _input_gradient,
    lambda y, kernel, window: (y[0], *window.shape, kernel[2]),
    (
        lambda x, y, kernel, **window: _conv_p.bind(x, kernel, **window),
        lambda x, y, kernel, **window: _kernel_gradient_p.bind(x, y, **window),
    ),
)
_define(
    _kernel_gradient_p,
    _kernel_gradient,
    lambda x, y, window: (window.size, window.size, x[3], y[3]),
    (
        lambda kernel, x, y, **window: _input_gradient_p.bind(y, kernel, **window),
        lambda kernel, x, y, **window: _conv_p.bind(x, kernel, **window),
    ),
)
_batch(_conv_p, _conv)
_batch(_input_gradient_p, _input_gradient)
batching.primitive_batchers[_kernel_gradient_p] = lambda arrays, axes, *, window: (
    jax.vmap(partial(_kernel_gradient, window=window), axes)(*arrays),
    0,
)
_lower_on_cpu(_conv_p, _conv)
_lower_on_cpu(_input_gradient_p, _input_gradient)
_lower_on_cpu(_kernel_gradient_p, _kernel_gradient_on_cpu)
