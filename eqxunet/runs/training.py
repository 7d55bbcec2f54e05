"""A training run from configuration to pictures: all that the command `train` does."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from ..config import SplitName, TrainConfig
from ..data import Split, label_kind, load_split
from ..data.batches import steps_per_epoch
from ..data.mask_checks import unseen_classes
from ..data.masks import MaskSummary
from ..errors import InputError, IntegrityError, UnavailableError
from ..models import UNet, build, load_resnet10
from ..models.leaves import named_leaves, named_state, replace_leaves, replace_state
from ..training import Trainer, TrainState, Writer, initialise, restore
from ..training.arrays import from_arrays
from ..weights import identify, resolve_weights
from .config import RunConfig
from .directory import (
    RUNS,
    check_directory,
    clear,
    keep_metrics_until,
    locked,
    new_directory,
    point_latest,
)
from .epochs import Outcome, train_epochs
from .load import Run, load_run
from .observer import Observer
from .pictures import draw_training

Splits = dict[SplitName, Split]


def train(
    config: RunConfig | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    callback: Callable[[Mapping[str, Any]], Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    """Trains a model and returns its best checkpoint, ready for inference.

    Arguments:

    - `config`: what is trained on what; not needed with `resume`.
    - `directory`: of the run; by default a new one in `runs/`, or with `resume` the latest.
    - `callback`: called with every record of `metrics.jsonl`, after it was saved; a true answer
      ends the run.
    - `resume`: go on with a run that was stopped; a `config` may only be longer than the one
      before.
    - `overwrite`: delete the run that `directory` holds.

    Raises InputError where something given cannot be meant, BusyError where another process trains
    in the directory, DivergedError where the loss stays infinite, and the other errors of
    `eqxunet.errors`, each of which says the way out.
    """
    observer = _Calling(callback) if callback else Observer()
    outcome = run_training(config, directory, observer, resume=resume, overwrite=overwrite)
    return load_run(outcome.directory)


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
) -> Outcome:
    """Trains as `train` does, and tells an observer what goes on."""
    if resume and overwrite:
        raise InputError("one either goes on with a run or overwrites it; choose one of them")
    if resume:
        chosen = Path(directory or RUNS / "latest")
        before = RunConfig.read(chosen)
        config = before if config is None else _longer(before, config)
    else:
        config = config or RunConfig()
        kind = label_kind(config.data, task=config.task, labels=config.labels)
        config = dataclasses.replace(config, labels=kind)
        if directory is None:
            chosen = new_directory(config.model.encoder)
        else:
            chosen = Path(directory)
            check_directory(chosen, overwrite=True, data=config.data)
    chosen = chosen.resolve()
    try:
        with locked(chosen):
            if not resume:
                check_directory(chosen, overwrite=overwrite, data=config.data)
            return _train(config, chosen, observer, resume=resume)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UnavailableError(
            f"out of memory with {config.train.batch_size} images of {config.model.size} x "
            f"{config.model.size} pixels a step; lower --batch-size or --size, or compute a step "
            "in parts with --accumulate"
        ) from error


def _train(config: RunConfig, directory: Path, observer: Observer, *, resume: bool) -> Outcome:
    weights = None if resume else _weights_file(config, observer)
    names: tuple[SplitName, ...] = ("train", "val")
    splits: Splits = {name: load(config, name, observer) for name in names}
    for note in dict.fromkeys(note for split in splits.values() for note in split.notes):
        observer.warn(note)
    config = _with_identity(config, splits, directory)
    if config.task == "semantic":
        masks: dict[SplitName, MaskSummary] = {
            name: split.masks for name, split in splits.items() if split.masks
        }
        for warning in unseen_classes(masks, config.classes):
            observer.warn(f"{config.data}: {warning}")
    train_split = splits["train"]
    epoch_steps = steps_per_epoch(train_split, config.train.batch_size)
    total_steps = config.train.steps or config.train.epochs * epoch_steps
    task = config.make_task(train_split)
    with observer.stage("building the model"):
        # Jitted as one program, which the compilation cache keeps, instead of many small ones.
        key = jax.random.key(config.train.seed)
        model, state = eqx.filter_jit(build)(config.model, outputs=task.outputs, key=key)
        if weights is not None:
            model, config = _with_weights(model, config, weights, observer)
        if config.start and not resume:
            model, state = _from_run(model, state, Path(config.start), observer)
        trainer, train_state = eqx.filter_jit(initialise)(
            model, state, config.train, task, total_steps
        )
        jax.clear_caches()  # 100 MB of programs that have done their work
    records: list[dict[str, Any]] = []
    if resume:
        trainer, train_state, records = _resumed(trainer, train_state, directory, observer)
    else:
        # All that can be wrong with the input was said by now: until here nothing is deleted.
        clear(directory)
    config.write(directory)
    point_latest(directory)
    _warn_of_cpu(config.train, observer)
    trained = sum(leaf.size for leaf in jax.tree.leaves(train_state.trainable))
    observer.note(
        f"{config.model.encoder} U-Net, {trained:,} trained parameters, on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; {len(train_split)} training and {len(splits['val'])} "
        f"validation images at {config.model.size} x {config.model.size} pixels"
    )
    with Writer(directory / "checkpoints") as checkpoints:
        outcome = train_epochs(
            trainer,
            train_state,
            config.train,
            train_split,
            splits["val"],
            directory,
            checkpoints,
            records,
            observer,
        )
    if outcome.is_finished and outcome.records:
        draw_training(load_run(directory), outcome.records, splits["val"])
        observer.note(f"pictures: curves.png and predictions.png in {directory}")
    return outcome


def load(config: RunConfig, split: SplitName, observer: Observer) -> Split:
    """Loads a split as a run's configuration says."""
    data_dir = Path(config.data_dir)
    if config.data == "oxford_iiit_pet":
        prepare_oxford(data_dir, observer)
    with observer.progress(f"decoding {split} images") as progress:
        return load_split(
            config.data,
            split,
            size=config.model.size,
            labels=config.labels,
            data_dir=data_dir,
            limit=config.limit,
            progress=progress,
        )


def prepare_oxford(data_dir: Path, observer: Observer, archives: Path | None = None) -> None:
    """Prepares Oxford-IIIT Pet, unless it is there already; arguments as in `data.oxford`."""
    # While it is imported, TFDS replaces `__import__`, which a bar's thread would run into.
    from tensorflow_datasets.datasets.oxford_iiit_pet import (  # noqa: F401
        oxford_iiit_pet_dataset_builder,
    )

    from ..data.oxford import prepare

    with observer.progress("preparing oxford_iiit_pet", "bytes") as progress:
        prepare(data_dir, archives=archives, progress=progress)


def _longer(before: RunConfig, given: RunConfig) -> RunConfig:
    """The configuration of a run to resume, with the length that is given now."""
    now = dataclasses.replace(
        given,
        train=dataclasses.replace(
            given.train,
            **{name: getattr(before.train, name) for name in _EXTENDABLE},
        ),
        **{name: getattr(before, name) for name in _FILLED_IN},
    )
    if now != before:
        raise InputError(
            "a resumed run keeps its options, but these differ: "
            f"{', '.join(differences(before, now))}; leave them out, or start another run"
        )
    lengths = {name: getattr(given.train, name) for name in _EXTENDABLE}
    return dataclasses.replace(before, train=dataclasses.replace(before.train, **lengths))


_EXTENDABLE = ("epochs", "steps", "patience", "max_skipped")
_FILLED_IN = ("labels", "classes", "provenance", "identity")


def differences(before: RunConfig, now: RunConfig) -> list[str]:
    """The options in which two configurations differ, as one says them."""

    def options(config: RunConfig) -> dict[str, Any]:
        values = dataclasses.asdict(config)
        return values.pop("model") | values.pop("train") | values

    old, new = options(before), options(now)
    return [
        f"--{name.replace('_', '-')} {new[name]} (was {value})"
        for name, value in old.items()
        if new[name] != value
    ]


def _resumed(
    trainer: Trainer, train_state: TrainState, directory: Path, observer: Observer
) -> tuple[Trainer, TrainState, list[dict[str, Any]]]:
    restored = restore(directory / "checkpoints")
    if restored is None:
        raise InputError(
            f"{directory}: nothing was saved yet to resume from; train anew with the options "
            "in its config.json and --overwrite instead of --resume"
        )
    for damage in restored.damaged:
        observer.warn(f"a damaged checkpoint was passed over: {damage}")
    trainer, train_state = from_arrays(trainer, train_state, restored.arrays)
    records = keep_metrics_until(directory, restored.step)
    observer.note(
        f"resuming after step {restored.step} of {trainer.total_steps}, where the learning rate's "
        "schedule ends"
    )
    return trainer, train_state, records


def _warn_of_cpu(config: TrainConfig, observer: Observer) -> None:
    if jax.default_backend() != "cpu":
        return
    if config.precision == "bfloat16":
        observer.warn("on a CPU --precision bfloat16 is slower than float32")
    if config.remat:
        observer.warn("on a CPU --remat saves nothing; --accumulate does")


def _weights_file(config: RunConfig, observer: Observer) -> Path | None:
    if not config.model.has_pretrained_weights or config.start:
        return None
    with observer.progress("downloading weights", "bytes") as progress:
        path = resolve_weights(config.weights, progress=progress)
    if path is None:
        observer.note("the encoder's weights are random (--weights random)")
    return path


def _with_weights(
    model: UNet, config: RunConfig, path: Path, observer: Observer
) -> tuple[UNet, RunConfig]:
    model = load_resnet10(model, path)
    identity = identify(path)
    kind = "SERL's release" if identity.known else "unverified, not SERL's release"
    observer.note(f"the encoder's weights: {path}, {kind}, sha256 {identity.sha256}")
    provenance = {"sha256": identity.sha256, "known_release": identity.known}
    return model, dataclasses.replace(config, provenance=provenance)


def _from_run(
    model: UNet, state: eqx.nn.State, start: Path, observer: Observer
) -> tuple[UNet, eqx.nn.State]:
    """The model with the weights of another run's best checkpoint.

    A head of another number of outputs stays as it is: what is learnt may be something else.
    """
    run = load_run(start)
    leaves: dict[str, Any] = dict(named_leaves(run.model))
    wanted = named_leaves(model)
    head = {name for name in wanted if name.startswith("head.")}
    same_head = all(leaves[name].shape == wanted[name].shape for name in head)
    kept = {name: leaf for name, leaf in leaves.items() if same_head or name not in head}
    try:
        model = replace_leaves(model, kept)
        statistics: dict[str, Any] = dict(named_state(run.model, run.state))
        state = replace_state(model, state, statistics)
    except IntegrityError as error:
        raise InputError(f"{start}: its model is another one ({error})") from error
    observer.note(
        f"starting from {run}" + ("" if same_head else "; its head has other outputs and is new")
    )
    return model, state


def _with_identity(config: RunConfig, splits: Splits, directory: Path) -> RunConfig:
    """Notes which images these are, or sees to it that they are those of the run to resume."""
    now = {name: {"count": len(split), "crc32": split.identity} for name, split in splits.items()}
    before = config.identity or {}
    changed = [
        f"{name} ({before[name]['count']} images then, {now[name]['count']} now)"
        for name in before
        if before[name] != now[name]
    ]
    if changed:
        raise InputError(
            f"{config.data}: is not what {directory} was trained on, to the pixel: "
            f"{', '.join(changed)}; restore the images (and where their number is the same, the "
            "version of Pillow in its config.json), or start another run"
        )
    classes = config.classes or max((split.classes for split in splits.values()), key=len)
    return dataclasses.replace(config, identity=now, classes=classes)
