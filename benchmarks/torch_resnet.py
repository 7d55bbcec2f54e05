"""PyTorch twin of the ResNet-34 encoder; attributes are called as this package's leaves."""

from torch import Tensor, nn
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConvNorm(nn.Module):
    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(c_out, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        convs = ConvNorm(c_in, c_out, 3, stride), ConvNorm(c_out, c_out, 3)
        self.convs = nn.ModuleList(convs)
        is_same = c_in == c_out and stride == 1
        self.downsample = None if is_same else ConvNorm(c_in, c_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convs[1](F.relu(self.convs[0](x), inplace=True))
        x = x if self.downsample is None else self.downsample(x)
        return F.relu(x + y, inplace=True)


class ResNet34(nn.Module):
    """RGB in [0, 1] to the stem's map and those of the four stages."""

    def __init__(self):
        super().__init__()
        self.stem, c_in, self.stages = ConvNorm(3, 64, 7, 2), 64, nn.ModuleList()
        for i, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
            stage = nn.Sequential()
            for j in range(blocks):
                stage.append(Residual(c_in, width, 2 if i > 0 and j == 0 else 1))
                c_in = width
            self.stages.append(stage)

    def forward(self, x: Tensor) -> list[Tensor]:
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        x = F.relu(self.stem((x - mean) / std), inplace=True)
        maps = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps
