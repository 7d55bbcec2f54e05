"""PyTorch twins of the two networks, with the Flax original's parameters copied in.

Same architecture to the pixel: "SAME" padding at stride 2 puts the odd pixel below and to the
right, so it is padded by hand where PyTorch's symmetric padding would differ.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        ups = ((512, 256, 256), (256, 128, 128), (128, 64, 64), (64, 0, 32), (32, 0, 16))
        for i, (c_in, c_skip, c_out) in enumerate(ups):
            self.add_module(f"UpBlock_{i}", UpBlock(c_in, c_skip, c_out))
        self.Conv_0 = nn.Conv2d(16, 1, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        s1, s2, s3, x = features
        for i, skip in enumerate((s3, s2, s1, None, None)):
            x = self.get_submodule(f"UpBlock_{i}")(x, skip)
        return self.Conv_0(x)


class ResNetUNet(nn.Module):
    """The encoder is frozen: it runs without gradient and stores no activations."""

    def __init__(self):
        super().__init__()
        self.encoder = ResNetEncoder().requires_grad_(False)
        self.decoder = Decoder()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.encoder(x)
        logits = self.decoder(features)
        if logits.shape[2:] != x.shape[2:]:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear", antialias=True)
        return logits


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
