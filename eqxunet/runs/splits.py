"""The images of a run."""

import dataclasses
from pathlib import Path

from ..config import SplitName
from ..data import Split, load_split
from ..data.mask_checks import unseen_classes
from ..data.masks import MaskSummary
from ..errors import InputError
from .config import RunConfig
from .observer import Observer

Splits = dict[SplitName, Split]


def load_splits(config: RunConfig, observer: Observer) -> Splits:
    """Loads what a run is trained and validated on, and warns of what may not be meant."""
    names: tuple[SplitName, ...] = ("train", "val")
    splits: Splits = {name: load(config, name, observer) for name in names}
    for note in dict.fromkeys(note for split in splits.values() for note in split.notes):
        observer.warn(note)
    if config.task == "semantic":
        masks: dict[SplitName, MaskSummary] = {
            name: split.masks for name, split in splits.items() if split.masks
        }
        for warning in unseen_classes(masks, classes_of(splits)):
            observer.warn(f"{config.data}: {warning}")
    return splits


def classes_of(splits: Splits) -> tuple[str, ...]:
    """Names of the classes; where nobody named them, up to the largest index in any split."""
    return max((split.classes for split in splits.values()), key=len)


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
            cache=config.cache,
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


def with_identity(config: RunConfig, splits: Splits, directory: Path) -> RunConfig:
    """Notes which images and classes these are; a run that is resumed must have had them.

    Raises InputError where it had others.
    """
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
            f"{', '.join(changed)}; put the images back (and where their number is the same, "
            f"the version of Pillow in its config.json), or start a new run with --from {directory}"
        )
    classes = config.classes or classes_of(splits)
    return dataclasses.replace(config, identity=now, classes=classes)
