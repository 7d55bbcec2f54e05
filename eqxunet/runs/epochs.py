"""The training loop of a run: steps, validation, checkpoints, records."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ..config import TrainConfig
from ..data import Split
from ..data.batches import steps_per_epoch
from ..errors import DivergedError
from ..evaluation import Predictor, Scores, baseline, score
from ..training import (
    StepMetrics,
    Trainer,
    TrainState,
    fit_in_phases,
    learning_rate,
    with_precise_statistics,
)
from ..training.arrays import to_arrays
from ..training.checkpoint import BEST, Writer
from .directory import append_metrics
from .observer import Observer
from .snapshots import IMAGES, keep_snapshot
from .tensorboard import Log


@dataclass(frozen=True)
class Outcome:
    """How a training ended: at `step`, finished or stopped to be resumed."""

    directory: Path
    records: list[dict[str, Any]]
    step: int
    is_finished: bool


def train_epochs(
    trainer: Trainer,
    train_state: TrainState,
    config: TrainConfig,
    train_split: Split,
    val_split: Split,
    directory: Path,
    checkpoints: Writer,
    records: list[dict[str, Any]],
    observer: Observer,
    log: Log | None,
) -> Outcome:
    """Trains to the end, until patience is out, or until the observer stops it.

    Raises DivergedError after too many non-finite steps in a row.
    """
    epoch_steps = steps_per_epoch(train_split, config.batch_size)
    total_steps = trainer.total_steps
    schedule = learning_rate(config, config.lr, total_steps)
    step, started, text = int(train_state.step), time.perf_counter(), ""
    is_stopped = False
    with observer.steps(total_steps, step) as tell:
        window: list[StepMetrics] = []
        phases = fit_in_phases(trainer, train_state, train_split)
        for trainer, trained, metrics in phases:
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
            is_stopped = tell(step, text)
            if ends_epoch:
                record = _train_record(window, step, epoch_steps)
                if len(window) > 2:  # the clock started between the second step's start and its end
                    images = (len(window) - 2) * config.batch_size
                    record["images_per_second"] = images / (time.perf_counter() - started)
                record["lr"] = float(np.asarray(schedule(step - 1)))
                tell(step, "validating")
                validated = with_precise_statistics(trainer, trained, train_split)
                predictor = _predictor(trainer, validated)
                scores = score(predictor, val_split)
                record |= _validation(scores)
                records.append(record)
                best = best_of(records)
                checkpoints.save(step, to_arrays(trainer, validated), {BEST: record[BEST]})
                append_metrics(directory, record)
                assert scores.first is not None
                predictions = scores.first[:IMAGES]
                keep_snapshot(directory, predictions, records, best)
                if log:
                    log(record, predictor.task.colours[predictions])
                window = []
                if observer.record(record, best is record):
                    break
                if config.patience and record["epoch"] - best["epoch"] >= config.patience:
                    observer.note(f"no better epoch in {config.patience}: stopping")
                    break
            if is_stopped:
                if not ends_epoch:
                    checkpoints.save(step, to_arrays(trainer, trained))
                break
        checkpoints.wait()
    return Outcome(directory, records, step, is_finished=not is_stopped)


def best_of(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The record of the best epoch, the first of equals."""
    return max(records, key=lambda record: record[BEST])


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


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and np.isfinite(value) else None


def _predictor(trainer: Trainer, train_state: TrainState) -> Predictor:
    model = eqx.nn.inference_mode(trainer.model(train_state))
    return Predictor(model, train_state.state, trainer.task)


def _validation(scores: Scores) -> Mapping[str, Any]:
    task = scores.task
    return {
        "val/loss": _finite(scores.loss),
        "val/iou": float(np.mean(scores.iou)),
        "val/dice": float(np.mean(task.score("dice", scores.confusion))),
        "val/baseline_iou": baseline(task, scores.confusion)["iou"],
    }
