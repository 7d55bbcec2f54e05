"""The parts of JAX that are less stable than the rest; no other file of the package names them.

| name | where JAX has it |
| --- | --- |
| `Primitive` | `jax.extend.core` |
| `defbilinear`, `primitive_jvps`, `primitive_transposes`, `instantiate_zeros`, `Zero` | `ad` |
| `fancy_primitive_batchers`, `bdim_at_front`, what the former say of an axis | `batching` |
| `lower_fun`, `register_lowering`, `LoweringRuleContext` | `mlir` |
| `.module_context.axis_context`, `.lowering_parameters.for_export` | of the last |
| `ShapedArray`: `.update`, `.to_ct_aval`, `.sharding`, `.manual_axis_type` | `jax.typeof` |
| `AbstractMesh.explicit_axes`, `auto_axes` | `jax.sharding` |
| `pcast` | `jax.lax` |

Releases 0.10.0, 0.10.2, 0.11.0 and 0.11.2 have all of them; before 0.10 `.manual_axis_type` was
`.vma`. At an upgrade, run `tests/test_conv.py`, `test_fused.py` and `test_sharding.py` first.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive as Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array

from .window import Window

Implementation = Callable[..., Array]
"""Of arrays and the keyword `window`."""


def define(
    name: str,
    implementation: Implementation,
    shape: Callable[..., tuple[int, ...]],
    *,
    examples: int | None,
) -> Primitive:
    """Returns a primitive of one result, without derivatives.

    Arguments:

    - `implementation`: what it is lowered to, and what maps it where examples differ in all.
    - `shape`: of the result, by the operands' shapes and the window.
    - `examples`: so many operands hold examples along axis 0, as the result then does; all share
      the others. None where all hold examples, and the result sums over them.
    """
    primitive = Primitive(name)

    def abstract(*operands: Any, window: Window) -> Any:
        out = shape(*(operand.shape for operand in operands), window)
        mesh, over = _division(name, operands, examples)
        spec = [None] * len(out) if examples is None else [over, *[None] * (len(out) - 1)]
        return operands[0].update(shape=out, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    def batched(axis: Any, operands: Any, axes: Any, *, window: Window):
        if examples is None or any(of is not None for of in axes[examples:]):
            mapped = jax.vmap(partial(implementation, window=window), axes)
            return _undivided(mapped, PartitionSpec(axis.explicit_mesh_axis))(*operands), 0
        # More examples are more of axis 0.
        fronts = [
            batching.bdim_at_front(operand, of, axis.size, axis.explicit_mesh_axis)
            for operand, of in zip(operands[:examples], axes[:examples], strict=True)
        ]
        n = fronts[0].shape[1]
        joined = [front.reshape(axis.size * n, *front.shape[2:]) for front in fronts]
        out = primitive.bind(*joined, *operands[examples:], window=window)
        return out.reshape(axis.size, n, *out.shape[1:]), 0

    primitive.def_abstract_eval(abstract)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="window"))
    batching.fancy_primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, partial(_lower, implementation))
    return primitive


def lower_on_cpu(
    primitive: Primitive, implementation: Implementation, native: Callable[[Any, Window], Any]
) -> None:
    """Lowers it otherwise on CPUs.

    Arguments:

    - `native`: of the first operand's shape and dtype and the window, returns an implementation
      that calls native kernels, or None. It is asked only where such calls are possible: not
      where XLA divides the program among devices, as it cannot divide the call, nor in a file of
      `jax.export`, which is read where the kernels need not be.
    """

    def lower(ctx: mlir.LoweringRuleContext, *operands: Any, window: Window):
        module: Any = ctx.module_context
        can_call = not (_is_divided(module.axis_context) or module.lowering_parameters.for_export)
        chosen = native(ctx.avals_in[0], window) if can_call else None
        return _lower(chosen or implementation, ctx, *operands, window=window)

    mlir.register_lowering(primitive, lower, platform="cpu")


def differentiate_trilinear(
    conv: Primitive, input_gradient: Primitive, kernel_gradient: Primitive
) -> None:
    """Defines the derivatives of the three ways to contract x, kernel and y of a trilinear form.

    They are x, kernel -> y; y, kernel -> x; and x, y -> kernel. Each is bilinear, and its adjoints
    are the other two.
    """
    ad.defbilinear(
        conv,
        lambda y, x, kernel, **window: input_gradient.bind(y, kernel, **window),
        lambda y, x, kernel, **window: kernel_gradient.bind(x, y, **window),
    )
    ad.defbilinear(
        input_gradient,
        lambda x, y, kernel, **window: conv.bind(x, kernel, **window),
        lambda x, y, kernel, **window: kernel_gradient.bind(x, y, **window),
    )
    ad.defbilinear(
        kernel_gradient,
        lambda kernel, x, y, **window: input_gradient.bind(y, kernel, **window),
        lambda kernel, x, y, **window: conv.bind(x, kernel, **window),
    )


def differentiate_composition(primitive: Primitive, composition: Implementation) -> None:
    """Defines the derivative as that of a function of differentiable parts."""

    def jvp(primals: Any, tangents: Any, *, window: Window):
        tangents = tuple(map(ad.instantiate_zeros, tangents))
        return jax.jvp(partial(composition, window=window), primals, tangents)

    ad.primitive_jvps[primitive] = jvp


def differentiate_linear_in_last(
    primitive: Primitive, rest: Callable[..., Array], gradient: Implementation
) -> None:
    """Defines derivatives of what is linear in its last operand.

    Arguments:

    - `rest`: of primals, the tangents of all but the last, and the window: their part of the
      result's tangent.
    - `gradient`: of all operands but the last, and the result's cotangent: that of the last.
    """

    def jvp(primals: Any, tangents: Any, *, window: Window):
        *inputs, _ = primals
        *input_tangents, last = tangents
        out, terms = primitive.bind(*primals, window=window), []
        if not isinstance(last, ad.Zero):
            terms.append(primitive.bind(*inputs, last, window=window))
        if not all(isinstance(tangent, ad.Zero) for tangent in input_tangents):
            input_tangents = [*map(ad.instantiate_zeros, input_tangents)]
            terms.append(rest(primals, input_tangents, window=window))
        return out, sum(terms[1:], terms[0])

    def transpose(y: Any, *operands: Any, window: Window):
        *inputs, last = operands
        if isinstance(y, ad.Zero):
            return *(None for _ in inputs), ad.Zero(last.aval.to_ct_aval())
        return *(None for _ in inputs), gradient(*inputs, y, window=window)

    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose


def vary_alike(*arrays: Array) -> list[Array]:
    """Inside `jax.shard_map`: as varying as any of them, which makes a kernel's gradient a sum."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    together = frozenset().union(*axes)
    return [
        lax.pcast(array, tuple(together - own), to="varying") if together - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]


def placeholder(like: Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What `jax.linear_transpose` takes for an operand, as varying as another.

    One that varies less would get a sum over the devices for its cotangent.
    """
    aval: Any = jax.typeof(like)
    whole = NamedSharding(aval.sharding.mesh, PartitionSpec())
    varies = aval.manual_axis_type
    return jax.ShapeDtypeStruct(shape, aval.dtype, sharding=whole, manual_axis_type=varies)


def _lower(implementation: Implementation, ctx: Any, *operands: Any, window: Window) -> Any:
    (out,) = ctx.avals_out
    undivided = _undivided(partial(implementation, window=window), out.sharding.spec)
    return mlir.lower_fun(undivided, multiple_results=False)(ctx, *operands)


def _undivided(function: Callable[..., Array], spec: Any) -> Callable[..., Array]:
    """The function, inside of which XLA divides what explicit axes of a mesh divide outside.

    JAX's own rules for explicit axes know no gradient of a kernel that sums over them.
    """

    def undivided(*operands: Array) -> Array:
        mesh = _mesh(map(jax.typeof, operands))
        if not mesh.explicit_axes:
            return function(*operands)
        over = {"axes": mesh.explicit_axes, "out_sharding": NamedSharding(mesh, spec)}
        return jax.sharding.auto_axes(**over)(function)(*operands)

    return undivided


def _mesh(avals: Any) -> Any:
    """The one that they are divided over; those that no mesh holds are whole on each device."""
    meshes = [aval.sharding.mesh for aval in avals]
    return next((mesh for mesh in meshes if not mesh.empty), meshes[0])


def _division(name: str, operands: Any, examples: int | None) -> tuple[Any, Any]:
    """Returns the mesh and the explicit axes that divide the examples, as a part of a spec."""
    specs = [tuple(operand.sharding.spec) for operand in operands]
    parts = {spec[0] for spec in specs[:examples]} - {None}
    others = [part for spec in specs[:examples] for part in spec[1:]]
    if examples is not None:
        others += [part for spec in specs[examples:] for part in spec]
    if len(parts) > 1 or any(part is not None for part in others):
        raise ValueError(
            f"{name} is divided over its examples alone, and over the same axes of the mesh for "
            f"all operands; given {', '.join(str(operand) for operand in operands)}. "
            "jax.sharding.reshard makes it so."
        )
    return _mesh(operands), next(iter(parts), None)


def _is_divided(context: Any) -> bool:
    """Whether XLA divides a program among devices."""
    if hasattr(context, "num_devices"):
        return context.num_devices > 1
    return frozenset(context.mesh.axis_names) != context.manual_axes
