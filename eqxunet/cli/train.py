"""`train`: data, model and weights into a run directory, epoch after epoch."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import (
    DATA_DIR,
    Border,
    Encoder,
    ModelConfig,
    Precision,
    Schedule,
    TrainConfig,
)
from ..errors import InputError
from .console import (
    absolute,
    console,
    load,
    program,
    progress_bar,
    shown,
    stage,
    warn,
    warn_of_damage,
)

if TYPE_CHECKING:
    from ..data.cache import Split
    from ..models import AbstractUNet
    from ..runs import RunConfig


def train(
    context: typer.Context,
    encoder: Annotated[Encoder, typer.Option(help="Architecture.")] = ModelConfig.encoder,
    data: Annotated[
        str, typer.Option(help="oxford_iiit_pet, synthetic, or a folder.")
    ] = "oxford_iiit_pet",
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = DATA_DIR,
    weights: Annotated[
        str, typer.Option(help="Of the resnet10 encoder: auto, random, or a file.")
    ] = "auto",
    size: Annotated[int, typer.Option(min=1, help="Pixels a side.")] = ModelConfig.size,
    batch_size: Annotated[int, typer.Option(min=1)] = TrainConfig.batch_size,
    epochs: Annotated[int, typer.Option(min=1)] = TrainConfig.epochs,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many steps, instead of --epochs.")
    ] = TrainConfig.steps,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = TrainConfig.lr,
    schedule: Annotated[
        Schedule, typer.Option(help="cosine warms up first.")
    ] = TrainConfig.schedule,
    weight_decay: Annotated[float, typer.Option(min=0)] = TrainConfig.weight_decay,
    clip_norm: Annotated[
        float | None, typer.Option(min=0, help="Largest norm of the gradient.")
    ] = TrainConfig.clip_norm,
    freeze_encoder: Annotated[
        bool, typer.Option(help="Train the resnet10 model's decoder only.")
    ] = TrainConfig.freeze_encoder,
    encoder_lr_scale: Annotated[
        float, typer.Option(min=0, help="Factor on the encoder's learning rate.")
    ] = TrainConfig.encoder_lr_scale,
    augment: Annotated[bool, typer.Option(help="Flip, crop, recolour.")] = TrainConfig.augment,
    border: Annotated[
        Border, typer.Option(help="What the trimap's border counts as.")
    ] = TrainConfig.border,
    precision: Annotated[Precision, typer.Option(help="Of computing.")] = TrainConfig.precision,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of the batch computed one after another.")
    ] = TrainConfig.accumulate,
    remat: Annotated[
        bool, typer.Option("--remat", help="Keep less for the gradient, on GPUs and TPUs.")
    ] = TrainConfig.remat,
    seed: Annotated[int, typer.Option(min=0)] = TrainConfig.seed,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many examples of each split.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a better one.")
    ] = TrainConfig.patience,
    run: Annotated[
        Path | None, typer.Option(help="Run directory; by default a new one in runs/.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on with --run, or the latest run.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Delete what --run holds.")] = False,
) -> None:
    """Trains a model and keeps its latest and best checkpoints."""
    with stage("loading JAX"):
        from ..runs import RUNS, RunConfig, check_directory, locked, new_directory
        from . import loop as loop  # what training takes, loaded here where it is said

    options = context.params
    if encoder == "scratch":
        for name in ("weights", "encoder_lr_scale"):
            if _given(context, name):
                raise InputError(
                    f"--{name.replace('_', '-')} is for --encoder resnet10; leave it out"
                )
    config = RunConfig(
        ModelConfig(encoder=encoder, size=size),
        TrainConfig(
            **{
                f.name: options[f.name]
                for f in dataclasses.fields(TrainConfig)
                if f.name in options
            }
        ),
        data=absolute(data),
        data_dir=absolute(str(data_dir)),
        limit=limit,
        weights=None if encoder == "scratch" else {"source": weights},
    )
    if resume and overwrite:
        raise InputError("--resume goes on with a run, --overwrite deletes it; choose one of them")
    if resume:
        directory = run or RUNS / "latest"
        config = _as_before(context, config, RunConfig.read(directory))
    elif run:
        directory = run
        check_directory(directory, overwrite=True)
    else:
        directory = new_directory(encoder)
    directory = directory.resolve()
    with locked(directory):
        if not resume:
            check_directory(directory, overwrite=overwrite)
        _train(config, directory, resume)


def _train(config: "RunConfig", directory: Path, resume: bool) -> None:
    import equinox as eqx
    import jax

    from ..checkpoint import Writer, restore
    from ..data.batches import steps_per_epoch
    from ..models import build
    from ..runs import RUNS, clear, keep_metrics_until, point_latest
    from ..training import from_arrays, initialise
    from .loop import train_loop

    path = None if resume or config.weights is None else _weights_file(config.weights["source"])
    train_split, val_split = (load(config, split) for split in ("train", "val"))
    warn(dict.fromkeys([*train_split.notes, *val_split.notes]))
    config = _with_identity(config, {"train": train_split, "val": val_split}, directory)
    epoch_steps = steps_per_epoch(train_split, config.train.batch_size)
    total_steps = config.train.steps or config.train.epochs * epoch_steps
    with stage("building the model"):
        # Jitted as one program, which the compilation cache keeps, instead of many small ones.
        key = jax.random.key(config.train.seed)
        model, state = eqx.filter_jit(build)(config.model, key=key)
        if path is not None:
            model, config = _with_weights(model, config, path)
        fixed, train_state = eqx.filter_jit(initialise)(model, state, config.train, total_steps)
        jax.clear_caches()  # 100 MB of programs that have done their work
    if not resume:
        # All that can be wrong with the input was said by now: until here nothing is deleted.
        clear(directory)
        config.write(directory)
    point_latest(directory)
    _warn_of_cpu(config.train)
    trained = sum(leaf.size for leaf in jax.tree.leaves(train_state.trainable))
    console.print(
        f"{config.model.encoder} U-Net, {trained:,} trained parameters, on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}; {len(train_split)} training and {len(val_split)} "
        f"validation images at {config.model.size} x {config.model.size} pixels"
    )
    records = []
    if resume:
        restored = restore(directory / "checkpoints")
        if restored is None:
            raise InputError(
                f"{directory}: nothing was saved yet to resume from; train anew with the options "
                "in its config.json and --overwrite instead of --resume"
            )
        warn_of_damage(restored.damaged)
        fixed, train_state = from_arrays(fixed, train_state, restored.arrays)
        records = keep_metrics_until(directory, restored.step)
        console.print(f"resuming after step {restored.step} of {total_steps}")
    with Writer(directory / "checkpoints") as checkpoints:
        train_loop(
            fixed,
            train_state,
            train_split,
            val_split,
            directory,
            checkpoints,
            records,
            epoch_steps=epoch_steps,
            total_steps=total_steps,
        )
    option = (
        ""
        if directory == (RUNS / "latest").resolve()
        else f" --run {shlex.quote(shown(directory))}"
    )
    console.print(
        f"run: {shown(directory)}; score it on the test split: {program()} eval{option}",
        markup=False,
        soft_wrap=True,
    )


def _warn_of_cpu(config: TrainConfig) -> None:
    import jax

    if jax.default_backend() != "cpu":
        return
    if config.precision == "bfloat16":
        warn(["on a CPU --precision bfloat16 is slower than float32"])
    if config.remat:
        warn(["on a CPU --remat saves nothing; --accumulate does"])


def _weights_file(source: str) -> Path | None:
    from ..weights import resolve_weights

    with progress_bar("downloading weights", unit="bytes") as progress:
        path = resolve_weights(source, progress=progress)
    if path is None:
        console.print("[yellow]the encoder's weights are random[/] (--weights random)")
    return path


def _with_weights(
    model: "AbstractUNet", config: "RunConfig", path: Path
) -> tuple["AbstractUNet", "RunConfig"]:
    from ..models import load_resnet10
    from ..weights import identify

    model = load_resnet10(model, path)
    identity = identify(path)
    kind = "SERL's release" if identity.known else "unverified, not SERL's release"
    console.print(
        f"the encoder's weights: {shown(path)}, {kind}, sha256 {identity.sha256}", soft_wrap=True
    )
    weights = {"sha256": identity.sha256, "known_release": identity.known}
    return model, dataclasses.replace(config, weights={**(config.weights or {}), **weights})


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _as_before(context: typer.Context, given: "RunConfig", before: "RunConfig") -> "RunConfig":
    """Returns the configuration of the run to resume, if no option says otherwise."""
    new, old = _options(given), _options(before)
    differences = [
        f"--{name.replace('_', '-')} {new[name]} (was {value})"
        for name, value in old.items()
        if name in context.params and _given(context, name) and new[name] != value
    ]
    if differences:
        raise InputError(
            f"a resumed run keeps its options, but these differ: {', '.join(differences)}; leave "
            "them out, or start another run"
        )
    return before


def _options(config: "RunConfig") -> dict[str, Any]:
    """The values of all options, by their names."""
    values = dataclasses.asdict(config)
    return (
        values["model"]
        | values["train"]
        | {
            "data": absolute(config.data),
            "data_dir": absolute(config.data_dir),
            "limit": config.limit,
            "weights": config.weights and config.weights["source"],
        }
    )


def _with_identity(config: "RunConfig", splits: dict[str, "Split"], directory: Path) -> "RunConfig":
    """Notes which images these are, or sees to it that they are those of the run to resume."""
    now = {
        name: {"count": len(arrays), "crc32": arrays.identity} for name, arrays in splits.items()
    }
    before = config.identity or {}
    changed = [
        f"{name} ({before[name]['count']} images then, {now[name]['count']} now)"
        for name in before
        if before[name] != now[name]
    ]
    if changed:
        raise InputError(
            f"{config.data}: is not what {shown(directory)} was trained on, to the pixel: "
            f"{', '.join(changed)}; restore the images (and where their number is the same, the "
            "version of Pillow in its config.json), or start another run"
        )
    return dataclasses.replace(config, identity=now)
