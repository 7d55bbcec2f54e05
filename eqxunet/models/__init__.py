from .flax import from_flax as from_flax
from .fold import fold as fold
from .pretrained import load_resnet10 as load_resnet10
from .resnet import ResNet10 as ResNet10
from .unet import AbstractUNet as AbstractUNet
from .unet import ResNetUNet as ResNetUNet
from .unet import UNet as UNet
from .unet import build as build
