"""The training loop of a run: steps, validation, records, checkpoints."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Shaped

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
from .config import RunConfig
from .observer import Observer, Request
from .pace import Pace
from .records import Record, append_record, best_of, is_patience_out, is_validated
from .snapshots import IMAGES, keep_snapshot
from .sums import EpochSums
from .tensorboard import Log


@dataclass(frozen=True)
class Training:
    """What a training reads, where it is kept, and who is told."""

    trainer: Trainer
    config: RunConfig
    train_split: Split
    val_split: Split
    directory: Path
    observer: Observer

    @property
    def epoch_steps(self) -> int:
        """Steps an epoch."""
        return steps_per_epoch(self.train_split, self.config.train.batch_size)


@dataclass(frozen=True)
class Position:
    """Where a training stands.

    - `records`: of the epochs until now.
    - `sums`: of the epoch that it stands in.
    - `patient_since`: the epoch from which on patience counts, where it was out and more epochs
      were asked for.
    """

    train_state: TrainState
    records: list[Record]
    sums: EpochSums = EpochSums()
    patient_since: int = 0

    def is_patience_out(self, patience: int | None) -> bool:
        """Whether it ends here."""
        return is_patience_out(self.records, patience, self.patient_since)


@dataclass(frozen=True)
class Outcome:
    """How a training ended: at `step`, finished or stopped to be resumed."""

    directory: Path
    records: list[Record]
    step: int
    is_finished: bool


def train_epochs(
    training: Training, position: Position, checkpoints: Writer, log: Log | None
) -> Outcome:
    """Trains to the end, until patience is out, or until the observer stops it.

    Raises DivergedError after too many non-finite steps in a row, or where what would be saved is
    not finite.
    """
    trainer, observer, records = training.trainer, training.observer, position.records
    config, total_steps = training.config.train, trainer.total_steps
    epoch_steps, schedule = training.epoch_steps, learning_rate(config, config.lr, total_steps)
    sums, step = position.sums, int(position.train_state.step)
    pace, clock = Pace(config.checkpoint_every), _Clock(config.batch_size)
    request: Request = "go on"
    with observer.steps(total_steps, step) as tell:
        uncounted: StepMetrics | None = None
        text = ""
        phases = fit_in_phases(trainer, position.train_state, training.train_split)
        for trainer, trained, metrics in phases:
            step += 1
            clock.step()
            ends_epoch = step % epoch_steps == 0 or step == total_steps
            if uncounted is not None:
                # The step before is done, and reading it lets this one run on meanwhile.
                sums, text = _counted(sums, uncounted, config.max_skipped, total_steps)
            uncounted = metrics
            if ends_epoch:
                sums, text = _counted(sums, uncounted, config.max_skipped, total_steps)
                uncounted = None
            request = tell(step, text)
            if ends_epoch:
                lr = float(np.asarray(schedule(step - 1)))
                record = {
                    "step": step,
                    "epoch": -(-step // epoch_steps),
                    **sums.record(),
                    **clock.record(),
                    "lr": lr if np.isfinite(lr) else None,
                }
                later = tell(step, "validating")
                request = later if later == "stop" or request == "go on" else request
                validated = with_precise_statistics(trainer, trained, training.train_split)
                arrays = _finite_arrays(trainer, validated)
                scores = score(_predictor(trainer, validated), training.val_split)
                record |= _validation(scores)
                # An epoch that ends here inside goes on where the run is made longer.
                sums = EpochSums() if step % epoch_steps == 0 else sums
                # Before its checkpoint: a record alone is written again by a run that goes on.
                append_record(training.directory, record)
                records.append(record)
                metrics = {BEST: record[BEST]} if is_validated(record) else None
                checkpoints.save(step, arrays, metrics, _about(training, position, sums))
                del arrays  # views of what the next step overwrites
                pace.saved()
                best = best_of(records)
                assert scores.first is not None
                predictions = scores.first[:IMAGES]
                keep_snapshot(training.directory, predictions, records, best)
                if log:
                    log(record, scores.task.colours[predictions])
                clock = _Clock(config.batch_size)
                if observer.record(record, best is record and is_validated(record)):
                    break
                if position.is_patience_out(config.patience):
                    observer.note(f"no better epoch in {config.patience}: stopping")
                    break
            elif request != "go on" or pace.is_due(step):
                assert uncounted is not None
                sums, text = _counted(sums, uncounted, config.max_skipped, total_steps)
                uncounted = None
                arrays = _finite_arrays(trainer, trained)
                checkpoints.save(step, arrays, about=_about(training, position, sums))
                del arrays
                pace.saved()
            if request == "save":
                checkpoints.wait()
                observer.note(f"saved after step {step}")
            if request == "stop":
                break
        checkpoints.wait()
    if request != "stop" and records and not is_validated(best_of(records)):
        raise DivergedError(
            "the loss on validation images was finite in no epoch; lower --lr, or look at the data "
            "with `data show`"
        )
    return Outcome(training.directory, records, step, is_finished=request != "stop")


class _Clock:
    """Times an epoch's steps, from the second one's start, when the first is done, on."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._steps = 0
        self._started = 0.0

    def step(self) -> None:
        """Another step was started."""
        self._steps += 1
        if self._steps == 2:
            self._started = time.perf_counter()

    def record(self) -> dict[str, float]:
        """The images a second until now, where there were steps enough."""
        if self._steps < 2:
            return {}
        images = (self._steps - 1) * self._batch_size
        return {"images_per_second": images / (time.perf_counter() - self._started)}


def _counted(
    sums: EpochSums, metrics: StepMetrics, max_skipped: int, total_steps: int
) -> tuple[EpochSums, str]:
    """The sums with a step, and what is said of it."""
    done = jax.device_get(metrics)
    if done.skipped >= min(max_skipped, total_steps):
        raise DivergedError(
            f"{done.skipped} steps in a row were not finite (the loss of the last: {done.loss}); "
            "lower --lr, or look at the data with `data show`"
        )
    return sums.plus(done), f"loss {done.loss:.3f}  IoU {done.iou:.3f}"


def _finite_arrays(
    trainer: Trainer, train_state: TrainState
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """What a checkpoint keeps; raises DivergedError where that is not finite."""
    arrays = {name: np.asarray(array) for name, array in to_arrays(trainer, train_state).items()}
    # A step leaves nothing else behind, but statistics are taken anew.
    if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise DivergedError(
            f"{', '.join(wrong[:3])} would be saved, and not finite: the weights have become too "
            "large; lower --lr"
        )
    return arrays


def _about(training: Training, position: Position, sums: EpochSums) -> dict[str, Any]:
    """What a checkpoint says of itself, for a run that goes on."""
    return {
        "config": training.config.values(),
        "epoch": dataclasses.asdict(sums),
        "patient_since": position.patient_since,
    }


def _predictor(trainer: Trainer, train_state: TrainState) -> Predictor:
    model = eqx.nn.inference_mode(trainer.model(train_state))
    return Predictor(model, train_state.state, trainer.task)


def _validation(scores: Scores) -> Mapping[str, Any]:
    task = scores.task
    return {
        "val/loss": scores.loss,
        "val/iou": float(np.mean(scores.iou)),
        "val/dice": float(np.mean(task.score("dice", scores.confusion))),
        "val/baseline_iou": baseline(task, scores.confusion)["iou"],
    }
