"""Values inside `jax.shard_map`."""

import jax
from jax import lax
from jaxtyping import Array


def vary_alike(*arrays: Array) -> list[Array]:
    """Inside `jax.shard_map`: as varying as any of them, which makes a kernel's gradient a sum."""
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    together = frozenset().union(*axes)
    return [
        lax.pcast(array, tuple(together - own), to="varying") if together - own else array
        for array, own in zip(arrays, axes, strict=True)
    ]
