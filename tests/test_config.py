"""Configurations refuse what is unknown or meaningless, and say what to do."""

import dataclasses

import numpy as np
import pytest

from eqxunet import ModelConfig, RunConfig, TrainConfig
from eqxunet.errors import InputError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"encoder": "Scratch"}, "encoder='Scratch' .* give 'scratch', if that is what was meant"),
        ({"encoder": "resnet1"}, "give 'resnet1[08]', .* or one of 'scratch', 'resnet10'"),
        ({"encoder": "vgg"}, "give one of 'scratch', 'resnet10'"),
        ({"encoder": None}, "encoder=None"),
        ({"channels": ()}, r"channels=\(\) .* tuple of two or more whole numbers"),
        ({"channels": (8,)}, r"channels=\(8,\)"),
        ({"channels": (8, 0)}, r"channels=\(8, 0\)"),
        ({"channels": (8, 16.0)}, r"channels=\(8, 16.0\)"),
        ({"channels": 8}, "channels=8"),
        (
            {"encoder": "resnet10", "channels": (8, 16)},
            r"channels=\(8, 16\) is for encoder='scratch'",
        ),
        ({"encoder": "resnet10", "stage_sizes": (1, 1, 1)}, r"\(1, 1, 1\) .* four whole numbers"),
        ({"encoder": "resnet10", "stage_sizes": (1, 1, 1, 0)}, "four whole numbers from 1 up"),
        ({"stage_sizes": (2, 2, 2, 2)}, r"stage_sizes=\(2, 2, 2, 2\) is for encoder='resnet10'"),
        ({"size": 1}, r"size=1 .* whole number from 8 up \(default 128\)"),
        ({"size": 7}, "size=7"),
        ({"size": 128.0}, "size=128.0"),
    ],
)
def test_models_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schedule": "linear"}, "schedule='linear' .* one of 'constant', 'cosine'"),
        ({"border": "nonsense"}, "border='nonsense' .* 'foreground', 'background', 'ignore'"),
        ({"border": "backround"}, "give 'background', if that is what was meant"),
        ({"precision": "float16"}, "give 'bfloat16', .* or one of 'float32', 'bfloat16'"),
        ({"lr": 0}, r"lr=0 .* number above 0 \(default 0.001\)"),
        ({"lr": -5}, "lr=-5"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": float("inf")}, "lr=inf"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"lr": None}, "lr=None"),
        ({"clip_norm": 0}, "clip_norm=0 .* above 0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 .* from 0 up"),
        ({"warmup": 1}, "warmup=1 .* from 0 up and below 1"),
        ({"warmup": -0.1}, "warmup=-0.1"),
        ({"encoder_lr_scale": 0, "freeze_encoder": False}, "encoder_lr_scale=0 .* above 0"),
        (
            {"encoder_lr_scale": 0.1, "freeze_encoder": True},
            "encoder is frozen; set freeze_encoder=False",
        ),
        ({"unfreeze_after": 0}, r"unfreeze_after=0 .* whole number from 1 up \(default None\)"),
        ({"unfreeze_after": 3, "freeze_encoder": False}, "trained from the start; leave that out"),
        ({"unfreeze_after": 20}, "unfreeze_after=20 is not before the end of 20 epochs"),
        ({"batch_size": 0}, r"batch_size=0 .* whole number from 1 up \(default 16\)"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"epochs": 0}, "epochs=0"),
        ({"epochs": True}, "epochs=True"),
        ({"epochs": None}, "epochs=None"),
        ({"steps": 0}, "steps=0"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"accumulate": 3}, "16 does not divide into 3 .* --accumulate"),
        ({"patience": 0}, "patience=0"),
        ({"max_skipped": 0}, "max_skipped=0"),
        ({"seed": -1}, "seed=-1 .* from 0 to 2147483647"),
        ({"seed": 2**31}, "seed=2147483648"),
    ],
)
def test_trainings_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**given)


def test_the_least_that_works():
    ModelConfig(channels=(1, 1), size=8)
    ModelConfig(encoder="resnet10", stage_sizes=(3, 4, 6, 3))
    TrainConfig(batch_size=1, epochs=1, steps=1, patience=1, max_skipped=1, warmup=0, clip_norm=1)
    TrainConfig(freeze_encoder=False, encoder_lr_scale=0.1)
    TrainConfig(unfreeze_after=19, encoder_lr_scale=0.1)
    TrainConfig(unfreeze_after=20, steps=1000)


def test_what_is_derived_is_checked_too():
    with pytest.raises(InputError, match="lr=-1"):
        dataclasses.replace(TrainConfig(), lr=-1)


def test_numbers_of_numpy_and_lists_become_pythons_own():
    model = ModelConfig(channels=[np.int64(8), 16], size=np.int32(64))
    assert model == ModelConfig(channels=(8, 16), size=64)
    train = TrainConfig(batch_size=np.int64(4), lr=np.float32(0.5))
    assert train == TrainConfig(batch_size=4, lr=0.5)
    values = [*model.channels, model.size, train.batch_size, train.lr]
    assert [type(value) for value in values] == [int, int, int, int, float]


def test_random_weights_are_trained_as_such():
    random = RunConfig(model=ModelConfig(encoder="resnet18"), weights="random")
    assert random.training.encoder_lr_scale == 1 and random.training.keep_statistics is False
    assert random.train == TrainConfig()
    pretrained = dataclasses.replace(random, weights="resnet18.pth")
    assert pretrained.training == TrainConfig()
    with pytest.raises(InputError, match="--keep-statistics: random weights have none"):
        dataclasses.replace(random, train=TrainConfig(keep_statistics=True))
    with pytest.raises(InputError, match="--weights random: --from .*/runs/a brings its own"):
        dataclasses.replace(random, start="runs/a")


def test_runs_of_before_let_the_statistics_of_a_trained_encoder_move():
    values = RunConfig(model=ModelConfig(encoder="resnet18")).values()
    assert RunConfig.from_values(values, "config.json").train.keep_statistics is None
    del values["train"]["keep_statistics"]
    assert RunConfig.from_values(values, "config.json").train.keep_statistics is False
