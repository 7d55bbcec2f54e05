"""Configuration as plain values: what a model is, and how it is trained."""

import difflib
import numbers
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import InputError

Border = Literal["foreground", "background", "ignore"]
Encoder = Literal["scratch", "resnet10", "resnet18", "resnet34", "resnet50", "efficientnet_lite0"]
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

_MOST = 2**31 - 1  # that a device counts to


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of a U-Net.

    Arguments:

    - `encoder`: `"scratch"`, a plain U-Net, or a network with ImageNet weights and a decoder on it:
      `"resnet10"` is SERL's, the other ResNets are torchvision's.
    - `channels`: channels of each level of the plain U-Net, shallow to deep; from two levels to 16.
    - `stage_sizes`: residual blocks in each of the four stages of SERL's ResNet.
    - `size`: height and width in pixels that the model is trained at, 8 at least, where the
      deepest map of the default U-Net is one pixel. The network itself takes any size; `predict`
      resizes to this one.

    Raises InputError for values that are unknown, or have no meaning for the encoder.
    """

    encoder: Encoder = "scratch"
    channels: tuple[int, ...] = (32, 64, 128, 256)
    stage_sizes: tuple[int, int, int, int] = (1, 1, 1, 1)
    size: int = 128

    def __post_init__(self):
        require_choice("encoder", self.encoder, Encoder)
        for name in ("channels", "stage_sizes"):
            _plain(self, name, getattr(self, name))
        are_levels = _are_whole(self.channels, 2**14) and 2 <= len(self.channels) <= 16
        _require(
            self, "channels", are_levels, "a tuple of two or more whole numbers from 1 up to 16384"
        )
        are_stages = _are_whole(self.stage_sizes, 100) and len(self.stage_sizes) == 4
        _require(self, "stage_sizes", are_stages, "a tuple of four whole numbers from 1 up to 100")
        _require_whole(self, "size", least=8)
        _require_at_most(self, "size", 2**15)
        for name, encoder in (("channels", "scratch"), ("stage_sizes", "resnet10")):
            value = getattr(self, name)
            if self.encoder != encoder and value != _default(self, name):
                raise InputError(
                    f"{name}={value} is for encoder={encoder!r}; leave it out, or use that encoder"
                )

    @property
    def has_pretrained_weights(self) -> bool:
        """Whether weights exist for the encoder; a test holds it to what the encoders say."""
        return self.encoder != "scratch"


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
    - `freeze_encoder`: leave an encoder that has pretrained weights as it is, BatchNorm's
      statistics included, and train the decoder only. By default SERL's is left as it is, and
      those with ImageNet weights are trained, too.
    - `unfreeze_after`: epochs after which such an encoder is trained too; a loop of one's own calls
      `unfreeze`.
    - `encoder_lr_scale`: factor on the learning rate of such an encoder where it is trained.
    - `keep_statistics`: leave BatchNorm's statistics in such an encoder as they are where it is
      trained, since they belong to its weights. By default they stay, and the factor is 0.1;
      random weights need 1 and false, which is what a `RunConfig` with `weights="random"` gives.
    - `ema`: validate and keep a moving average of the weights in place of the latest ones.
    - `augment`: flip, scale and crop, and change colours of training images.
    - `border`: what the trimap's border pixels count as; a loop of one's own tells its task.
    - `precision`: dtype that the network computes in; parameters and statistics stay float32.
    - `accumulate`: how many parts of the batch a step computes one after another, for batches
      that don't fit in memory. BatchNorm takes its statistics of a part.
    - `remat`: compute everything between convolutions again for the gradient, instead of keeping
      it; for GPUs and TPUs.
    - `seed`: the only source of randomness.
    - `patience`: epochs without a better validation IoU after which training stops.
    - `max_skipped`: steps in a row that are not finite before giving up.
    - `checkpoint_every`: save one inside epochs too: after so many steps, or as "10m" minutes.

    Raises InputError for values that are unknown or meaningless.
    """

    batch_size: int = 16
    epochs: int = 20
    steps: int | None = None
    lr: float = 1e-3
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.0
    clip_norm: float | None = None
    freeze_encoder: bool | None = None
    unfreeze_after: int | None = None
    encoder_lr_scale: float | None = None
    keep_statistics: bool | None = None
    ema: bool = False
    augment: bool = True
    border: Border = "foreground"
    precision: Precision = "float32"
    accumulate: int = 1
    remat: bool = False
    seed: int = 0
    patience: int | None = None
    max_skipped: int = 5
    checkpoint_every: int | str | None = None

    def __post_init__(self):
        choices = {"schedule": Schedule, "border": Border, "precision": Precision}
        for name, possible in choices.items():
            require_choice(name, getattr(self, name), possible)
        counts = ("batch_size", "epochs", "steps", "unfreeze_after", "accumulate", "patience")
        for name in (*counts, "max_skipped"):
            _require_whole(self, name, least=1)
            _require_at_most(self, name, _MOST)
        _require_whole(self, "seed", least=0, most=_MOST)
        _require(
            self,
            "checkpoint_every",
            _is_pace(_plain(self, "checkpoint_every", self.checkpoint_every)),
            f'a whole number of steps from 1 to {_MOST}, or minutes such as "10m"',
        )
        for name in ("lr", "clip_norm", "encoder_lr_scale"):
            _require_number(self, name, lambda value: value > 0, "above 0")
        _require_number(self, "weight_decay", lambda value: value >= 0, "from 0 up")
        _require_number(self, "warmup", lambda value: 0 <= value < 1, "from 0 up and below 1")
        after = self.unfreeze_after
        if after is not None and self.freeze_encoder is False:
            raise InputError(
                f"unfreeze_after={after}: the encoder is trained from the start; leave that out, "
                "or freeze_encoder=False (--no-freeze-encoder)"
            )
        if after is not None and self.steps is None and after >= self.epochs:
            raise InputError(
                f"unfreeze_after={after} is not before the end of {self.epochs} epochs; give a "
                "smaller number, or leave it out (--unfreeze-after)"
            )
        if self.encoder_lr_scale not in (None, 1) and self.freeze_encoder and after is None:
            raise InputError(
                f"encoder_lr_scale={self.encoder_lr_scale} scales nothing while the encoder is "
                "frozen; set freeze_encoder=False (--no-freeze-encoder) or unfreeze_after "
                "(--unfreeze-after), or leave it out"
            )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"a batch of {self.batch_size} does not divide into {self.accumulate} equal parts; "
                "set --accumulate to a divisor of --batch-size"
            )


def require_choice(name: str, value: object, choices: Any) -> None:
    """Raises InputError where a value is none of a Literal's, with the one that may be meant."""
    possible = get_args(choices)
    if value not in possible:
        close = difflib.get_close_matches(str(value).lower(), possible, n=1)
        hint = f"{close[0]!r}, if that is what was meant, or " if close else ""
        raise InputError(
            f"{name}={value!r} is not possible; give {hint}one of {', '.join(map(repr, possible))}"
        )


def _require(config: Any, name: str, is_possible: bool, possible: str) -> None:
    if not is_possible:
        raise InputError(
            f"{name}={getattr(config, name)!r} is not possible; give {possible} "
            f"(default {_default(config, name)!r})"
        )


def _require_whole(config: Any, name: str, *, least: int, most: int | None = None) -> None:
    value = _plain(config, name, getattr(config, name))
    is_possible = _is_whole(value, least) or value is _default(config, name) is None
    range_ = f"from {least} up" if most is None else f"from {least} to {most}"
    is_possible &= most is None or value <= most
    _require(config, name, is_possible, f"a whole number {range_}")


def _require_at_most(config: Any, name: str, most: int) -> None:
    value = getattr(config, name)
    _require(config, name, value is None or value <= most, f"a whole number up to {most}")


def _require_number(
    config: Any, name: str, is_within: Callable[[float], bool], range_: str
) -> None:
    value = _plain(config, name, getattr(config, name))
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and abs(value) <= sys.float_info.max  # of an int with any digits, too
    is_possible = is_within(value) if is_number else value is _default(config, name) is None
    _require(config, name, is_possible, f"a number {range_}")


def _plain(config: Any, name: str, value: Any) -> Any:
    """Puts Python's own numbers and tuples in place of NumPy's and of lists."""
    match value:
        case list() | tuple():
            value = tuple(_number(part) for part in value)
        case _:
            value = _number(value)
    object.__setattr__(config, name, value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _are_whole(values: object, most: int) -> bool:
    return isinstance(values, tuple) and all(_is_whole(v, 1) and v <= most for v in values)


def _is_pace(value: object) -> bool:
    match value:
        case str():
            return re.fullmatch("[1-9][0-9]{0,5}m", value) is not None
        case int():
            return _is_whole(value, 1) and value <= _MOST
    return value is None


def _default(config: Any, name: str) -> Any:
    return getattr(type(config), name)
