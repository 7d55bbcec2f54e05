"""Which leaves are trained, and by which optimiser."""

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PyTree

from ..config import TrainConfig
from ..errors import InputError
from ..models import UNet


def is_encoder_frozen(model: UNet, config: TrainConfig) -> bool:
    """Whether the encoder stays as it is: only where pretrained weights exist is there a point.

    Raises InputError where its learning rate is scaled although it starts from scratch.
    """
    has_weights = model.encoder.has_pretrained_weights
    if config.encoder_lr_scale != 1 and not has_weights:
        raise InputError(
            f"encoder_lr_scale={config.encoder_lr_scale} is for encoders that have pretrained "
            f"weights, and {type(model.encoder).__name__} has none; leave it out"
        )
    return config.freeze_encoder and has_weights


def trainable_mask(model: UNet, config: TrainConfig) -> PyTree[bool]:
    """Returns a tree like the model: true where a leaf is trained."""
    mask = jax.tree.map(eqx.is_inexact_array, model)
    return _with_encoder(mask, False) if is_encoder_frozen(model, config) else mask


def learning_rate(
    config: TrainConfig, lr: Float[Array, ""] | float, total_steps: int
) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Arguments:

    - `lr`: its peak.
    """
    if config.schedule == "constant":
        return lambda step: lr
    warmup_steps = round(config.warmup * total_steps)
    share = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps, total_steps)
    return lambda step: lr * share(step)


def make_optimizer(
    trainable: PyTree, config: TrainConfig, lr: Float[Array, ""] | float, total_steps: int
) -> optax.GradientTransformation:
    """Returns AdamW (Loshchilov, Hutter, ICLR 2019), which at weight decay 0 is Adam.

    Arguments:

    - `trainable`: the trained leaves. The clipping norm is theirs alone.
    - `lr`: peak learning rate.
    """
    transforms = []
    if config.clip_norm is not None:
        transforms.append(optax.clip_by_global_norm(config.clip_norm))
    schedule = learning_rate(config, lr, total_steps)
    transforms.append(optax.adamw(schedule, weight_decay=config.weight_decay))
    # All leaves as one vector: a few programs to compile instead of some for each leaf.
    transforms = [optax.flatten(optax.chain(*transforms))]
    if config.encoder_lr_scale != 1:
        in_encoder = _with_encoder(jax.tree.map(lambda _: False, trainable), True)
        transforms.append(optax.masked(optax.scale(config.encoder_lr_scale), in_encoder))
    return optax.chain(*transforms)


def _with_encoder(mask: PyTree[bool], value: bool) -> PyTree[bool]:
    return eqx.tree_at(
        lambda model: model.encoder, mask, jax.tree.map(lambda _: value, mask.encoder)
    )
