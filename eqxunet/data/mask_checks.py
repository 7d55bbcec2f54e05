"""Whether what masks hold can be meant: what cannot is refused, what may not be is warned of."""

from collections.abc import Iterable, Mapping, Sequence

from ..config import SplitName
from ..errors import InputError
from .complaints import some_of
from .kinds import MEANINGS, UNLABELLED
from .masks import MaskSummary

MOSTLY = 0.9
"""Share of foreground above which masks are suspected of being the wrong way round."""
_SEMANTIC = "--task semantic"


def check_masks(summary: MaskSummary, split: SplitName, classes: Sequence[str] = ()) -> list[str]:
    """Returns warnings of what may not be meant.

    Arguments:

    - `classes`: their names, by index.

    Raises InputError of what cannot be meant, with the way out.
    """
    if not summary.count:
        return []
    masks = f"the {summary.count} {split} masks"
    if split == "all":
        masks = f"the {summary.count} masks"
    if summary.kind == "classes":
        return _check_classes(summary, split, masks, classes)
    _refuse(summary, split, masks)
    warnings = _warnings(summary, masks)
    if summary.kind == "species" and split == "train":
        warnings += _absent(summary, masks, classes)
    return warnings


def unseen_classes(summaries: Mapping[SplitName, MaskSummary], classes: Sequence[str]) -> list[str]:
    """Warnings of classes that a model is scored on but cannot learn from the training masks."""
    train = summaries["train"]
    if not train.count or train.kind not in ("classes", "species"):
        return []
    seen, warnings = train.present(classes), []
    for split, summary in summaries.items():
        if unseen := [name for name in summary.present(classes) if name not in seen]:
            warnings.append(
                f"no train mask holds what {split} masks do, so it cannot be learnt: "
                f"{some_of(unseen)}"
            )
    return warnings


def _check_classes(
    summary: MaskSummary, split: SplitName, masks: str, classes: Sequence[str]
) -> list[str]:
    unknown = [v for v in _in_order(summary.values) if len(classes) <= int(v) != UNLABELLED]
    if unknown:
        raise InputError(
            f"{masks} hold the class indices {some_of(unknown)}, but the names are of "
            f"{len(classes)} classes ({some_of(classes)}); name every class, or set pixels that "
            f"have none to {UNLABELLED}"
        )
    if len(summary.values.keys() - {str(UNLABELLED)}) < 2:
        told = (
            f"{masks} hold one class at most (values: {some_of(_in_order(summary.values))}), where "
            f"a value is {MEANINGS['classes']}"
        )
        if split == "train":
            raise InputError(f"{told}; there is nothing to tell apart")
        return [f"{told}, so their scores say little"]
    return _absent(summary, masks, classes) if split in ("train", "all") else []


def _absent(summary: MaskSummary, masks: str, classes: Sequence[str]) -> list[str]:
    present = summary.present(classes)
    absent = [name for name in classes if name not in present]
    return [f"none of {masks} holds {some_of(absent)}"] if absent else []


def _refuse(summary: MaskSummary, split: SplitName, masks: str) -> None:
    values = some_of(_in_order(summary.values))
    meaning = MEANINGS[summary.kind]
    if summary.indexed:
        raise InputError(
            f"{summary.indexed} of {masks} hold 255 beside class indices ({values}): 255 often "
            "means `not labelled`, but here it would count as foreground; set those pixels to "
            f"0, or to the index of the foreground, or choose {_SEMANTIC}, where 255 is ignored"
        )
    if summary.count == summary.full and (split == "train" or summary.several):
        way_out = f"save them with background {2 if summary.kind == 'trimap' else 0}"
        if summary.kind == "mask" and set(summary.values) <= {"1", "2", "3"}:
            way_out += ", or put trimaps of 1, 2, 3 into annotations/trimaps/"
        raise InputError(
            f"{masks} have no background (values: {values}), where {meaning}; {way_out}"
        )
    if summary.count == summary.empty and split == "train":
        raise InputError(
            f"{masks} are all empty (values: {values}), where {meaning}; there is nothing to "
            "learn from them"
        )


def _warnings(summary: MaskSummary, masks: str) -> list[str]:
    warnings = []
    if summary.empty == summary.count:
        warnings.append(f"{masks} are all empty, so their scores say little")
    elif summary.full == summary.count:
        warnings.append(f"{masks} have no background, so their scores say little")
    elif summary.full:
        warnings.append(f"{summary.full} of {masks} have no background")
    if summary.several:
        marks = _in_order(summary.values.keys() - {"0", "transparent"})
        warnings.append(
            f"{len(summary.several)} of {masks} hold several values beside 0, which all count as "
            f"foreground: {some_of(marks)} (in {some_of(summary.several, 3)}); if they are "
            f"classes, choose {_SEMANTIC}"
        )
    if summary.foreground > MOSTLY and summary.full < summary.count:
        warnings.append(
            f"{summary.foreground:.0%} of the pixels of {masks} are foreground: are foreground "
            "and background exchanged?"
        )
    return warnings


def _in_order(values: Iterable[str]) -> list[str]:
    """Numbers by their size, then colours."""
    return sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0, v))
