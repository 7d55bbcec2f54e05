"""An encoder that is frozen at first, and trained later."""

import dataclasses
from collections.abc import Iterator

import equinox as eqx
from jaxtyping import PyTree

from ..data import Split
from ..data.batches import steps_per_epoch
from .loop import fit
from .optimizer import carry_moments, is_encoder_trained, keeps_statistics
from .step import StepMetrics, Trainer, TrainState


def fit_in_phases(
    trainer: Trainer, train_state: TrainState, split: Split
) -> Iterator[tuple[Trainer, TrainState, StepMetrics]]:
    """Trains as `fit` does, with the encoder from epoch `unfreeze_after` of the configuration on.

    Yields the trainer beside each state, since the one of before knows the encoder as frozen.
    """
    after = trainer.config.unfreeze_after
    if after is not None and not is_encoder_trained(train_state.trainable):
        end = min(after * steps_per_epoch(split, trainer.config.batch_size), trainer.total_steps)
        phase = fit(trainer, train_state, split, until=end)
        for train_state, metrics in phase:
            yield trainer, train_state, metrics
        if end == trainer.total_steps:
            return
        trainer, train_state = unfreeze(trainer, train_state)
    phase = fit(trainer, train_state, split)
    for train_state, metrics in phase:
        yield trainer, train_state, metrics


@eqx.filter_jit  # so that its results own their buffers, which the step donates
def unfreeze(trainer: Trainer, train_state: TrainState) -> tuple[Trainer, TrainState]:
    """Returns both with a frozen encoder among what is trained, in training mode unless
    BatchNorm's statistics in it stay.

    Its moments start at zero; those of the other leaves and the schedule go on.

    Arguments:

    - `train_state`: is not used up.
    """

    def unfrozen(trained: PyTree) -> tuple[PyTree, PyTree]:
        model = eqx.combine(trained, trainer.frozen)
        keep = keeps_statistics(model, trainer.config)
        encoder = eqx.nn.inference_mode(model.encoder, value=keep)
        model = eqx.tree_at(lambda model: model.encoder, model, encoder)
        return eqx.partition(model, eqx.is_inexact_array)

    trainable, frozen = unfrozen(train_state.trainable)
    average = None if train_state.average is None else unfrozen(train_state.average)[0]
    later = dataclasses.replace(trainer, frozen=frozen)
    opt_state = carry_moments(train_state.opt_state, later.optimizer(trainable).init(trainable))
    return later, dataclasses.replace(
        train_state, trainable=trainable, opt_state=opt_state, average=average
    )
