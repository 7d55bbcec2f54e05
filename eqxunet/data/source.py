"""The choice behind `--data`, `--task` and `--labels`: which source, and what its labels are."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from ..config import DATA_DIR, DATASETS, Labels, SplitName, TaskName
from ..errors import InputError
from .example import Source
from .folder import is_oxford, open_folder, scan_folder
from .oxford import OxfordPets
from .pack import is_pack, open_pack
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

    - `data`: `"oxford_iiit_pet"`, `"synthetic"`, or a folder (see `eqxunet.data.folder`
      and `eqxunet.data.pack`).
    - `labels`: what labels are to be; by default those of the binary task.
    - `data_dir`: where TFDS keeps its datasets; `oxford_iiit_pet` only.
    - `limit`: the first so many examples only.

    Raises InputError where `data` is none of these, has no such labels, or the folder is not
    in order.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit must be at least 1, not {limit}")
    kinds = label_kinds(data)
    known: list[Labels] = sorted({kind for allowed in kinds.values() for kind in allowed})
    kind = labels or kinds["binary"][0]
    if kind not in known:
        raise InputError(f"{data}: has no {kind} labels; --labels takes {_either(known)} of it")
    if data == "oxford_iiit_pet":
        return OxfordPets(split, data_dir.expanduser(), kind=kind, limit=limit)
    if data == "synthetic":
        return SyntheticPets(split, kind=kind, limit=limit)
    root = Path(data).expanduser()
    if not is_pack(root):
        return open_folder(root, split, kind=kind, limit=limit)
    source = open_pack(root).source(split, kind, limit)
    if not len(source):
        raise InputError(f"{data}: no image belongs to its {split} split; use another split")
    return source


def open_splits(
    data: str, *, labels: Labels, data_dir: Path = DATA_DIR
) -> Mapping[SplitName, Source]:
    """Opens all splits as `open_source` does, of a folder empty ones too."""
    names: tuple[SplitName, ...] = get_args(SplitName)
    root = Path(data).expanduser()
    if data in DATASETS:
        return {name: open_source(data, name, labels=labels, data_dir=data_dir) for name in names}
    if is_pack(root):
        return {name: open_pack(root).source(name, labels, None) for name in names}
    return scan_folder(root, kind=labels)


def label_kind(data: str, *, task: TaskName, labels: Labels | None) -> Labels:
    """What labels a task takes of a dataset: `labels` if they fit, or the task's default.

    Raises InputError where they don't fit the task or the dataset.
    """
    allowed = label_kinds(data)[task]
    if labels is None:
        return allowed[0]
    if labels not in allowed:
        other = "semantic" if task == "binary" else "binary"
        way_out = f"leave --labels out, or choose {_either(allowed)}"
        if labels in label_kinds(data)[other]:
            way_out += f", or --task {other}"
        raise InputError(f"{data}: --labels {labels} does not fit --task {task}; {way_out}")
    return labels


def label_kinds(data: str) -> dict[TaskName, tuple[Labels, ...]]:
    """The labels that each task may take of a dataset, its default first.

    Raises InputError where there is no such dataset.
    """
    if data in DATASETS:
        return {"binary": ("trimap",), "semantic": ("species", "trimap")}
    root = Path(data).expanduser()
    if not root.is_dir():
        close = difflib.get_close_matches(root.name.lower(), DATASETS, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        raise InputError(
            f"{data}: not a folder; {hint}give a folder, `synthetic`, or `oxford_iiit_pet` as data"
        )
    if is_pack(root):
        return open_pack(root).manifest.kinds
    if is_oxford(root):
        return {"binary": ("trimap",), "semantic": ("species", "trimap")}
    return {"binary": ("mask",), "semantic": ("classes",)}


def _either(kinds: Sequence[Labels]) -> str:
    return " or ".join(kinds)
