"""Which leaves are trained, and by which optimiser."""

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PyTree

from ..config import TrainConfig
from ..errors import InputError
from ..models import UNet

_ENCODER, _REST = "encoder", "rest"  # names in checkpoints
_TUNED = 0.1  # of the learning rate, for pretrained weights


def is_encoder_frozen(model: UNet, config: TrainConfig) -> bool:
    """Whether the encoder stays as it is, at first at least: only where pretrained weights exist is
    there a point.

    Raises InputError where it starts from scratch, but has a learning rate of its own or is to be
    trained later; and where it is frozen by default, but has a learning rate.
    """
    encoder, scale = model.encoder, config.encoder_lr_scale
    for name, without in (("encoder_lr_scale", (None, 1)), ("unfreeze_after", (None,))):
        value = getattr(config, name)
        if value not in without and not encoder.has_pretrained_weights:
            raise InputError(
                f"{name}={value} is for encoders that have pretrained weights, and "
                f"{type(encoder).__name__} has none; leave it out"
            )
    if config.freeze_encoder is not None or not encoder.has_pretrained_weights:
        return bool(config.freeze_encoder) and encoder.has_pretrained_weights
    if config.unfreeze_after is None and not encoder.is_tuned and scale not in (None, 1):
        raise InputError(
            f"encoder_lr_scale={scale} scales nothing while the encoder is frozen, as "
            f"{type(encoder).__name__} is by default; set freeze_encoder=False "
            "(--no-freeze-encoder), or leave it out"
        )
    return config.unfreeze_after is not None or not encoder.is_tuned


def keeps_statistics(model: UNet, config: TrainConfig) -> bool:
    """Whether BatchNorm's statistics in the encoder stay where it is trained."""
    return model.encoder.has_pretrained_weights and config.keep_statistics is not False


def _encoder_scale(model: PyTree, config: TrainConfig) -> float:
    if not model.encoder.has_pretrained_weights:
        return 1.0
    return _TUNED if config.encoder_lr_scale is None else float(config.encoder_lr_scale)


def trainable_mask(model: UNet, config: TrainConfig) -> PyTree[bool]:
    """Returns a tree like the model: true where a leaf is trained from the first step on."""
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

    An encoder that was frozen at first has one of its own, since its moments are younger.

    Arguments:

    - `trainable`: the trained leaves. The clipping norm is theirs alone.
    - `lr`: peak learning rate.
    """
    clip = []
    if config.clip_norm is not None:
        clip.append(optax.clip_by_global_norm(config.clip_norm))
    schedule = learning_rate(config, lr, total_steps)
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    in_encoder = _in_encoder(trainable)
    # All leaves as one vector: a few programs to compile instead of some for each leaf.
    if config.unfreeze_after is not None and is_encoder_trained(trainable):
        label = jax.tree.map(lambda is_inside: _ENCODER if is_inside else _REST, in_encoder)
        # In a function, since optax would call the tree of labels, which is a model.
        own = optax.partition(
            {_ENCODER: optax.flatten(adamw), _REST: optax.flatten(adamw)}, lambda _: label
        )
        transforms = [optax.chain(*clip, own)]
    else:
        transforms = [optax.flatten(optax.chain(*clip, adamw))]
    scale = _encoder_scale(trainable, config)
    if scale != 1 and is_encoder_trained(trainable):
        transforms.append(optax.masked(optax.scale(scale), in_encoder))
    return optax.chain(*transforms)


def is_encoder_trained(trainable: PyTree) -> bool:
    """Whether any of the trained leaves are the encoder's."""
    return bool(jax.tree.leaves(trainable.encoder))


def carry_moments(opt_state: PyTree, fresh: PyTree) -> PyTree:
    """Returns the state of an optimiser that trains the encoder too, with what went before.

    The other leaves' moments are carried over, the encoder's are fresh; the schedule of both goes
    on.

    Arguments:

    - `opt_state`: of the frozen encoder's time.
    - `fresh`: of an optimiser that has done nothing yet.
    """
    adamw = opt_state[0][-1]
    schedule = -1  # the last part of AdamW
    return eqx.tree_at(
        lambda state: (
            state[0][-1].inner_states[_REST].inner_state,
            state[0][-1].inner_states[_ENCODER].inner_state[schedule],
        ),
        fresh,
        (adamw, adamw[schedule]),
    )


def split_encoder(trainable: PyTree) -> tuple[PyTree, PyTree]:
    """Returns the encoder's trained leaves and the others."""
    return eqx.partition(trainable, _in_encoder(trainable))


def _in_encoder(trainable: PyTree) -> PyTree[bool]:
    return _with_encoder(jax.tree.map(lambda _: False, trainable), True)


def _with_encoder(mask: PyTree[bool], value: bool) -> PyTree[bool]:
    return eqx.tree_at(
        lambda model: model.encoder, mask, jax.tree.map(lambda _: value, mask.encoder)
    )
