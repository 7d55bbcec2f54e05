"""Convolution with the norm and the ReLU before it, or with the bias and the ReLU after it.

A map written once to be read once is a pass over memory, and for the gradient it is kept. On CPUs
the native kernels compute it as they read their input, and bias and ReLU as they write their
output. Elsewhere these are the plain compositions, which XLA fuses in its own ways.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .conv import (
    Window,
    conv_p,
    input_gradient_p,
    kernel_gradient_p,
    lower_on_cpu,
    native_conv,
    native_kernel_gradient,
)
from .varying import vary_alike


def conv2d_of_relu(
    x: Float[Array, "h w c_in"],
    scale: Float[Array, " c_in"],
    offset: Float[Array, " c_in"],
    kernel: Float[Array, "k k c_in c_out"],
) -> Float[Array, "h w c_out"]:
    """conv2d(relu(scale * x + offset), kernel) with "SAME" padding."""
    operands = vary_alike(x[None], scale[None], offset[None], kernel)
    return _conv_of_relu_p.bind(*operands, window=_same(x, kernel))[0]


def relu_of_conv2d(
    x: Float[Array, "h w c_in"],
    kernel: Float[Array, "k k c_in c_out"],
    bias: Float[Array, " c_out"],
) -> Float[Array, "h w c_out"]:
    """relu(conv2d(x, kernel) + bias) with "SAME" padding."""
    return _relu_of_conv_p.bind(*vary_alike(x[None], kernel, bias), window=_same(x, kernel))[0]


def _same(x: Any, kernel: Any) -> Window:
    size = kernel.shape[0]
    pads = ((size - 1) // 2, size // 2)
    return Window(size, 1, (pads, pads), x.shape[:2])


# x (n, h, w, c_in), scale and offset (n, c_in), kernel (k, k, c_in, c_out), y (n, h, w, c_out).
_conv_of_relu_p = Primitive("conv2d_of_relu")  # x, scale, offset, kernel -> y
_kernel_gradient_of_relu_p = Primitive("conv2d_of_relu_kernel_gradient")  # x, scale, offset, y
_relu_of_conv_p = Primitive("relu_of_conv2d")  # x, kernel, bias -> y


def is_convolution(primitive: Primitive, *_: Any, **__: Any) -> bool:
    """Policy for `jax.checkpoint`: what is costly to compute again."""
    return primitive in (conv_p, input_gradient_p, _conv_of_relu_p)


def _relu(x: Array, scale: Array, offset: Array) -> Array:
    x32 = x.astype(jnp.float32)
    return jax.nn.relu(x32 * scale[:, None, None] + offset[:, None, None]).astype(x.dtype)


def _conv_of_relu(x: Array, scale: Array, offset: Array, kernel: Array, *, window: Window) -> Array:
    return conv_p.bind(_relu(x, scale, offset), kernel, window=window)


def _kernel_gradient_of_relu(
    x: Array, scale: Array, offset: Array, y: Array, *, window: Window
) -> Array:
    return kernel_gradient_p.bind(_relu(x, scale, offset), y, window=window)


def _relu_of_conv(x: Array, kernel: Array, bias: Array, *, window: Window) -> Array:
    return jax.nn.relu(conv_p.bind(x, kernel, window=window) + bias)


def _differentiate_composition(composition: Any, primals: Any, tangents: Any, *, window: Window):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(partial(composition, window=window), primals, tangents)


def _differentiate_conv_of_relu(primals: Any, tangents: Any, *, window: Window):
    """Linear in the kernel, whose gradient then needs x alone; the rest as the composition."""
    *inputs, kernel = primals
    *input_tangents, kernel_tangent = tangents
    out = _conv_of_relu_p.bind(*primals, window=window)
    terms = []
    if not isinstance(kernel_tangent, ad.Zero):
        terms.append(_conv_of_relu_p.bind(*inputs, kernel_tangent, window=window))
    if not all(isinstance(tangent, ad.Zero) for tangent in input_tangents):
        _, relu_tangent = jax.jvp(_relu, inputs, [*map(ad.instantiate_zeros, input_tangents)])
        terms.append(conv_p.bind(relu_tangent, kernel, window=window))
    return out, sum(terms[1:], terms[0])


def _transpose_conv_of_relu(y: Any, *operands: Any, window: Window):
    *inputs, kernel = operands
    if isinstance(y, ad.Zero):
        return None, None, None, ad.Zero(kernel.aval.to_ct_aval())
    return None, None, None, _kernel_gradient_of_relu_p.bind(*inputs, y, window=window)


def _define(primitive: Primitive, composition: Any, native: Any, kernel: int | None) -> None:
    """Defines all but the derivative.

    Arguments:

    - `kernel`: the operands from this one on are shared by all examples; None where the result
      sums over them.
    """

    def batched(operands: Any, axes: Any, *, window: Window):
        if kernel is None or any(axis is not None for axis in axes[kernel:]):
            return jax.vmap(partial(composition, window=window), axes)(*operands), 0
        pairs = list(zip(operands[:kernel], axes[:kernel], strict=True))
        b = next(operand.shape[axis] for operand, axis in pairs if axis is not None)
        # More examples are more of axis 0.
        fronts = [batching.bdim_at_front(operand, axis, b) for operand, axis in pairs]
        joined = [front.reshape(-1, *front.shape[2:]) for front in fronts]
        out = primitive.bind(*joined, *operands[kernel:], window=window)
        return out.reshape(b, -1, *out.shape[1:]), 0

    def abstract(*operands: Any, window: Window) -> Any:
        out = jax.eval_shape(partial(composition, window=window), *operands)
        return operands[0].update(shape=out.shape)

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(composition, multiple_results=False))
    lower_on_cpu(primitive, native, composition, narrow=composition)


def _native_conv_of_relu(x: Any, scale: Any, offset: Any, kernel: Any, *, window: Window) -> Array:
    return native_conv(x, kernel, scale, offset, window=window)


def _native_kernel_gradient_of_relu(
    x: Any, scale: Any, offset: Any, y: Any, *, window: Window
) -> Array:
    return native_kernel_gradient(x, y, scale, offset, window=window)


def _native_relu_of_conv(x: Any, kernel: Any, bias: Any, *, window: Window) -> Array:
    return native_conv(x, kernel, bias=bias, window=window)


_define(_conv_of_relu_p, _conv_of_relu, _native_conv_of_relu, 3)
_define(_kernel_gradient_of_relu_p, _kernel_gradient_of_relu, _native_kernel_gradient_of_relu, None)
_define(_relu_of_conv_p, _relu_of_conv, _native_relu_of_conv, 1)
ad.primitive_jvps[_conv_of_relu_p] = _differentiate_conv_of_relu
ad.primitive_transposes[_conv_of_relu_p] = _transpose_conv_of_relu
for _primitive, _composition in (
    (_kernel_gradient_of_relu_p, _kernel_gradient_of_relu),
    (_relu_of_conv_p, _relu_of_conv),
):
    ad.primitive_jvps[_primitive] = partial(_differentiate_composition, _composition)
