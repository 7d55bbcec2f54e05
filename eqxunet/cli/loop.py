"""The training loop on the terminal: steps, validation, checkpoints, records, pictures."""

import shlex
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import typer
from rich.table import Table

from ..checkpoint import BEST, Writer
from ..data.augment import to_float
from ..data.cache import Split
from ..errors import DivergedError
from ..evaluation import baseline, evaluate, forward
from ..optimizer import learning_rate
from ..runs import append_metrics, load_run
from ..training import (
    Fixed,
    StepMetrics,
    TrainState,
    fit,
    to_arrays,
    with_precise_statistics,
)
from .console import console, errors, program, shown, steps_bar, warn
from .signals import stop_signals

_PICTURED = 8


def train_loop(
    fixed: Fixed,
    train_state: TrainState,
    train_split: Split,
    val_split: Split,
    directory: Path,
    checkpoints: Writer,
    records: list[dict[str, Any]],
    *,
    epoch_steps: int,
    total_steps: int,
) -> None:
    """Trains to the end or until patience is out, and draws the pictures; or until a signal.

    Raises DivergedError after too many non-finite steps in a row, and typer.Exit with 128 plus the
    signal's number once a checkpoint is saved.
    """
    config = fixed.config
    schedule = learning_rate(config, total_steps)
    step, started, text = int(train_state.step), time.perf_counter(), ""
    with stop_signals(_acknowledge) as received, steps_bar(total_steps, step) as bar:
        window: list[StepMetrics] = []
        steps = fit(fixed, train_state, train_split, total_steps=total_steps)
        for train_state, metrics in steps:
            step += 1
            window.append(metrics)
            if len(window) == 2:  # the first is done, this one runs
                started = time.perf_counter()
            ends_epoch = step % epoch_steps == 0 or step == total_steps
            if len(window) > 1 or ends_epoch:
                # The step before is done, and reading it lets this one run on meanwhile.
                done = jax.device_get(window[-1] if ends_epoch else window[-2])
                _check(done, config.max_skipped)
                text = f"loss {done.loss:.3f}  IoU {done.iou:.3f}"
            bar(step, text)
            if ends_epoch:
                record = _train_record(window, step, epoch_steps)
                if len(window) > 2:  # the clock started between the second step's start and its end
                    images = (len(window) - 2) * config.batch_size
                    record["images_per_second"] = images / (time.perf_counter() - started)
                record["lr"] = float(np.asarray(schedule(step - 1)))
                bar(step, "validating")
                validated = with_precise_statistics(fixed, train_state, train_split)
                record |= _validate(fixed, validated, val_split)
                records.append(record)
                best = _best(records)
                checkpoints.save(step, to_arrays(fixed, validated), {BEST: record[BEST]})
                append_metrics(directory, record)
                console.print(_line(record, is_best=best is record), soft_wrap=True)
                window = []
                if config.patience and record["epoch"] - best["epoch"] >= config.patience:
                    console.print(f"no better epoch in {config.patience}: stopping")
                    break
            if received:
                if not ends_epoch:
                    checkpoints.save(step, to_arrays(fixed, train_state))
                break
        checkpoints.wait()
    if received:
        errors.print(
            f"stopped by {received[0].name} after step {step}; "
            f"{program()} train --resume --run {shlex.quote(shown(directory))} goes on",
            markup=False,
        )
        raise typer.Exit(128 + received[0])
    if records:
        _draw(directory, records, val_split)
        _print_summary(records)


def _check(metrics: StepMetrics, max_skipped: int) -> None:
    if metrics.skipped >= max_skipped:
        raise DivergedError(
            f"the loss was not finite in {metrics.skipped} steps in a row (the last: "
            f"{metrics.loss}); lower --lr, or look at the data with `data show`"
        )


def _train_record(window: Sequence[StepMetrics], step: int, epoch_steps: int) -> dict[str, Any]:
    values = jax.device_get(window)
    finite = [value for value in values if value.skipped == 0]
    return {
        "step": step,
        "epoch": -(-step // epoch_steps),
        "train/loss": _finite(float(np.mean([value.loss for value in finite]))) if finite else None,
        "train/iou": _finite(float(np.mean([value.iou for value in finite]))) if finite else None,
        "skipped_steps": len(values) - len(finite),
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _validate(fixed: Fixed, train_state: TrainState, split: Split) -> dict[str, float | None]:
    border = fixed.config.border
    model = eqx.nn.inference_mode(fixed.model(train_state))
    scores = evaluate(model, train_state.state, split, border=border)
    counts = scores.counts[border]
    return {
        "val/loss": _finite(float(np.mean(scores.losses))),
        "val/iou": float(np.mean(counts.iou)),
        "val/dice": float(np.mean(counts.dice)),
        "val/baseline_iou": float(np.mean(baseline(counts).iou)),
    }


def _best(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(records, key=lambda record: record[BEST])


def _draw(directory: Path, records: Sequence[dict[str, Any]], split: Split) -> None:
    """Draws the curves, and validation images as the best checkpoint segments them."""
    # Matplotlib takes a second, which the first step can do without.
    from ..report import save_curves, save_predictions

    save_curves(records, directory / "curves.png")
    run = load_run(directory)
    images, trimaps = split.images[:_PICTURED], split.labels[:_PICTURED]
    probabilities = np.asarray(jax.nn.sigmoid(forward(run.model, run.state, to_float(images))))
    names = split.names[:_PICTURED]
    save_predictions(images, trimaps, probabilities, names, directory / "predictions.png")
    console.print(f"pictures: curves.png and predictions.png in {shown(directory)}", soft_wrap=True)


def _line(record: dict[str, Any], *, is_best: bool) -> str:
    speed = record.get("images_per_second")
    return (
        f"epoch {record['epoch']:>3}  step {record['step']:>5}  "
        f"loss {_number(record['train/loss'])}  val {_number(record['val/loss'])}  "
        f"IoU {record['val/iou']:.4f}"
        + (f"  {speed:.1f} images/s" if speed else "")
        + ("  [green]best[/]" if is_best else "")
    )


def _print_summary(records: Sequence[dict[str, Any]]) -> None:
    table = Table("", "epoch", "train loss", "val loss", "val IoU", "val Dice")
    for name, record in (("best", _best(records)), ("last", records[-1])):
        values = (record[key] for key in ("train/loss", "val/loss", "val/iou", "val/dice"))
        table.add_row(name, str(record["epoch"]), *map(_number, values))
    trivial = records[-1].get("val/baseline_iou")  # older runs have none
    if trivial is not None:
        table.add_row("all foreground", "", "", "", _number(trivial), "")
    console.print(table)
    if trivial is not None and _best(records)[BEST] <= trivial:
        warn(
            [
                "the best epoch is no better than predicting foreground everywhere; train longer, "
                "or look at the data with `data check` and `data show`"
            ]
        )


def _acknowledge(received: signal.Signals) -> None:
    (console if console.is_terminal else errors).print(
        f"{received.name}: this step will be finished and saved; a second time quits at once"
    )
