"""2D convolution of one example, channels last, fast on CPUs.

XLA's CPU convolution runs at a third to a half of a matrix product's speed forward, and far below
for the kernel's gradient. So convolution is a primitive of its own here: it sees the whole batch
where `jax.vmap` maps it, differentiates into two more of its kind, and is lowered to native kernels
(`eqxunet.kernels`) on CPUs; other platforms get XLA's own convolutions. As a primitive rather than
a `jax.custom_vjp`, it sums the kernel's gradient over the batch as it goes; a rule that sees one
example has to write each example's.
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

from ..kernels import TARGETS, is_native

Padding = tuple[tuple[int, int], tuple[int, int]]

# Pixels whose products one matrix multiplication sums: its operands then fit in a core's L2.
_PIXELS = 2048
# Narrower outputs do not fill the native kernels' tiles, and XLA's own are faster.
_NARROW = 8


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
    size = kernel.shape[0]
    if size == 1 and padding in ("SAME", "VALID"):
        return x[::stride, ::stride] @ kernel[0, 0]
    if isinstance(padding, str):
        (above, left) = lax.padtype_to_pads(x.shape[:2], (size, size), (stride, stride), padding)
        padding = (tuple(above), tuple(left))
    x, kernel = _vary_alike(x[None], kernel)
    return _conv_p.bind(x, kernel, stride=stride, padding=padding)[0]


def _stock(
    x: Float[Array, "n h w c_in"],
    kernel: Float[Array, "k k c_in c_out"],
    *,
    stride: int,
    padding: Padding,
) -> Float[Array, "n h_out w_out c_out"]:
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _stock_input_gradient(
    g: Float[Array, "n h_out w_out c_out"],
    kernel: Float[Array, "k k c_in c_out"],
    *,
    shape: tuple[int, ...],
    **window: Any,
) -> Float[Array, "n h w c_in"]:
    x = jax.ShapeDtypeStruct(shape, g.dtype)
    (gradient,) = jax.linear_transpose(lambda x: _stock(x, kernel, **window), x)(g)
    return gradient


def _stock_kernel_gradient(
    x: Float[Array, "n h w c_in"],
    g: Float[Array, "n h_out w_out c_out"],
    *,
    size: int,
    **window: Any,
) -> Float[Array, "{size} {size} c_in c_out"]:
    kernel = jax.ShapeDtypeStruct((size, size, x.shape[-1], g.shape[-1]), x.dtype)
    (gradient,) = jax.linear_transpose(lambda kernel: _stock(x, kernel, **window), kernel)(g)
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


# A convolution's window: `stride`, and `padding` as in `conv2d`, in pixels.
# (n, h, w, c_in), (k, k, c_in, c_out) -> (n, h_out, w_out, c_out)
_conv_p = Primitive("conv2d")
# (n, h, w, c_in), (n, h_out, w_out, c_out) -> (k, k, c_in, c_out); `size` is k
_gradient_p = Primitive("conv2d_kernel_gradient")


def _conv_shape(x: Any, kernel: Any, *, stride: int, padding: Padding) -> Any:
    size = kernel.shape[0]
    h, w = (
        (n + before + after - size) // stride + 1
        for n, (before, after) in zip(x.shape[1:3], padding, strict=True)
    )
    return x.update(shape=(x.shape[0], h, w, kernel.shape[3]))


def _gradient_shape(x: Any, g: Any, *, size: int, **window: Any) -> Any:
    return x.update(shape=(size, size, x.shape[3], g.shape[3]))


def _input_gradient(g: Array, x: Any, kernel: Array, *, stride: int, padding: Padding) -> Array:
    if stride > 1:
        return _stock_input_gradient(g, kernel, shape=x.aval.shape, stride=stride, padding=padding)
    rest = kernel.shape[0] - 1
    padding = tuple((rest - before, rest - after) for before, after in padding)
    return _conv_p.bind(g, _turned(kernel), stride=1, padding=padding)


def _conv_batched(arrays: tuple[Array, Array], axes: tuple[Any, Any], **window: Any):
    x, kernel = arrays
    if axes[1] is None:  # the usual case: more examples
        x = jnp.moveaxis(x, axes[0], 0)
        b, n, *example = x.shape
        out = _conv_p.bind(x.reshape(b * n, *example), kernel, **window)
        return out.reshape(b, n, *out.shape[1:]), 0
    return jax.vmap(partial(_stock, **window), axes)(x, kernel), 0


def _gradient_batched(arrays: tuple[Array, Array], axes: tuple[Any, Any], **window: Any):
    return jax.vmap(partial(_stock_kernel_gradient, **window), axes)(*arrays), 0


def _conv_other(x: Array, kernel: Array, **window: Any) -> Array:
    """On CPUs, where the native kernel does not apply."""
    if x.dtype != jnp.float32 and is_native():
        wide = _conv_p.bind(x.astype(jnp.float32), kernel.astype(jnp.float32), **window)
        return wide.astype(x.dtype)
    return _stock(x, kernel, **window)


def _gradient_other(x: Array, g: Array, *, size: int, **window: Any) -> Array:
    """On CPUs, where the native kernel does not apply."""
    if x.dtype != jnp.float32 and is_native():
        x32, g32 = x.astype(jnp.float32), g.astype(jnp.float32)
        return _gradient_p.bind(x32, g32, size=size, **window).astype(x.dtype)
    if size == 3 and window == {"stride": 1, "padding": ((1, 1), (1, 1))}:
        return _split_gradient(x, g)
    return _stock_kernel_gradient(x, g, size=size, **window)


def _lower(primitive: Primitive, target: str, stock: Any, other: Any) -> None:
    native = jax.ffi.ffi_lowering(TARGETS[target])
    other = mlir.lower_fun(other, multiple_results=False)

    def on_cpu(ctx: mlir.LoweringRuleContext, *operands: Any, **params: Any):
        x, second = ctx.avals_in
        (out,) = ctx.avals_out
        width = out.shape[2] if primitive is _conv_p else second.shape[2]
        fits = x.dtype == jnp.float32 and width >= _NARROW and not _is_partitioned(ctx)
        if not (fits and is_native()):
            return other(ctx, *operands, **params)
        (top, _), (left, _) = params["padding"]
        sizes = {"stride": params["stride"], "top": top, "left": left}
        return native(ctx, *operands, **{name: np.int64(n) for name, n in sizes.items()})

    mlir.register_lowering(primitive, mlir.lower_fun(stock, multiple_results=False))
    mlir.register_lowering(primitive, on_cpu, platform="cpu")


def _is_partitioned(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether XLA divides this program among devices; it cannot divide a native kernel."""
    context: Any = ctx.module_context.axis_context
    if hasattr(context, "num_devices"):
        return context.num_devices > 1
    return frozenset(context.mesh.axis_names) != context.manual_axes


_conv_p.def_abstract_eval(_conv_shape)
_conv_p.def_impl(lambda *arrays, **window: _conv_jit(*arrays, **window))
_conv_jit = jax.jit(_conv_p.bind, static_argnames=("stride", "padding"))
batching.primitive_batchers[_conv_p] = _conv_batched
_lower(_conv_p, "conv2d", _stock, _conv_other)
ad.defbilinear(
    _conv_p,
    _input_gradient,
    lambda g, x, kernel, **window: _gradient_p.bind(x, g, size=kernel.aval.shape[0], **window),
)

_gradient_p.def_abstract_eval(_gradient_shape)
_gradient_p.def_impl(lambda *arrays, **window: _gradient_jit(*arrays, **window))
_gradient_jit = jax.jit(_gradient_p.bind, static_argnames=("size", "stride", "padding"))
batching.primitive_batchers[_gradient_p] = _gradient_batched
_lower(_gradient_p, "conv2d_kernel_gradient", _stock_kernel_gradient, _gradient_other)
ad.defbilinear(
    _gradient_p,
    lambda kernel, x, g, *, size, **window: _input_gradient(g, x, kernel, **window),
    lambda kernel, x, g, *, size, **window: _conv_p.bind(x, kernel, **window),
)
