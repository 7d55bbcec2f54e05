"""The encoders, one a file, and the table of them."""

from collections.abc import Callable

from jaxtyping import PRNGKeyArray

from ...config import Encoder, ModelConfig
from .encoder import AbstractEncoder as AbstractEncoder
from .encoder import Pyramid as Pyramid
from .plain import PlainEncoder as PlainEncoder
from .serl import ResNet10 as ResNet10
from .serl import SerlEncoder as SerlEncoder
from .serl import SerlResNet as SerlResNet

ENCODERS: dict[Encoder, Callable[[ModelConfig, PRNGKeyArray], AbstractEncoder]] = {
    "scratch": lambda config, key: PlainEncoder(3, config.channels, key=key),
    "resnet10": lambda config, key: SerlEncoder(config.stage_sizes, key=key),
}
"""By `ModelConfig.encoder`: from the configuration and a key, an encoder of random weights."""
