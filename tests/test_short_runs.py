"""What a run says that ends too early for what it is meant to do."""

import pytest

import eqxunet as eu
from eqxunet.runs.training import _tell_of_length


class Listener(eu.Observer):
    def __init__(self):
        self.told = []

    def note(self, text):
        self.told.append(text)

    warn = note


def told(epoch_steps, steps=None, epochs=20, encoder="scratch", unfreeze_after=None, **options):
    train = eu.TrainConfig(steps=steps, epochs=epochs, unfreeze_after=unfreeze_after)
    config = eu.RunConfig(model=eu.ModelConfig(encoder=encoder), train=train, **options)
    listener = Listener()
    _tell_of_length(config, epoch_steps, steps or epochs * epoch_steps, listener)
    return listener.told


def test_epochs_of_a_small_folder_are_told_in_steps_once():
    (text,) = told(16)
    assert "20 epochs of so few images are 320 steps" in text and "--epochs 63 " in text
    assert told(50) == []


def test_pretrained_weights_need_fewer():
    assert told(16, encoder="resnet10") == []
    (text,) = told(14, encoder="resnet10")
    assert "280 steps" in text and "--epochs 22 makes 300" in text
    assert len(told(16, encoder="resnet10", weights="random")) == 1


@pytest.mark.parametrize("trial", [{"steps": 5}, {"epochs": 2}, {"limit": 24}])
def test_who_only_tries_is_not_told(trial):
    assert told(3, **trial) == []


def test_an_encoder_that_is_never_unfrozen_is_warned_of():
    (text,) = told(16, steps=96, encoder="resnet10", unfreeze_after=6)
    assert "stays frozen" in text and "--unfreeze-after 6 is 96" in text
    assert told(16, steps=97, encoder="resnet10", unfreeze_after=6) == []
