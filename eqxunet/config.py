"""Configuration as plain values: what a model is, and how it is trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import InputError

Border = Literal["foreground", "background", "ignore"]
Encoder = Literal["scratch", "resnet10"]
Precision = Literal["float32", "bfloat16"]
Schedule = Literal["constant", "cosine"]
SplitName = Literal["train", "val", "test", "all"]
TaskName = Literal["binary", "semantic"]
Labels = Literal["trimap", "species", "mask", "classes"]
"""What the values of a split's labels are.

- `"trimap"`: 1 = pet, 2 = background, 3 = border.
- `"species"`: 0 = background, 1 = cat, 2 = dog, 3 = border of a cat, 4 = border of a dog.
- `"mask"`: 0 = background, 1 = foreground.
- `"classes"`: the index of a class; 255 = not labelled.
"""

DATASETS = ("oxford_iiit_pet", "synthetic")
"""What `--data` takes beside a folder."""

DATA_DIR = Path("~/tensorflow_datasets")
"""Where TFDS keeps its datasets unless told otherwise."""


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a U-Net.

    Arguments:

    - `encoder`: `"scratch"`, a plain U-Net, or `"resnet10"`, SERL's ResNet with a decoder.
    - `channels`: channels of each level of the plain U-Net, shallow to deep.
    - `stage_sizes`: residual blocks in each of the ResNet's four stages.
    - `size`: height and width in pixels that the model is trained at. The network itself takes
      any size; `predict` resizes to this one.
    """

    encoder: Encoder = "scratch"
    channels: tuple[int, ...] = (32, 64, 128, 256)
    stage_sizes: tuple[int, int, int, int] = (1, 1, 1, 1)
    size: int = 128


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the options of `eqxunet train` map onto these fields.

    Arguments:

    - `batch_size`: images a step.
    - `epochs`: passes over the training split; `steps`, where given, replaces it.
    - `lr`: peak learning rate of AdamW; `weight_decay` 0 makes it Adam.
    - `schedule`: `"constant"`, or `"cosine"`, which warms up over `warmup` of all steps and
      then falls to 0.
    - `clip_norm`: largest norm of the gradient over all trained leaves.
    - `freeze_encoder`: train the decoder of a `"resnet10"` model only.
    - `encoder_lr_scale`: factor on the encoder's learning rate where it is trained.
    - `augment`: flip, scale and crop, and change colours of training images.
    - `border`: what the trimap's border pixels count as.
    - `precision`: dtype that the network computes in; parameters and statistics stay float32.
    - `accumulate`: how many parts of the batch a step computes one after another, for batches
      that don't fit in memory. BatchNorm takes its statistics of a part.
    - `remat`: compute everything between convolutions again for the gradient, instead of keeping
      it; for GPUs and TPUs.
    - `seed`: the only source of randomness.
    - `patience`: epochs without a better validation IoU after which training stops.
    - `max_skipped`: steps in a row whose loss or gradient is not finite before giving up.
    """

    batch_size: int = 16
    epochs: int = 20
    steps: int | None = None
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float | None = None
    freeze_encoder: bool = True
    encoder_lr_scale: float = 1.0
    augment: bool = True
    border: Border = "foreground"
    precision: Precision = "float32"
    accumulate: int = 1
    remat: bool = False
    seed: int = 0
    patience: int | None = None
    max_skipped: int = 5

    def __post_init__(self):
        if self.accumulate < 1 or self.batch_size % self.accumulate:
            raise InputError(
                f"a batch of {self.batch_size} does not divide into {self.accumulate} equal parts; "
                "set --accumulate to a divisor of --batch-size"
            )
