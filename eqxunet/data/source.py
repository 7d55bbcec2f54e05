"""The choice behind `--data`, `--task` and `--labels`: which source, and what its labels are."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from ..config import DATA_DIR, DATASETS, Labels, SplitName, TaskName
from ..errors import InputError
from .example import Source
from .folder import is_oxford, open_folder
from .oxford import OxfordPets
from .synthetic import SyntheticPets


def open_source(
    data: str,
    split: SplitName,
    *,
    labels: Labels | None = None,
    data_dir: Path = DATA_DIR,
    limit: int | None = None,
) -> Source:
    """Opens one split of a dataset, without decoding anything.

    Arguments:

    - `data`: `"oxford_iiit_pet"`, `"synthetic"`, or a folder (see `eqxunet.data.folder`).
    - `labels`: what labels are to be; by default those of the binary task.
    - `data_dir`: where TFDS keeps its datasets; `oxford_iiit_pet` only.
    - `limit`: the first so many examples only.

    Raises InputError where `data` is none of these, has no such labels, or the folder is not
    in order.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1, not {limit}")
    kinds = _kinds(data)
    known: list[Labels] = sorted({kind for allowed in kinds.values() for kind in allowed})
    kind = labels or kinds["binary"][0]
    if kind not in known:
        raise InputError(f"{data}: has no {kind} labels; --labels takes {_either(known)} of it")
    if data == "oxford_iiit_pet":
        return OxfordPets(split, data_dir.expanduser(), kind=kind, limit=limit)
    if data == "synthetic":
        return SyntheticPets(split, kind=kind, limit=limit)
    return open_folder(Path(data).expanduser(), split, kind=kind, limit=limit)


def label_kind(data: str, *, task: TaskName, labels: Labels | None) -> Labels:
    """What labels a task takes of a dataset: `labels` if they fit, or the task's default.

    Raises InputError where they don't fit the task or the dataset.
    """
    allowed = _kinds(data)[task]
    if labels is None:
        return allowed[0]
    if labels not in allowed:
        other = "semantic" if task == "binary" else "binary"
        way_out = f"leave --labels out, or choose {_either(allowed)}"
        if labels in _kinds(data)[other]:
            way_out += f", or --task {other}"
        raise InputError(f"{data}: --labels {labels} does not fit --task {task}; {way_out}")
    return labels


def _kinds(data: str) -> dict[TaskName, tuple[Labels, ...]]:
    """The labels that each task may take of a dataset, its default first."""
    if data in DATASETS:
        return {"binary": ("trimap",), "semantic": ("species", "trimap")}
    root = Path(data).expanduser()
    if not root.is_dir():
        close = difflib.get_close_matches(root.name.lower(), DATASETS, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise InputError(
            f"{data}: not a folder; {hint}give a folder, `synthetic`, or `oxford_iiit_pet` as data"
        )
    if is_oxford(root):
        return {"binary": ("trimap",), "semantic": ("species", "trimap")}
    return {"binary": ("mask",), "semantic": ("classes",)}


def _either(kinds: Sequence[Labels]) -> str:
    return " or ".join(kinds)
