"""PyTorch twins of the networks, with the Flax original's parameters copied in, or ours.

Same architecture to the pixel: "SAME" padding at stride 2 puts the odd pixel below and to the
right, so it is padded by hand where PyTorch's symmetric padding would differ.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet34


class ConvBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.Conv_0 = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.BatchNorm_0 = nn.BatchNorm2d(c_out, momentum=0.01)
        self.Conv_1 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.BatchNorm_1 = nn.BatchNorm2d(c_out, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.BatchNorm_0(self.Conv_0(x)), inplace=True)
        return F.relu(self.BatchNorm_1(self.Conv_1(x)), inplace=True)


class DownBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.ConvBlock_0 = ConvBlock(c_in, c_out)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.ConvBlock_0(x)
        return F.max_pool2d(skip, 2, ceil_mode=True), skip


class UpBlock(nn.Module):
    def __init__(self, c_in: int, c_skip: int, c_out: int):
        super().__init__()
        self.ConvTranspose_0 = nn.ConvTranspose2d(c_in, c_out, 2, stride=2)
        self.ConvBlock_0 = ConvBlock(c_out + c_skip, c_out)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.ConvTranspose_0(x)
        if skip is not None:
            if x.shape[2:] != skip.shape[2:]:
                x = F.interpolate(x, skip.shape[2:], mode="bilinear", antialias=True)
            x = torch.cat([x, skip], dim=1)
        return self.ConvBlock_0(x)


class UNet(nn.Module):
    def __init__(self, channels: tuple[int, ...] = (32, 64, 128, 256)):
        super().__init__()
        levels, c_in = len(channels) - 1, 3
        for i, c_out in enumerate(channels[:-1]):
            self.add_module(f"DownBlock_{i}", DownBlock(c_in, c_out))
            c_in = c_out
        self.ConvBlock_0 = ConvBlock(c_in, channels[-1])
        for i in range(levels):
            c_in, c_out = channels[levels - i], channels[levels - i - 1]
            self.add_module(f"UpBlock_{i}", UpBlock(c_in, c_out, c_out))
        self.Conv_0 = nn.Conv2d(channels[0], 1, 1)
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i in range(self.levels):
            x, skip = self.get_submodule(f"DownBlock_{i}")(x)
            skips.append(skip)
        x = self.ConvBlock_0(x)
        for i, skip in enumerate(reversed(skips)):
            x = self.get_submodule(f"UpBlock_{i}")(x, skip)
        return self.Conv_0(x)


def _pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    padding = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


class ResNetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.stride = stride
        self.Conv_0 = nn.Conv2d(c_in, c_out, 3, stride, bias=False)
        self.MyGroupNorm_0 = nn.GroupNorm(4, c_out)
        self.Conv_1 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.MyGroupNorm_1 = nn.GroupNorm(4, c_out)
        if stride != 1 or c_in != c_out:
            self.conv_proj = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.norm_proj = nn.GroupNorm(4, c_out)
        else:
            self.conv_proj = None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.MyGroupNorm_0(self.Conv_0(_pad_same(x, 3, self.stride))), inplace=True)
        y = self.MyGroupNorm_1(self.Conv_1(y))
        if self.conv_proj is not None:
            x = self.norm_proj(self.conv_proj(x))
        return F.relu(x + y)


class ResNetEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], False)
        self.conv_init = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.norm_init = nn.GroupNorm(4, 64)
        for i, (c_in, c_out) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512))):
            self.add_module(f"ResNetBlock_{i}", ResNetBlock(c_in, c_out, 2 if i else 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        x = F.relu(self.norm_init(self.conv_init(x)), inplace=True)
        x = F.max_pool2d(_pad_same(x, 3, 2, -torch.inf), 3, 2)
        stages = []
        for i in range(4):
            x = self.get_submodule(f"ResNetBlock_{i}")(x)
            stages.append(x)
        return stages


class ConvNorm(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = _pad_same(x, self.kernel, self.stride)
        return self.norm(self.conv(x))


class InvertedResidual(nn.Module):
    def __init__(self, c_in: int, c_out: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        width = c_in * expansion
        self.expand = None if expansion == 1 else ConvNorm(c_in, width, 1)
        self.depthwise = ConvNorm(width, width, kernel, stride, groups=width)
        self.project = ConvNorm(width, c_out, 1)
        self.is_residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def __init__(self):
        super().__init__()
        self.stem, c_in, self.stages = ConvNorm(3, 32, 3, 2), 32, nn.ModuleList()
        for blocks, kernel, stride, expansion, c_out in self.STAGES:
            stage = nn.Sequential()
            for j in range(blocks):
                stage.append(
                    InvertedResidual(c_in, c_out, expansion, kernel, stride if j == 0 else 1)
                )
                c_in = c_out
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = F.relu6(self.stem((x * 255 - 127) / 128), inplace=True), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[i] for i in (0, 1, 2, 4, 6)]


class Decoder(nn.Module):
    """Of a pyramid to stride 1; `ups` are channels from below, of the skip, and of the output."""

    def __init__(self, ups: Sequence[tuple[int, int, int]]):
        super().__init__()
        for i, (c_in, c_skip, c_out) in enumerate(ups):
            self.add_module(f"UpBlock_{i}", UpBlock(c_in, c_skip, c_out))
        self.levels = len(ups)
        self.Conv_0 = nn.Conv2d(16, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for i in range(self.levels):
            x = self.get_submodule(f"UpBlock_{i}")(x, skips.pop() if skips else None)
        return self.Conv_0(x)


class EncoderUNet(nn.Module):
    """While it is frozen, the encoder runs without gradient and stores no activations."""

    def __init__(self, encoder: nn.Module, ups: Sequence[tuple[int, int, int]], *, frozen: bool):
        super().__init__()
        self.encoder = encoder.requires_grad_(not frozen)
        self.decoder = Decoder(ups)
        self.frozen = frozen

    def train(self, mode: bool = True) -> "EncoderUNet":
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(x)
        logits = self.decoder(features)
        if logits.shape[2:] != x.shape[2:]:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear", antialias=True)
        return logits


def network(name: str, *, frozen: bool = True) -> nn.Module:
    """The twin of a network, in training mode; `frozen` is its encoder, if it has one."""
    if name == "scratch":
        return UNet()
    if name == "resnet10":
        ups = ((512, 256, 256), (256, 128, 128), (128, 64, 64), (64, 0, 32), (32, 0, 16))
        model = EncoderUNet(ResNetEncoder(), ups, frozen=frozen)
    elif name == "resnet34":
        ups = ((512, 256, 256), (256, 128, 128), (128, 64, 64), (64, 64, 32), (32, 0, 16))
        model = EncoderUNet(ResNet34(), ups, frozen=frozen)
    else:
        ups = ((320, 112, 160), (160, 40, 80), (80, 24, 48), (48, 16, 32), (32, 0, 16))
        model = EncoderUNet(EfficientNetLite0(), ups, frozen=frozen)
    return model.train()


def build(name: str, variables: Mapping[str, Any], *, frozen: bool) -> nn.Module:
    """A twin with variables: nested ones of the Flax original, or ours by dotted path."""
    model = network(name, frozen=frozen)
    load_flax(model, variables if "params" in variables else _nested(variables))
    return model


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Our leaves and running statistics as the Flax original would name and nest them."""
    nested: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for path, value in leaves.items():
        kind = "batch_stats" if ".running." in path else "params"
        path = re.sub(r"^decoder\.up\.(\d+)\.", r"decoder.UpBlock_\1.", path)
        path = path.replace(".running.", ".").replace("head.", "decoder.Conv_0.")
        if path.startswith("decoder."):
            path = path.replace(".up.", ".ConvTranspose_0.").replace(".block.", ".ConvBlock_0.")
            path = re.sub(r"\.conv(\d)\.", lambda m: f".Conv_{int(m[1]) - 1}.", path)
            path = re.sub(r"\.norm(\d)\.", lambda m: f".BatchNorm_{int(m[1]) - 1}.", path)
        *above, last = path.split(".")
        node = nested[kind]
        for part in above:
            node = node.setdefault(part, {})
        node[last] = value
    return nested


def load_flax(model: nn.Module, variables: Mapping[str, Any]) -> None:
    """Copies Flax variables, nested as `init` returns them, into the twin; strict both ways."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    values = {}

    def visit(path: tuple[str, ...], node: Any) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                visit((*path, name), child)
            return
        value = np.asarray(node)
        if path[-1] == "kernel" and "ConvTranspose" in path[-2]:
            # Flax does not flip the kernel of a transposed convolution; PyTorch does.
            value = value[::-1, ::-1].transpose(2, 3, 0, 1)
        elif path[-1] == "kernel":
            value = value.transpose(3, 2, 0, 1)
        name = ".".join((*path[:-1], names.get(path[-1], path[-1])))
        values[name] = torch.from_numpy(value.copy())

    visit((), variables["params"])
    visit((), variables["batch_stats"])
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict(values | counters)
