"""The ResNets that torchvision and timm have ImageNet weights for."""

import re
from typing import ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..blocks import ConvNorm
from ..layers import BatchNorm, Conv, max_pool
from .encoder import AbstractTorchEncoder, Pyramid
from .imagenet import normalise

_WIDTHS = (64, 128, 256, 512)


def _conv(c_in: int, c_out: int, size: int, *, stride: int = 1, key: PRNGKeyArray) -> ConvNorm:
    """Pads on all sides alike, at stride 2 too, where "SAME" does not."""
    pad = size // 2
    conv = Conv(
        c_in,
        c_out,
        kernel_size=size,
        stride=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_init=jax.nn.initializers.he_normal(),
        key=key,
    )
    return ConvNorm(conv, BatchNorm(c_out))


class Residual(eqx.Module):
    """A chain of convolutions beside a path that is the identity where the shape stays.

    Two 3x3 ones, or, as bottleneck, 1x1, 3x3 and 1x1 to four times the width, with the stride in
    the 3x3 one (what is called ResNet v1.5).
    """

    convs: tuple[ConvNorm, ...]
    downsample: ConvNorm | None

    def __init__(
        self, c_in: int, width: int, *, is_bottleneck: bool, stride: int, key: PRNGKeyArray
    ):
        key1, key2, key3, key4 = jax.random.split(key, 4)
        if is_bottleneck:
            c_out = 4 * width
            self.convs = (
                _conv(c_in, width, 1, key=key1),
                _conv(width, width, 3, stride=stride, key=key2),
                _conv(width, c_out, 1, key=key3),
            )
        else:
            c_out = width
            self.convs = (
                _conv(c_in, width, 3, stride=stride, key=key1),
                _conv(width, width, 3, key=key2),
            )
        is_same = stride == 1 and c_in == c_out
        self.downsample = None if is_same else _conv(c_in, c_out, 1, stride=stride, key=key4)

    def __call__(
        self, x: Float[Array, "h w c_in"], state: eqx.nn.State
    ) -> tuple[Float[Array, "h_out w_out c_out"], eqx.nn.State]:
        *inner, last = self.convs
        y = x
        for conv in inner:
            y, state = conv.then_relu(y, state)
        y, state = last(y, state)
        if self.downsample is not None:
            x, state = self.downsample(x, state)
        return jax.nn.relu(x + y), state


class ResNetEncoder(AbstractTorchEncoder):
    """A ResNet (He, Zhang, Ren, Sun, CVPR 2016) as torchvision has it: the stem's map at stride 2,
    and the outputs of its four stages at strides 4 to 32. Normalises by ImageNet's statistics.

    Arguments:

    - `stage_sizes`: residual blocks a stage.
    - `is_bottleneck`: whether they are bottlenecks, as from ResNet-50 up.
    """

    stem: ConvNorm
    stages: tuple[tuple[Residual, ...], ...]
    in_channels: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    strides: tuple[int, ...] = eqx.field(static=True)
    left_out: ClassVar[tuple[str, ...]] = ("fc.",)

    def __init__(
        self,
        stage_sizes: tuple[int, int, int, int],
        *,
        is_bottleneck: bool = False,
        key: PRNGKeyArray,
    ):
        key, stem_key = jax.random.split(key)
        self.stem = _conv(3, 64, 7, stride=2, key=stem_key)
        c_in, stages, channels = 64, [], [64]
        for i, (width, blocks) in enumerate(zip(_WIDTHS, stage_sizes, strict=True)):
            stage = []
            for j in range(blocks):
                key, block_key = jax.random.split(key)
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(
                    Residual(c_in, width, is_bottleneck=is_bottleneck, stride=stride, key=block_key)
                )
                c_in = 4 * width if is_bottleneck else width
            stages.append(tuple(stage))
            channels.append(c_in)
        self.stages = tuple(stages)
        self.in_channels = 3
        self.channels = tuple(channels)
        self.strides = (2, 4, 8, 16, 32)

    def __call__(
        self, image: Float[Array, "h w {self.in_channels}"], state: eqx.nn.State
    ) -> tuple[Pyramid, eqx.nn.State]:
        x, state = self.stem.then_relu(normalise(image), state)
        maps = [x]
        x = max_pool(x, window=3, padding=((1, 1), (1, 1)))
        for stage in self.stages:
            for block in stage:
                x, state = block(x, state)
            maps.append(x)
        return tuple(maps), state

    def torch_name(self, path: str) -> str:
        """`stages.0.1.convs.1.norm` is `layer1.1.bn2`."""
        path = path.replace("stem.", "convs.0.").replace("downsample.conv", "downsample.0")
        path = path.replace("downsample.norm", "downsample.1")
        path = re.sub(r"stages\.(\d+)", lambda found: f"layer{int(found[1]) + 1}", path)
        path = re.sub(r"convs\.(\d+)\.conv", lambda found: f"conv{int(found[1]) + 1}", path)
        return re.sub(r"convs\.(\d+)\.norm", lambda found: f"bn{int(found[1]) + 1}", path)
