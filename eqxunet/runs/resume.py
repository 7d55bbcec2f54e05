"""A run that was stopped, and how it goes on: from its latest checkpoint, to its own end."""

from pathlib import Path

from ..config import TrainConfig
from ..errors import InputError, IntegrityError
from ..training import Trainer, TrainState
from ..training.arrays import from_arrays
from ..training.checkpoint import Restored, restore
from .config import RunConfig
from .directory import busy_first
from .documents import is_whole
from .epochs import Position
from .observer import Observer
from .records import Record, cut_records
from .sums import EpochSums


def resumable(directory: Path) -> RunConfig:
    """The configuration of a run that is to be resumed.

    Raises BusyError where another process trains in it, and what `RunConfig.read` raises.
    """
    with busy_first(directory):
        return RunConfig.read(directory)


def latest_checkpoint(config: RunConfig, directory: Path, observer: Observer) -> Restored:
    """The latest checkpoint; raises InputError where there is none."""
    restored = restore(directory / "checkpoints")
    if restored is None:
        raise InputError(
            f"{directory}: nothing was saved to resume from; to start it anew:\n"
            f"{config.command(directory)}"
        )
    for damage in restored.damaged:
        observer.warn(f"a damaged checkpoint was passed over: {damage}")
    return restored


def count_steps(config: TrainConfig, epoch_steps: int, restored: Restored | None) -> int:
    """At which step a run ends; raises InputError where it is further already."""
    total = config.steps or config.epochs * epoch_steps
    if total >= 2**31:
        raise InputError(f"{total} steps are more than can be counted; lower --epochs or --steps")
    if restored is not None and restored.step > total:
        raise InputError(
            f"a resumed run can be made longer, not shorter: it has done {restored.step} steps "
            f"and was to end after {total}; raise --epochs or --steps"
        )
    return total


def resumed(
    trainer: Trainer,
    train_state: TrainState,
    restored: Restored,
    epoch_steps: int,
    directory: Path,
    observer: Observer,
) -> tuple[Trainer, Position]:
    """Where a run goes on from, its records cut to what the checkpoint knows of."""
    trainer, train_state = from_arrays(trainer, train_state, restored.arrays)
    epoch = restored.about.get("epoch")
    sums = EpochSums() if epoch is None else EpochSums.read(epoch, directory)
    since = restored.about.get("patient_since", 0)
    if not is_whole(since):
        raise IntegrityError(f"{directory}: its checkpoint says nothing that could be an epoch")
    # Later epochs are recorded again, and so is one inside which a shorter run ended.
    total = trainer.total_steps

    def is_kept(record: Record) -> bool:
        step = record["step"]
        return step <= restored.step and (step % epoch_steps == 0 or step == total)

    records = cut_records(directory, is_kept, observer.warn)
    observer.note(
        f"resuming after step {restored.step} of {total}, where the learning rate's schedule ends"
    )
    return trainer, Position(train_state, records, sums, since)


def is_stopped_early(position: Position, config: TrainConfig) -> bool:
    """Whether patience was out where a run goes on."""
    records, step = position.records, int(position.train_state.step)
    is_at_record = bool(records) and records[-1]["step"] == step
    return is_at_record and position.is_patience_out(config.patience)
