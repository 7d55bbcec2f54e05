"""Blocks of the U-Net: double convolution, and the way up."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .layers import BatchNorm, Conv, ConvTranspose, DepthwiseConv, resize

AnyConv = TypeVar("AnyConv", bound=Conv | DepthwiseConv)


class ConvBlock(eqx.Module):
    """Twice 3x3 convolution, BatchNorm, ReLU."""

    conv1: Conv
    norm1: BatchNorm
    conv2: Conv
    norm2: BatchNorm

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKeyArray):
        key1, key2 = jax.random.split(key)
        self.conv1 = Conv(c_in, c_out, key=key1)
        self.norm1 = BatchNorm(c_out)
        self.conv2 = Conv(c_out, c_out, key=key2)
        self.norm2 = BatchNorm(c_out)

    def __call__(
        self, x: Float[Array, "h w c_in"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h w c_out"], eqx.nn.State]:
        x = self.conv1(x)
        scale, offset, state = self.norm1.affine(x, state)
        x, state = self.norm2(self.conv2.of_relu(x, scale, offset), state)
        return jax.nn.relu(x), state


class UpBlock(eqx.Module):
    """Transposed convolution, concatenation with the skip where there is one, ConvBlock."""

    up: ConvTranspose
    block: ConvBlock

    def __init__(self, c_in: int, c_skip: int, c_out: int, *, key: PRNGKeyArray):
        key1, key2 = jax.random.split(key)
        self.up = ConvTranspose(c_in, c_out, key=key1)
        self.block = ConvBlock(c_out + c_skip, c_out, key=key2)

    def __call__(
        self,
        x: Float[Array, "h w c_in"],
        skip: Float[Array, "h_skip w_skip c_skip"] | None,
        state: eqx.nn.State,
    ) -> tuple[Float[Array, "h_out w_out c_out"], eqx.nn.State]:
        x = self.up(x)
        if skip is not None:
            x = jnp.concatenate([resize(x, *skip.shape[:2]), skip], axis=-1)
        return self.block(x, state)


class ConvNorm(eqx.Module):
    """Convolution without bias, then BatchNorm; in inference mode a convolution with bias.

    - `norm`: none once it is folded into the convolution.
    """

    conv: Conv | DepthwiseConv
    norm: BatchNorm | None

    def __call__(
        self, x: Float[Array, "h w c_in"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h_out w_out c_out"], eqx.nn.State]:
        if self.norm is None or self.norm.inference:
            return self.folded(state)(x), state
        return self.norm(self.conv(x), state)

    def then_relu(
        self, x: Float[Array, "h w c_in"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h_out w_out c_out"], eqx.nn.State]:
        """relu(self(x)); in inference mode, and on CPUs, in one pass."""
        if self.norm is None or self.norm.inference:
            conv = self.folded(state)
            return (conv.then_relu(x) if isinstance(conv, Conv) else jax.nn.relu(conv(x))), state
        x, state = self(x, state)
        return jax.nn.relu(x), state

    def folded(self, state: eqx.nn.State) -> Conv | DepthwiseConv:
        """The one convolution that it is in inference mode."""
        return self.conv if self.norm is None else fold_norm(self.conv, self.norm, state)


def fold_norm(conv: AnyConv, norm: BatchNorm, state: eqx.nn.State) -> AnyConv:
    """A convolution without bias and the norm after it, by running statistics, as one with bias."""
    scale, offset = norm.running_affine(state)
    return eqx.tree_at(
        lambda conv: (conv.kernel, conv.bias),
        conv,
        (conv.kernel * scale, offset),
        is_leaf=lambda leaf: leaf is None,
    )
