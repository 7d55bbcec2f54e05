"""The training loop on the terminal: steps, validation, checkpoints, records, pictures."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
import typer
from orbax.checkpoint import v1 as ocp
from rich.table import Table

from ..checkpoint import BEST, save
from ..data.augment import to_float
from ..data.cache import Arrays
from ..errors import DivergedError
from ..evaluation import evaluate, forward, summarise
from ..optimizer import learning_rate
from ..runs import append_metrics
from ..training import Fixed, StepMetrics, TrainState, fit, to_arrays
from .console import console, errors, steps_bar

_PICTURED = 8
_LOOK_SECONDS = 0.1  # between two looks at the metrics: each waits for the device


def train_loop(
    fixed: Fixed,
    train_state: TrainState,
    train_split: Arrays,
    val_split: Arrays,
    directory: Path,
    checkpoints: ocp.training.Checkpointer,
    records: list[dict[str, Any]],
    *,
    epoch_steps: int,
    total_steps: int,
) -> None:
    """Trains to the end, until patience is out, or until a signal; then draws the pictures.

    Raises DivergedError after too many non-finite steps in a row, and typer.Exit with 128 plus the
    signal's number once a checkpoint is saved.
    """
    config = fixed.config
    schedule = learning_rate(config, total_steps)
    step, started, looked = int(train_state.step), time.perf_counter(), 0.0
    with _signals() as received, steps_bar(total_steps, step) as bar:
        window: list[StepMetrics] = []
        steps = fit(fixed, train_state, train_split, total_steps=total_steps)
        for train_state, metrics in steps:
            step += 1
            window.append(metrics)
            if len(window) == 2:
                jax.block_until_ready(window[0])
                started = time.perf_counter()
            ends_epoch = step % epoch_steps == 0 or step == total_steps
            if ends_epoch or time.perf_counter() - looked > _LOOK_SECONDS:
                # Reading the step before lets this one run on meanwhile.
                shown = jax.device_get(window[-2] if len(window) > 1 else window[-1])
                bar(step, f"loss {shown.loss:.3f}  IoU {shown.iou:.3f}")
                _check(shown, config.max_skipped)
                looked = time.perf_counter()
            if ends_epoch:
                record = _train_record(window, step, epoch_steps)
                if len(window) > 2:  # the clock started between the second step's start and its end
                    images = (len(window) - 2) * config.batch_size
                    record["images_per_second"] = images / (time.perf_counter() - started)
                record["lr"] = float(np.asarray(schedule(step - 1)))
                record |= _validate(fixed, train_state, val_split)
                records.append(record)
                best = _best(records)
                save(checkpoints, step, to_arrays(fixed, train_state), {BEST: record[BEST]})
                append_metrics(directory, record)
                console.print(_line(record, is_best=best is record), soft_wrap=True)
                window = []
                if config.patience and record["epoch"] - best["epoch"] >= config.patience:
                    console.print(f"no better epoch in {config.patience}: stopping")
                    break
            elif received:
                save(checkpoints, step, to_arrays(fixed, train_state))
            if received:
                break
    if records:
        # Matplotlib takes a second, which the first step can do without.
        from ..report import save_curves

        save_curves(records, directory / "curves.png")
        _draw(fixed, train_state, val_split, directory / "predictions.png")
        _print_summary(records)
    if received:
        checkpoints.wait()
        errors.print(f"stopped by {received[0].name} after step {step}; --resume goes on")
        raise typer.Exit(128 + received[0])


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


def _validate(fixed: Fixed, train_state: TrainState, split: Arrays) -> dict[str, float | None]:
    model = eqx.nn.inference_mode(fixed.model(train_state))
    scores = summarise(evaluate(model, train_state.state, split, border=fixed.config.border))
    return {
        "val/loss": _finite(scores["loss"]),
        "val/iou": scores["iou"]["mean"],
        "val/dice": scores["dice"]["mean"],
    }


def _best(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return max(records, key=lambda record: record[BEST])


def _draw(fixed: Fixed, train_state: TrainState, split: Arrays, path: Path) -> None:
    from ..report import save_predictions

    model = eqx.nn.inference_mode(fixed.model(train_state))
    images, trimaps = split.images[:_PICTURED], split.trimaps[:_PICTURED]
    logits = forward(model, train_state.state, to_float(images))
    probabilities = np.asarray(jax.nn.sigmoid(logits))
    save_predictions(images, trimaps, probabilities, split.names[:_PICTURED], path)


def _line(record: dict[str, Any], *, is_best: bool) -> str:
    speed = record.get("images_per_second")
    return (
        f"epoch {record['epoch']:>3}  step {record['step']:>5}  "
        f"loss {_number(record['train/loss'])}  val loss {_number(record['val/loss'])}  "
        f"IoU {record['val/iou']:.4f}  Dice {record['val/dice']:.4f}"
        + (f"  {speed:.1f} images/s" if speed else "")
        + ("  [green]best[/]" if is_best else "")
    )


def _print_summary(records: Sequence[dict[str, Any]]) -> None:
    table = Table("", "epoch", "train loss", "val loss", "val IoU", "val Dice")
    for name, record in (("best", _best(records)), ("last", records[-1])):
        values = (record[key] for key in ("train/loss", "val/loss", "val/iou", "val/dice"))
        table.add_row(name, str(record["epoch"]), *map(_number, values))
    console.print(table)


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGINT and SIGTERM, for the loop to end after its step; a second one quits."""
    received: list[signal.Signals] = []

    def handle(number: int, _frame: Any) -> None:
        if received:
            os._exit(128 + number)
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
