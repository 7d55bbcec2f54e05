"""The encoders, one a file, and the table of them."""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from ...config import Encoder, ModelConfig
from .efficientnet import EfficientNetLite0 as EfficientNetLite0
from .encoder import AbstractEncoder as AbstractEncoder
from .encoder import AbstractTorchEncoder as AbstractTorchEncoder
from .encoder import Pyramid as Pyramid
from .plain import PlainEncoder as PlainEncoder
from .resnet import ResNetEncoder as ResNetEncoder
from .serl import ResNet10 as ResNet10
from .serl import SerlEncoder as SerlEncoder
from .serl import SerlResNet as SerlResNet

ENCODERS: dict[Encoder, Callable[[ModelConfig, PRNGKeyArray], AbstractEncoder]] = {
    "scratch": lambda config, key: PlainEncoder(3, config.channels, key=key),
    "resnet10": lambda config, key: SerlEncoder(config.stage_sizes, key=key),
    "resnet18": lambda _, key: ResNetEncoder((2, 2, 2, 2), key=key),
    "resnet34": lambda _, key: ResNetEncoder((3, 4, 6, 3), key=key),
    "resnet50": lambda _, key: ResNetEncoder((3, 4, 6, 3), is_bottleneck=True, key=key),
    "efficientnet_lite0": lambda _, key: EfficientNetLite0(key=key),
}
"""By `ModelConfig.encoder`: from the configuration and a key, an encoder of random weights."""
