"""`train`: options into a configuration, and what goes on onto the terminal."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ..config import (
    DATA_DIR,
    Border,
    Encoder,
    Labels,
    ModelConfig,
    Precision,
    Schedule,
    TaskName,
    TrainConfig,
)
from ..errors import InputError
from .console import console, display, errors, program, stage, warn
from .signals import advise

if TYPE_CHECKING:
    from ..runs import RunConfig


def train(
    context: typer.Context,
    encoder: Annotated[Encoder, typer.Option(help="Architecture.")] = ModelConfig.encoder,
    data: Annotated[
        str, typer.Option(help="oxford_iiit_pet, synthetic, or a folder.")
    ] = "oxford_iiit_pet",
    task: Annotated[
        TaskName, typer.Option(help="Foreground, or one of several classes a pixel.")
    ] = "binary",
    labels: Annotated[
        Labels | None, typer.Option(help="Of pets, for --task semantic: species or trimap.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = DATA_DIR,
    weights: Annotated[
        str, typer.Option(help="The encoder's: auto, random, a file, or hf:OWNER/NAME[/FILE].")
    ] = "auto",
    start: Annotated[
        Path | None, typer.Option("--from", help="A run whose best weights to start from.")
    ] = None,
    size: Annotated[int, typer.Option(min=8, help="Pixels a side.")] = ModelConfig.size,
    channels: Annotated[
        str | None,
        typer.Option(help="Of each level of the scratch model, such as 16,32,64."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = TrainConfig.batch_size,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training split.")
    ] = TrainConfig.epochs,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many steps, instead of --epochs.")
    ] = TrainConfig.steps,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = TrainConfig.lr,
    schedule: Annotated[
        Schedule, typer.Option(help="cosine warms up first.")
    ] = TrainConfig.schedule,
    weight_decay: Annotated[
        float, typer.Option(min=0, help="Of AdamW; 0 makes it Adam.")
    ] = TrainConfig.weight_decay,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest norm of the gradient.")
    ] = TrainConfig.clip_norm,
    freeze_encoder: Annotated[
        bool | None,
        typer.Option(
            help="Train the decoder only, where the encoder has weights.",
            show_default="resnet10's is frozen",
        ),
    ] = TrainConfig.freeze_encoder,
    unfreeze_after: Annotated[
        int | None, typer.Option(min=1, help="Train a frozen encoder after so many epochs.")
    ] = TrainConfig.unfreeze_after,
    encoder_lr_scale: Annotated[
        float | None,
        typer.Option(
            help="Factor on a pretrained encoder's learning rate.", show_default="0.1; random: 1"
        ),
    ] = TrainConfig.encoder_lr_scale,
    keep_statistics: Annotated[
        bool | None,
        typer.Option(
            help="Leave BatchNorm's statistics in an encoder that is trained.",
            show_default="random: no",
        ),
    ] = TrainConfig.keep_statistics,
    ema: Annotated[
        bool, typer.Option(help="Keep a moving average of the weights.")
    ] = TrainConfig.ema,
    augment: Annotated[bool, typer.Option(help="Flip, crop, recolour.")] = TrainConfig.augment,
    border: Annotated[
        Border, typer.Option(help="What the trimap's border counts as.")
    ] = TrainConfig.border,
    precision: Annotated[
        Precision, typer.Option(help="Of the network's arithmetic; parameters stay float32.")
    ] = TrainConfig.precision,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts of the batch computed one after another.")
    ] = TrainConfig.accumulate,
    remat: Annotated[
        bool, typer.Option("--remat", help="Keep less for the gradient, on GPUs and TPUs.")
    ] = TrainConfig.remat,
    seed: Annotated[
        int, typer.Option(min=0, help="Of weights, order and augmentation.")
    ] = TrainConfig.seed,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first so many examples of each split.")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep decoded images on the disk, or decode them each time.")
    ] = True,
    patience: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many epochs without a better validation IoU."),
    ] = TrainConfig.patience,
    max_skipped: Annotated[
        int, typer.Option(min=1, help="Steps in a row that are not finite before giving up.")
    ] = TrainConfig.max_skipped,
    checkpoint_every: Annotated[
        str | None,
        typer.Option(metavar="N|Nm", help="Save inside epochs: every N steps, or N minutes."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run directory; by default a new one in runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option(help="Go on with --run, or the latest run; longer with --epochs.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Delete what --run holds.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Log every epoch into the run's tensorboard/.")
    ] = False,
) -> None:
    """Trains a model; keeps its best checkpoint."""
    with stage("loading JAX"):
        from ..runs import RUNS, RunConfig, best_of, resumable, run_training
        from .observer import Terminal

    if resume:
        advise("the same command goes on")
    before = resumable(run or RUNS / "latest") if resume else RunConfig()
    config = _configured(before, {n: v for n, v in context.params.items() if _given(context, n)})
    terminal = Terminal()
    outcome = run_training(
        config, run, terminal, resume=resume, overwrite=overwrite, tensorboard=tensorboard
    )
    option = f" --run {shlex.quote(display(outcome.directory))}"
    if terminal.received and not outcome.is_finished:
        errors.print(
            f"stopped by {terminal.received.name} after step {outcome.step}; "
            f"{program()} train --resume{option} goes on"
        )
        raise typer.Exit(128 + terminal.received)
    if outcome.records:
        _print_summary(outcome.records, best_of(outcome.records))
    if outcome.directory == (RUNS / "latest").resolve():
        option = ""
    console.print(
        f"run: {display(outcome.directory)}; score it on the test split: {program()} eval{option}",
        soft_wrap=True,
    )


def _configured(before: "RunConfig", given: dict[str, Any]) -> "RunConfig":
    """A configuration with the options that were given in place of what it had."""
    if "epochs" in given:
        if given.get("steps") is not None:
            raise InputError("--epochs and --steps both say how long to train; give one of them")
        given["steps"] = None  # of a run that is resumed
    if channels := given.get("channels"):
        given["channels"] = _numbers(channels)
    every = given.get("checkpoint_every")
    if every is not None and every.isdecimal():
        given["checkpoint_every"] = int(every)
    for name in ("data_dir", "start"):
        if given.get(name) is not None:
            given[name] = str(given[name])

    def of(config: Any) -> dict[str, Any]:
        return {f.name: given[f.name] for f in dataclasses.fields(config) if f.name in given}

    return dataclasses.replace(
        before,
        **of(before),
        model=dataclasses.replace(before.model, **of(before.model)),
        train=dataclasses.replace(before.train, **of(before.train)),
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--channels {text}: give whole numbers with commas between them, such as 16,32,64"
        ) from None


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _print_summary(records: Sequence[dict[str, Any]], best: dict[str, Any]) -> None:
    from .observer import number

    table = Table("", "epoch", "train loss", "val loss", "val IoU", "val Dice")
    for name, record in (("best", best), ("last", records[-1])):
        values = (record[key] for key in ("train/loss", "val/loss", "val/iou", "val/dice"))
        table.add_row(name, str(record["epoch"]), *map(number, values))
    trivial = records[-1]["val/baseline_iou"]
    table.add_row("one class everywhere", "", "", "", number(trivial), "")
    console.print(table)
    if best["val/iou"] <= trivial:
        warn(
            [
                "the best epoch is no better than predicting one class everywhere; train longer, "
                "or look at the data with `data check` and `data show`"
            ]
        )
