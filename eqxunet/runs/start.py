"""The weights that a run starts from: of a file, or of another run."""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx

from ..errors import InputError
from ..models import UNet, load_weights
from ..models.leaves import named_leaves, named_state, replace_leaves, replace_state
from ..weights import identify, resolve_weights
from .config import RunConfig
from .load import load_run
from .observer import Observer


def weights_file(config: RunConfig, observer: Observer) -> Path | None:
    """Finds the file of the encoder's weights, or fetches it; none where it needs none."""
    if not config.model.has_pretrained_weights or config.start:
        return None
    with observer.progress("downloading weights", "bytes") as progress:
        path = resolve_weights(config.weights, encoder=config.model.encoder, progress=progress)
    if path is None:
        observer.note("the encoder's weights are random (--weights random)")
    return path


def with_weights(
    model: UNet, state: eqx.nn.State, config: RunConfig, path: Path, observer: Observer
) -> tuple[UNet, eqx.nn.State, RunConfig]:
    """The model with the encoder's weights of a file, whose digest the configuration notes."""
    model, state = load_weights(model, state, path)
    identity = identify(path)
    observer.note(f"the encoder's weights: {path}, {identity}")
    provenance = {"sha256": identity.sha256, "known_release": identity.is_known}
    return model, state, dataclasses.replace(config, provenance=provenance)


def from_run(
    model: UNet, state: eqx.nn.State, config: RunConfig, start: Path, observer: Observer
) -> tuple[UNet, eqx.nn.State]:
    """The model with the weights of another run's best checkpoint.

    A head of another number of outputs stays as it is: what is learnt may be something else.

    Raises InputError where the other run's model is not like this one, and what `load_run` raises.
    """
    run = load_run(start, observer=observer)
    for field in ("encoder", "channels", "stage_sizes"):
        theirs, ours = (getattr(c.model, field) for c in (run.config, config))
        if theirs != ours:
            raise InputError(
                f"{start}: its model is another one: {field} is {theirs} there and {ours} here; "
                "choose the same"
            )
    leaves: dict[str, Any] = dict(named_leaves(run.model))
    wanted = named_leaves(model)
    head = {name for name in wanted if name.startswith("head.")}
    same_head = all(leaves[name].shape == wanted[name].shape for name in head)
    kept = {name: leaf for name, leaf in leaves.items() if same_head or name not in head}
    model = replace_leaves(model, kept)
    statistics: dict[str, Any] = dict(named_state(run.model, run.state))
    state = replace_state(model, state, statistics)
    observer.note(
        f"starting from {run}" + ("" if same_head else "; its head has other outputs and is new")
    )
    return model, state
