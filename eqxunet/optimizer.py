"""Which leaves are trained, and by which optimiser."""

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from .config import TrainConfig
from .models import AbstractUNet


def trainable_mask(model: AbstractUNet, config: TrainConfig) -> PyTree[bool]:
    """Returns a tree like the model: true where a leaf is trained."""
    mask = jax.tree.map(eqx.is_inexact_array, model)
    if config.freeze_encoder and hasattr(model, "encoder"):
        mask = _with_encoder(mask, False)
    return mask


def learning_rate(config: TrainConfig, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    if config.schedule == "constant":
        return optax.constant_schedule(config.lr)
    warmup_steps = round(config.warmup * total_steps)
    return optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup_steps, total_steps)


def make_optimizer(
    trainable: PyTree, config: TrainConfig, total_steps: int
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov, Hutter, ICLR 2019), which at weight decay 0 is Adam.

    Arguments:

    - `trainable`: the trained leaves. The clipping norm is theirs alone.
    """
    transforms = []
    if config.clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    schedule = learning_rate(config, total_steps)
    transforms.append(optax.adamw(schedule, weight_decay=config.weight_decay))
    # All leaves as one vector: a few programs to compile instead of some for each leaf.
    transforms = [optax.flatten(optax.chain(*transforms))]
    if config.encoder_lr_scale != 1 and not config.freeze_encoder:
        in_encoder = _with_encoder(jax.tree.map(lambda _: False, trainable), True)
        transforms.append(optax.masked(optax.scale(config.encoder_lr_scale), in_encoder))
    return optax.chain(*transforms)


def _with_encoder(mask: PyTree[bool], value: bool) -> PyTree[bool]:
    return eqx.tree_at(
        lambda model: model.encoder, mask, jax.tree.map(lambda _: value, mask.encoder)
    )
