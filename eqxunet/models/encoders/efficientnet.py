"""EfficientNet-Lite0, of which ImageNet weights install from the package index."""

import re
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..blocks import ConvNorm
from ..layers import BatchNorm, Conv, DepthwiseConv
from .encoder import AbstractTorchEncoder, Pyramid

_EPSILON = 1e-3
# Of each stage: blocks, kernel size, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_MAPS = (0, 1, 2, 4, 6)  # stages whose output is the last of its stride


def _norm(channels: int) -> BatchNorm:
    return BatchNorm(channels, epsilon=_EPSILON)


def _conv(c_in: int, c_out: int, size: int = 1, *, stride: int = 1, key: PRNGKeyArray) -> ConvNorm:
    init = jax.nn.initializers.he_normal()
    conv = Conv(c_in, c_out, kernel_size=size, stride=stride, kernel_init=init, key=key)
    return ConvNorm(conv, _norm(c_out))


class InvertedResidual(eqx.Module):
    """1x1 convolution to more channels, depthwise convolution, 1x1 convolution to fewer.

    ReLU6 follows the first two; the input is added where the shape stays.
    """

    expand: ConvNorm | None
    depthwise: ConvNorm
    project: ConvNorm
    is_residual: bool = eqx.field(static=True)

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        expansion: int,
        kernel_size: int,
        stride: int,
        key: PRNGKeyArray,
    ):
        key1, key2, key3 = jax.random.split(key, 3)
        width = c_in * expansion
        self.expand = None if expansion == 1 else _conv(c_in, width, key=key1)
        depthwise = DepthwiseConv(width, kernel_size=kernel_size, stride=stride, key=key2)
        self.depthwise = ConvNorm(depthwise, _norm(width))
        self.project = _conv(width, c_out, key=key3)
        self.is_residual = stride == 1 and c_in == c_out

    def __call__(
        self, x: Float[Array, "h w c_in"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h_out w_out c_out"], eqx.nn.State]:
        y = x
        if self.expand is not None:
            y, state = self.expand(y, state)
            y = jax.nn.relu6(y)
        y, state = self.depthwise(y, state)
        y, state = self.project(jax.nn.relu6(y), state)
        return (x + y if self.is_residual else y), state


class EfficientNetLite0(AbstractTorchEncoder):
    """EfficientNet-Lite0 without its head (github.com/tensorflow/tpu, efficientnet/lite).

    EfficientNet-B0 (Tan, Le, ICML 2019) without squeeze and excitation, with ReLU6, and with
    TensorFlow's "SAME" padding. Its pyramid holds the last map of each stride from 2 to 32. Images
    are normalised inside as (x - 127) / 128, of 0 to 255.
    """

    stem: ConvNorm
    stages: tuple[tuple[InvertedResidual, ...], ...]
    in_channels: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] = eqx.field(static=True)
    left_out: ClassVar[tuple[str, ...]] = ("_conv_head.", "_bn1.", "_fc.")

    def __init__(self, *, key: PRNGKeyArray):
        key, stem_key = jax.random.split(key)
        self.stem = _conv(3, 32, 3, stride=2, key=stem_key)
        c_in, stages = 32, []
        for blocks, kernel_size, stride, expansion, c_out in _STAGES:
            stage = []
            for j in range(blocks):
                key, block_key = jax.random.split(key)
                stage.append(
                    InvertedResidual(
                        c_in,
                        c_out,
                        expansion=expansion,
                        kernel_size=kernel_size,
                        stride=stride if j == 0 else 1,
                        key=block_key,
                    )
                )
                c_in = c_out
            stages.append(tuple(stage))
        self.stages = tuple(stages)
        self.in_channels = 3
        self.channels = tuple(_STAGES[i][-1] for i in _MAPS)
        self.strides = (2, 4, 8, 16, 32)

    def __call__(
        self, image: Float[Array, "h w {self.in_channels}"], state: eqx.nn.State
    ) -> tuple[Pyramid, eqx.nn.State]:
        x, state = self.stem((image * 255 - 127) / 128, state)
        x, outputs = jax.nn.relu6(x), []
        for stage in self.stages:
            for block in stage:
                x, state = block(x, state)
            outputs.append(x)
        return tuple(outputs[i] for i in _MAPS), state

    def torch_name(self, path: str) -> str:
        """`stages.1.0.depthwise.norm` is `_blocks.1._bn1`: blocks are counted throughout."""
        if found := re.match(r"stages\.(\d+)\.(\d+)", path):
            before = sum(len(stage) for stage in self.stages[: int(found[1])])
            path = path.replace(found[0], f"_blocks.{before + int(found[2])}")
        names = {
            "stem.conv": "_conv_stem",
            "stem.norm": "_bn0",
            "expand.conv": "_expand_conv",
            "expand.norm": "_bn0",
            "depthwise.conv": "_depthwise_conv",
            "depthwise.norm": "_bn1",
            "project.conv": "_project_conv",
            "project.norm": "_bn2",
        }
        *above, layer, kind = path.split(".")
        return ".".join([*above, names[f"{layer}.{kind}"]])
