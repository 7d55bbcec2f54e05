"""A training run from configuration to pictures: all that the command `train` does."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from ..config import TrainConfig
from ..data import Split, label_kind
from ..data.batches import steps_per_epoch
from ..data.complaints import some_of
from ..errors import InputError
from ..models import build
from ..models.leaves import named_leaves
from ..training import initialise
from ..training.checkpoint import Restored, Writer
from ..training.optimizer import is_encoder_frozen
from .calibration import calibrated
from .config import RunConfig
from .directory import (
    RUNS,
    busy_first,
    check_directory,
    check_latest,
    check_path,
    check_room,
    clear,
    locked,
    new_directory,
    point_latest,
)
from .epochs import Outcome, Position, Training, train_epochs
from .load import Run, load_run
from .observer import Observer
from .pictures import draw_training
from .resume import count_steps, is_stopped_early, latest_checkpoint, resumable, resumed
from .splits import load_splits, with_identity
from .start import from_run, weights_file, with_weights
from .tensorboard import check_tensorboard, tensorboard_log

# Steps below which a run from scratch, or on pretrained weights, mostly ends before it has learnt.
_ENOUGH, _ENOUGH_PRETRAINED = 1000, 300


def train(
    config: RunConfig | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    callback: Callable[[Mapping[str, Any]], Any] | None = None,
    observer: Observer | None = None,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> Run:
    """Trains a model and returns its best checkpoint, ready for inference.

    Arguments:

    - `config`: what is trained on what; not needed with `resume`.
    - `directory`: of the run; by default a new one in `runs/`, or with `resume` the latest.
    - `callback`: called with every record of `metrics.jsonl`, while its checkpoint is being
      written; a true answer ends the run.
    - `observer`: is told of all that goes on, in place of a callback.
    - `resume`: go on with a run that was stopped; a `config` may only be longer than the one
      before.
    - `overwrite`: delete the run that `directory` holds.
    - `tensorboard`: log every record, and predictions, in `tensorboard/` of the run; needs the
      extra `tensorboard`.

    Raises InputError where something given cannot be meant, BusyError where another process trains
    in the directory, DivergedError where the loss stays infinite, and the other errors of
    `eqxunet.errors`, each of which says the way out.
    """
    if callback and observer:
        raise InputError("give a callback, or an observer, whose `record` is one")
    observer = _Calling(callback) if callback else observer or Observer()
    outcome = run_training(
        config, directory, observer, resume=resume, overwrite=overwrite, tensorboard=tensorboard
    )
    return load_run(outcome.directory, observer=observer)


class _Calling(Observer):
    """Calls a function with each record."""

    def __init__(self, callback: Callable[[Mapping[str, Any]], Any]):
        self._callback = callback

    def record(self, record: Mapping[str, Any], is_best: bool) -> bool:
        return bool(self._callback(record))


def run_training(
    config: RunConfig | None,
    directory: str | os.PathLike[str] | None,
    observer: Observer,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
) -> Outcome:
    """Trains as `train` does, and tells an observer what goes on."""
    if tensorboard:
        check_tensorboard()
    if resume and overwrite:
        raise InputError("one either goes on with a run or overwrites it; choose one of them")
    check_path(Path(os.path.realpath(directory or RUNS)))
    if resume:
        chosen = Path(directory or RUNS / "latest")
        before = resumable(chosen)
        config = before if config is None else before.extended(config)
    else:
        config = config or RunConfig()
        kind = label_kind(config.data, task=config.task, labels=config.labels)
        config = dataclasses.replace(config, labels=kind)
        if config.start:
            RunConfig.read(Path(config.start))  # before images are decoded
        if directory is None:
            check_latest(None)
            chosen = new_directory(config.model.encoder)
        else:
            chosen = Path(directory)
            with busy_first(chosen):
                check_directory(chosen, overwrite=True)
    chosen = Path(os.path.realpath(chosen))
    check_latest(chosen)
    try:
        with locked(chosen):
            if not resume:
                check_directory(chosen, overwrite=overwrite)
            outcome, val_split = _train(
                config, chosen, observer, resume=resume, tensorboard=tensorboard
            )
            if outcome.is_finished and outcome.records:
                # Here, where the memory that training took is free again; and again where a run is
                # resumed at its end, since what was killed here has to be finished.
                run = calibrated(load_run(chosen, observer=observer), observer, val_split)
                draw_training(run, outcome.records, val_split)
                observer.note(f"pictures: curves, predictions and progress.png in {chosen}")
            return outcome
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"out of memory with {config.train.batch_size} images of {config.model.size} x "
            f"{config.model.size} pixels a step; lower --batch-size or --size, or compute a step "
            "in parts with --accumulate"
        ) from error


def _train(
    config: RunConfig, directory: Path, observer: Observer, *, resume: bool, tensorboard: bool
) -> tuple[Outcome, Split]:
    """Trains; returns how that ended, and the validation split."""
    # What can be refused without decoding images comes before it.
    restored = latest_checkpoint(config, directory, observer) if resume else None
    before = config
    if restored is not None:
        before = config.check_unchanged(restored.about.get("config"), directory)
    check_room(directory, _checkpoint_bytes(config, restored))
    weights = None if resume else weights_file(config, observer)
    splits = load_splits(config, observer)
    config = with_identity(config, splits, directory)
    epoch_steps = steps_per_epoch(splits["train"], config.train.batch_size)
    total_steps = count_steps(config.train, epoch_steps, restored)
    task = config.make_task()
    with observer.stage("building the model"):
        # Jitted as one program, which the compilation cache keeps, instead of many small ones; as
        # it runs once, compiling it well takes longer than it ever saves.
        key = jax.random.key(config.train.seed)
        unoptimised = {"xla_backend_optimization_level": 0}
        draw = eqx.filter_jit(build, compiler_options=unoptimised)  # pyright: ignore[reportCallIssue]
        model, state = draw(config.model, outputs=task.outputs, key=key)
        if weights is not None:
            model, state, config = with_weights(model, state, config, weights, observer)
        if config.start and not resume:
            model, state = from_run(model, state, config, Path(config.start), observer)
        trainer, train_state = eqx.filter_jit(initialise)(
            model, state, config.training, task, total_steps
        )
    position = Position(train_state, [])
    if restored is not None:
        trainer, position = resumed(
            trainer, train_state, restored, epoch_steps, directory, observer
        )
        is_stopped = is_stopped_early(position, config.train)
        if is_stopped and total_steps > count_steps(before.train, epoch_steps, None):
            # Who asks for more epochs wants them tried: patience counts anew.
            position = dataclasses.replace(position, patient_since=position.records[-1]["epoch"])
        elif is_stopped:
            observer.note(
                f"stopped already after step {restored.step}, with no better epoch in "
                f"{config.train.patience}; it goes on with more of --patience or --epochs"
            )
            outcome = Outcome(directory, position.records, restored.step, is_finished=True)
            return outcome, splits["val"]
    else:
        # All that can be wrong with the input was said by now: until here nothing is deleted.
        _clear(directory, observer)
    config.write(directory)
    point_latest(directory)
    _warn_of_cpu(config.train, observer)
    if not resume:
        _tell_of_length(config, epoch_steps, total_steps, observer)
    trained = sum(leaf.size for leaf in jax.tree.leaves(train_state.trainable))
    size = config.model.size
    observer.note(
        f"{config.model.encoder} U-Net, {trained:,} trained parameters, on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; {len(splits['train'])} training and "
        f"{len(splits['val'])} validation images at {size} x {size} pixels"
    )
    training = Training(trainer, config, splits["train"], splits["val"], directory, observer)
    logging = tensorboard_log(directory, position.records) if tensorboard else nullcontext()
    with Writer(directory / "checkpoints") as checkpoints, logging as log:
        outcome = train_epochs(training, position, checkpoints, log)
    return outcome, splits["val"]


def _checkpoint_bytes(config: RunConfig, restored: Restored | None) -> int:
    """What a checkpoint takes, of a new run estimated: weights, Adam's moments, the average."""
    if restored is not None:
        return sum(array.nbytes for array in restored.arrays.values())
    model, _ = eqx.filter_eval_shape(build, config.model, outputs=1, key=jax.random.key(0))
    stays_frozen = is_encoder_frozen(model, config.train) and not config.train.unfreeze_after
    kept, trained = [
        sum(math.prod(leaf.shape) for leaf in named_leaves(part).values())
        for part in (model, model.decoder if stays_frozen else model)
    ]
    return 4 * (kept + (3 if config.train.ema else 2) * trained)


def _clear(directory: Path, observer: Observer) -> None:
    """Deletes what a run wrote, and says what that was."""
    deleted, kept = clear(directory)
    if deleted:
        observer.note(f"deleted in {directory}: {some_of(deleted)}")
    if kept:
        observer.warn(f"{directory}: left what is not of a run: {some_of(kept)}")


def _tell_of_length(
    config: RunConfig, epoch_steps: int, total_steps: int, observer: Observer
) -> None:
    """Says where a run ends too early for what it is meant to do."""
    after = config.train.unfreeze_after
    if after is not None and after * epoch_steps >= total_steps:
        observer.warn(
            f"the encoder stays frozen: the run ends after {total_steps} steps, and "
            f"--unfreeze-after {after} is {after * epoch_steps}"
        )
    if config.train.steps is not None or config.train.epochs <= 2 or config.limit is not None:
        return  # who counts steps knows, and the others are trying things out
    is_pretrained = config.model.has_pretrained_weights and config.weights != "random"
    enough = _ENOUGH_PRETRAINED if is_pretrained or config.start else _ENOUGH
    if total_steps < enough:
        observer.note(
            f"{config.train.epochs} epochs of so few images are {total_steps} steps, and steps are "
            f"what counts: --epochs {-(-enough // epoch_steps)} makes {enough:,}"
        )


def _warn_of_cpu(config: TrainConfig, observer: Observer) -> None:
    if jax.default_backend() != "cpu":
        return
    if config.precision == "bfloat16":
        observer.warn("on a CPU --precision bfloat16 is slower than float32")
    if config.remat:
        observer.warn("on a CPU --remat saves nothing; --accumulate does")
