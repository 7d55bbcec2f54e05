"""The two segmentation networks as the original article writes them, in Flax Linen.

They are the reference that parity tests and benchmarks compare with; parameter names are the
original's, so `eqxunet.from_flax` maps them. Batches are (batch, h, w, 3), RGB in [0, 1].
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConvBlock(nn.Module):
    """Twice 3x3 convolution, BatchNorm, ReLU."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        for _ in range(2):
            x = nn.Conv(self.channels, (3, 3), padding="SAME", use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            x = nn.relu(x)
        return x


class DownBlock(nn.Module):
    """ConvBlock, whose output is the skip, then 2x2 max pooling."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> tuple[jax.Array, jax.Array]:
        skip = ConvBlock(self.channels)(x, train=train)
        return nn.max_pool(skip, (2, 2), strides=(2, 2), padding="SAME"), skip


class UpBlock(nn.Module):
    """Transposed convolution, concatenation with the skip where there is one, ConvBlock."""

    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array | None, train: bool = True) -> jax.Array:
        x = nn.ConvTranspose(self.channels, (2, 2), strides=(2, 2), padding="SAME")(x)
        if skip is not None:
            x = jnp.concatenate([_resize(x, skip.shape[1], skip.shape[2]), skip], axis=-1)
        return ConvBlock(self.channels)(x, train=train)


def _resize(x: jax.Array, height: int, width: int) -> jax.Array:
    if x.shape[1:3] == (height, width):
        return x
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear")


class UNet(nn.Module):
    """U-Net from scratch; returns logits (batch, h, w, 1)."""

    channels: Sequence[int] = (32, 64, 128, 256)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        skips = []
        for channels in self.channels[:-1]:
            x, skip = DownBlock(channels)(x, train=train)
            skips.append(skip)
        x = ConvBlock(self.channels[-1])(x, train=train)
        for channels, skip in zip(reversed(self.channels[:-1]), reversed(skips), strict=True):
            x = UpBlock(channels)(x, skip, train=train)
        return nn.Conv(1, (1, 1), padding="SAME")(x)


class MyGroupNorm(nn.GroupNorm):
    """GroupNorm under the name that SERL's parameters carry."""


class ResNetBlock(nn.Module):
    """Residual block of two 3x3 convolutions; a projection only where the shape changes."""

    filters: int
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def conv(size: int, strides: tuple[int, int] = (1, 1), name: str | None = None):
            init = nn.initializers.kaiming_normal()
            return nn.Conv(
                self.filters, (size, size), strides, use_bias=False, kernel_init=init, name=name
            )

        def norm(name: str | None = None):
            return MyGroupNorm(num_groups=4, epsilon=1e-5, name=name)

        y = nn.relu(norm()(conv(3, self.strides)(x)))
        y = norm()(conv(3)(y))
        if x.shape != y.shape:
            x = norm("norm_proj")(conv(1, self.strides, "conv_proj")(x))
        return nn.relu(x + y)


class ResNetEncoder(nn.Module):
    """SERL's image encoder; returns the outputs of its four stages."""

    stage_sizes: Sequence[int] = (1, 1, 1, 1)

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        x = (x - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
        init = nn.initializers.kaiming_normal()
        x = nn.Conv(
            64,
            (7, 7),
            (2, 2),
            padding=[(3, 3), (3, 3)],
            use_bias=False,
            kernel_init=init,
            name="conv_init",
        )(x)
        x = nn.relu(MyGroupNorm(num_groups=4, epsilon=1e-5, name="norm_init")(x))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        stages, block = [], 0
        for i, blocks in enumerate(self.stage_sizes):
            for j in range(blocks):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = ResNetBlock(64 * 2**i, strides, name=f"ResNetBlock_{block}")(x)
                block += 1
            stages.append(x)
        return tuple(stages)


class Decoder(nn.Module):
    """Up blocks with the skips of stages 3, 2, 1, then two without, and the 1x1 head."""

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], train: bool = True) -> jax.Array:
        s1, s2, s3, x = features
        for channels, skip in zip((256, 128, 64, 32, 16), (s3, s2, s1, None, None), strict=True):
            x = UpBlock(channels)(x, skip, train=train)
        return nn.Conv(1, (1, 1), padding="SAME")(x)


class ResNetUNet(nn.Module):
    """ResNet encoder and U-Net decoder; returns logits (batch, h, w, 1) at the input's size."""

    stage_sizes: Sequence[int] = (1, 1, 1, 1)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        features = ResNetEncoder(self.stage_sizes, name="encoder")(x)
        logits = Decoder(name="decoder")(features, train=train)
        return _resize(logits, x.shape[1], x.shape[2])
