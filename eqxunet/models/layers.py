"""Layers that see one example, channels last: image (h, w, c), kernels HWIO.

`eqx.nn` has channels-first ones. Channels last is the layout of image files and of the pretrained
kernels, so nothing is transposed on the way, and it is the faster layout on CPUs. Layers compute in
their input's dtype; parameters and the statistics of norms are float32.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..ops import (
    Padding,
    conv2d,
    conv2d_of_relu,
    conv2d_transpose,
    depthwise_conv2d,
    relu_of_conv2d,
)

BATCH_AXIS = "batch"
"""Of the `jax.vmap` that makes a module a function of a batch; BatchNorm takes means over it."""


class Conv(eqx.Module):
    """Convolution, by default 3x3 with "SAME" padding and without bias."""

    kernel: Float[Array, "k k c_in c_out"]
    bias: Float[Array, " c_out"] | None
    stride: int = eqx.field(static=True)
    padding: str | Padding = eqx.field(static=True)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        padding: str | Padding = "SAME",
        use_bias: bool = False,
        kernel_init: jax.nn.initializers.Initializer | None = None,
        key: PRNGKeyArray,
    ):
        init = kernel_init or jax.nn.initializers.lecun_normal()
        self.kernel = init(key, (kernel_size, kernel_size, c_in, c_out))
        self.bias = jnp.zeros(c_out) if use_bias else None
        self.stride = stride
        self.padding = padding

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h_out w_out c_out"]:
        kernel = self.kernel.astype(x.dtype)
        x = conv2d(x, kernel, stride=self.stride, padding=self.padding)
        return x if self.bias is None else x + self.bias.astype(x.dtype)

    def then_relu(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h_out w_out c_out"]:
        """relu(self(x)); with a bias, and on CPUs, in one pass."""
        if self.bias is None:
            return jax.nn.relu(self(x))
        kernel, bias = self.kernel.astype(x.dtype), self.bias.astype(x.dtype)
        return relu_of_conv2d(x, kernel, bias, stride=self.stride, padding=self.padding)

    def of_relu(
        self,
        x: Float[Array, "h w c_in"],
        scale: Float[Array, " c_in"],
        offset: Float[Array, " c_in"],
    ) -> Float[Array, "h_out w_out c_out"]:
        """self(relu(x * scale + offset)), of which on CPUs the ReLU is never written to memory."""
        kernel = self.kernel.astype(x.dtype)
        x = conv2d_of_relu(x, scale, offset, kernel, stride=self.stride, padding=self.padding)
        return x if self.bias is None else x + self.bias.astype(x.dtype)


class DepthwiseConv(eqx.Module):
    """Convolution of each channel by a kernel of its own, with "SAME" padding and without bias."""

    kernel: Float[Array, "k k 1 c"]
    bias: Float[Array, " c"] | None
    stride: int = eqx.field(static=True)

    def __init__(self, channels: int, *, kernel_size: int = 3, stride: int = 1, key: PRNGKeyArray):
        init = jax.nn.initializers.he_normal()
        self.kernel = init(key, (kernel_size, kernel_size, 1, channels))
        self.bias = None
        self.stride = stride

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h_out w_out c"]:
        x = depthwise_conv2d(x, self.kernel.astype(x.dtype), stride=self.stride)
        return x if self.bias is None else x + self.bias.astype(x.dtype)


class ConvTranspose(eqx.Module):
    """Transposed 2x2 convolution with stride 2, which doubles height and width; Flax's numerics."""

    kernel: Float[Array, "2 2 c_in c_out"]
    bias: Float[Array, " c_out"]

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKeyArray):
        self.kernel = jax.nn.initializers.lecun_normal()(key, (2, 2, c_in, c_out))
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "2*h 2*w c_out"]:
        return conv2d_transpose(x, self.kernel.astype(x.dtype)) + self.bias.astype(x.dtype)


class BatchNorm(eqx.nn.StatefulLayer):
    """Batch normalisation over the axis `BATCH_AXIS`, h and w, with Flax's semantics.

    Training normalises by the batch's mean and biased variance and updates the running ones, which
    start at 0 and 1 and which inference uses. `eqx.nn.BatchNorm(mode="batch")` differs: it divides
    the running variance by 1 - momentum^n although that started at one.
    Statistics are float32 whatever the input's dtype.
    """

    scale: Float[Array, " c"]
    bias: Float[Array, " c"]
    running: eqx.nn.StateIndex[dict[str, Array]]
    momentum: float
    inference: bool
    epsilon: float = eqx.field(static=True)

    def __init__(self, channels: int, *, momentum: float = 0.99, epsilon: float = 1e-5):
        self.scale = jnp.ones(channels)
        self.bias = jnp.zeros(channels)
        self.running = eqx.nn.StateIndex({"mean": jnp.zeros(channels), "var": jnp.ones(channels)})
        self.momentum = momentum
        self.inference = False
        self.epsilon = epsilon

    def __call__(
        self, x: Float[Array, "h w c"], state: eqx.nn.State, *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "h w c"], eqx.nn.State]:
        scale, offset, state = self.affine(x, state)
        return (x.astype(jnp.float32) * scale + offset).astype(x.dtype), state

    def affine(
        self, x: Float[Array, "h w c"], state: eqx.nn.State
    ) -> tuple[Float[Array, " c"], Float[Array, " c"], eqx.nn.State]:
        """Returns scale and offset, of which x * scale + offset is the result, and the new state.

        As one product and sum: x - mean would be kept for the gradient, beside x.
        """
        if self.inference:
            return *self.running_affine(state), state
        x32 = x.astype(jnp.float32)
        mean = _mean_over_batch(jnp.mean(x32, axis=(0, 1)))
        mean_square = _mean_over_batch(jnp.mean(x32 * x32, axis=(0, 1)))
        var = jnp.maximum(mean_square - mean * mean, 0)
        running = jax.tree.map(
            lambda old, new: self.momentum * old + (1 - self.momentum) * new,
            state.get(self.running),
            jax.lax.stop_gradient({"mean": mean, "var": var}),
        )
        return *self._affine(mean, var), state.set(self.running, running)

    def running_affine(self, state: eqx.nn.State) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns scale and offset by the running statistics, as inference uses them."""
        running = state.get(self.running)
        return self._affine(running["mean"], running["var"])

    def _affine(
        self, mean: Float[Array, " c"], var: Float[Array, " c"]
    ) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        scale = jax.lax.rsqrt(var + self.epsilon) * self.scale
        return scale, self.bias - mean * scale


def _mean_over_batch(x: Float[Array, " c"]) -> Float[Array, " c"]:
    try:
        return jax.lax.pmean(x, BATCH_AXIS)
    except NameError as error:
        raise RuntimeError(
            "BatchNorm in training mode takes its statistics over a batch, and was given one "
            "image: call the model through `eqxunet.models.batched(model)`, which is "
            f'`jax.vmap(..., axis_name="{BATCH_AXIS}")`, or use `eqx.nn.inference_mode(model)`.'
        ) from error


class GroupNorm(eqx.Module):
    """Group normalisation over a group's channels, h and w; variance as E[x^2] - E[x]^2."""

    scale: Float[Array, " c"]
    bias: Float[Array, " c"]
    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, channels: int, *, groups: int = 4, epsilon: float = 1e-5):
        self.scale = jnp.ones(channels)
        self.bias = jnp.zeros(channels)
        self.groups = groups
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        scale, offset = self.affine(x)
        return (x.astype(jnp.float32) * scale + offset).astype(x.dtype)

    def affine(self, x: Float[Array, "h w c"]) -> tuple[Float[Array, " c"], Float[Array, " c"]]:
        """Returns scale and offset, of which x * scale + offset is the result."""
        x32 = x.astype(jnp.float32)
        by_group = (self.groups, x.shape[-1] // self.groups)
        # Channels first, groups after: each of the two sums reads x once, in its own layout.
        mean = jnp.mean(jnp.mean(x32, axis=(0, 1)).reshape(by_group), axis=1, keepdims=True)
        mean_square = jnp.mean(
            jnp.mean(x32 * x32, axis=(0, 1)).reshape(by_group), axis=1, keepdims=True
        )
        var = jnp.maximum(mean_square - mean * mean, 0)
        scale = jax.lax.rsqrt(var + self.epsilon) * self.scale.reshape(by_group)
        offset = self.bias.reshape(by_group) - mean * scale
        return scale.reshape(-1), offset.reshape(-1)


def max_pool(
    x: Float[Array, "h w c"], window: int = 2, padding: str | Padding = "SAME"
) -> Float[Array, "-(-h//2) -(-w//2) c"]:
    """Max pooling with stride 2, by default "SAME": odd sizes round up, padding never wins."""
    if window == 2:
        # On CPUs XLA is slow at the gradient of reduce_window, and fast at that of four slices.
        h, w, _ = x.shape
        x = jnp.pad(x, ((0, h % 2), (0, w % 2), (0, 0)), constant_values=-jnp.inf)
        top, bottom = x[::2], x[1::2]
        return jnp.maximum(
            jnp.maximum(top[:, ::2], top[:, 1::2]), jnp.maximum(bottom[:, ::2], bottom[:, 1::2])
        )
    pads = padding if isinstance(padding, str) else (*padding, (0, 0))
    return jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (window, window, 1), (2, 2, 1), padding=pads
    )


def resize(x: Float[Array, "h w c"], height: int, width: int) -> Float[Array, "height width c"]:
    """Bilinear resize, the identity where the size already fits."""
    if x.shape[:2] == (height, width):
        return x
    return jax.image.resize(x, (height, width, x.shape[2]), "bilinear")
