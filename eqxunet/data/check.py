"""A whole folder decoded once, to say what cannot be used and what its masks hold."""

from dataclasses import dataclass
from pathlib import Path

from ..config import Labels, SplitName
from ..errors import InputError
from .complaints import FileError, summarised
from .decoding import decode, map_examples
from .example import Example, Progress, Source, names_of
from .mask_checks import check_masks, unseen_classes
from .masks import Mask, MaskSummary
from .source import open_splits


@dataclass(frozen=True)
class Check:
    """What a folder holds.

    Arguments:

    - `folder`: its path.
    - `classes`: names of the classes.
    - `counts`: examples of each split, usable or not.
    - `splits`: what the usable masks of each split hold; `everything`: those of all of them.
    - `complaints`: what is wrong with files, a line each; `unusable`: with how many examples.
    - `notes`: what the user should know of the folder.
    """

    folder: Path
    classes: tuple[str, ...]
    counts: dict[SplitName, int]
    splits: dict[SplitName, MaskSummary]
    everything: MaskSummary
    complaints: tuple[str, ...]
    unusable: int
    notes: tuple[str, ...]

    def judge(self) -> list[str]:
        """Returns warnings of what may not be meant.

        Raises InputError of what cannot be meant, with the way out.
        """
        try:
            warnings = [
                warning
                for split, summary in self.splits.items()
                for warning in check_masks(summary, split, self.classes)
            ]
        except InputError as error:
            raise InputError(f"{self.folder}: {error}") from error
        return warnings + unseen_classes(self.splits, self.classes)


def look_through(
    source: Source, progress: Progress | None
) -> tuple[dict[str, Mask], list[FileError]]:
    """Decodes every example; returns what masks hold, by name, and what is wrong with the others.

    Arguments:

    - `progress`: called with how many of how many examples are done.
    """
    masks: dict[str, Mask] = {}
    errors: list[FileError] = []

    def use(example: Example) -> tuple[str, Mask]:
        return example.name, decode(example).mask  # not the pixels, which may fill the memory

    for done, result in enumerate(map_examples(use, source), start=1):
        if isinstance(result, FileError):
            errors.append(result)
        else:
            name, mask = result
            masks[name] = mask
        if progress is not None:
            progress(done, len(source))
    return masks, errors


def check_folder(root: Path, *, kind: Labels, progress: Progress) -> Check:
    """Decodes every image and mask of a folder or a pack, whatever its splits.

    Arguments:

    - `kind`: what labels are.
    - `progress`: called with how many of how many examples are done.

    Raises InputError where the folder itself is not in order; files are no reason. Raises
    IntegrityError where a pack is damaged.
    """
    sources = dict(open_splits(str(root), labels=kind))
    everything = sources.pop("all")
    masks, errors = look_through(everything, progress)
    splits: dict[SplitName, MaskSummary] = {
        split: MaskSummary.of({n: masks[n] for n in names_of(source) if n in masks}, kind)
        for split, source in sources.items()
    }
    summary = MaskSummary.of(masks, kind)
    return Check(
        root,
        everything.classes.names or summary.indices(),
        {split: len(source) for split, source in sources.items()},
        splits,
        summary,
        tuple(summarised(errors)),
        len(errors),
        everything.notes,
    )
