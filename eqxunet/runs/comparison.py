"""Several runs, scored on the same images: all that the command `compare` does."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..config import SplitName
from ..data import Split
from ..data.complaints import some_of
from ..data.split import are_alike
from ..errors import InputError
from ..evaluation import mean_intervals, score
from ..storage import replace_text
from .calibration import with_threshold
from .documents import write_json
from .evaluation import check_classes, warnings_about
from .load import Run, RunLike, as_run
from .observer import Observer
from .scores import check_scores, csv_text
from .splits import load

_PICTURED = 8


def compare(
    runs: Sequence[RunLike],
    split: SplitName = "test",
    *,
    threshold: float | Literal["auto"] = 0.5,
    limit: int | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Scores runs on the same images, and each against the first.

    Returns what `comparison.json` holds: a run's mean IoU and Dice with their 95% intervals, and
    its `difference` from those of the first run with its paired interval, over the differences of
    each image (`mean_intervals`); `excludes_zero` says whether 0 is outside.

    Arguments:

    - `runs`: two or more, loaded or their directories.
    - `split`: of the first run's images, which are those of all.
    - `threshold`: probability that counts as foreground; `"auto"` takes for each run the one with
      the best Dice on its validation images.
    - `limit`: the first so many images; by default as many as the first run was trained with.
    - `out`: a folder for `comparison.json`, `comparison.csv` with each image's IoU, and
      `comparison.png` with the images on which the runs differ most; None writes nothing.
    - `overwrite`: replace another comparison that `out` holds.
    - `observer`: is told what goes on.

    Raises InputError where runs differ in what makes scores comparable, which are task, labels,
    classes, border policy, size and images, and where `out` holds something else.
    """
    observer = observer or Observer()
    if isinstance(runs, str) or len(runs) < 2:
        raise InputError("a comparison takes two runs or more; `eval` scores one")
    loaded = [as_run(run, observer) for run in runs]
    first = loaded[0]
    names = _names(loaded)
    _check_comparable(loaded, names)
    directories = [str(run.directory) for run in loaded]
    config = first.config if limit is None else dataclasses.replace(first.config, limit=limit)
    conditions = {
        "runs": directories,
        "split": split,
        "threshold": threshold,
        "limit": config.limit,
    }
    if out is not None:
        if not overwrite:
            check_scores(Path(out), conditions, "comparison.json")
        Path(out).mkdir(parents=True, exist_ok=True)
    pairs = [with_threshold(run, threshold, observer) for run in loaded]
    loaded, thresholds = [run for run, _ in pairs], [value for _, value in pairs]
    for warning in warnings_about(first, config, split):
        observer.warn(warning)
    arrays = load(config, split, observer)
    check_classes(first, arrays)
    scores = []
    for run, name, value in zip(loaded, names, thresholds, strict=True):
        with observer.progress(f"scoring {name}") as progress:
            scores.append(score(run.predictor(), arrays, threshold=value, progress=progress))
    with observer.stage("intervals and pictures"):
        iou = np.stack([each.iou for each in scores])
        dice = np.stack([np.asarray(first.task.score("dice", each.confusion)) for each in scores])
        comparison = {
            **conditions,
            "data": first.config.data,
            "count": len(arrays),
            "size": first.config.model.size,
            "task": first.config.task,
            "labels": arrays.kind,
            "border": first.task.border,
            "classes": list(first.task.classes),
            "scores": _scores(loaded, names, thresholds, iou, dice),
        }
        if out is not None:
            write_json(Path(out) / "comparison.json", comparison)
            _write_table(Path(out) / "comparison.csv", names, arrays.names, iou)
            _draw(loaded, names, arrays, iou, thresholds, Path(out) / "comparison.png")
            observer.note(f"written: comparison.json, .csv and .png in {out}")
    return comparison


def _names(runs: Sequence[Run]) -> list[str]:
    """What runs are called: by their directories' names, or where these are alike by their paths.

    Raises InputError where a run is given twice.
    """
    directories = [run.directory for run in runs]
    for i, directory in enumerate(directories):
        if directory in directories[:i]:
            raise InputError(f"{directory}: is given twice; name each run once")
    names = [directory.name for directory in directories]
    return names if len(set(names)) == len(names) else list(map(str, directories))


def _check_comparable(runs: Sequence[Run], names: Sequence[str]) -> None:
    for run, name in zip(runs[1:], names[1:], strict=True):
        if differences := _differences(run, runs[0]):
            raise InputError(
                f"{name} cannot be compared with {names[0]}: {'; '.join(differences)}. Scores "
                "compare where these are the same; `eval` scores each by itself"
            )


def _differences(run: Run, first: Run) -> list[str]:
    """In what scores of a run would be of something else than those of the first."""
    ours, theirs = _conditions(run), _conditions(first)
    differences = [
        f"{name} {ours[name]} and {theirs[name]}" for name in ours if ours[name] != theirs[name]
    ]
    here, there = run.config.identity, first.config.identity
    if differences or not here or not there:
        return differences  # at another size, all pixels are others
    for split, digest in there.items():
        if here[split]["count"] != digest["count"]:
            differences.append(f"{here[split]['count']} and {digest['count']} {split} images")
        elif not are_alike(here[split]["crc32"], digest["crc32"]):
            differences.append(f"other {split} images, to the pixel, though as many")
    return differences


def _conditions(run: Run) -> dict[str, Any]:
    config, task = run.config, run.task
    conditions = {
        "task": config.task,
        "labels": config.labels,
        "classes": some_of(task.classes),
        "border as": task.border if task.has_border else None,
        "size": config.model.size,
    }
    if not config.identity:  # a run of an earlier version
        conditions |= {"data": config.data, "limit": config.limit}
    return conditions


def _scores(
    runs: Sequence[Run],
    names: Sequence[str],
    thresholds: Sequence[float],
    iou: Float[np.ndarray, "runs n"],
    dice: Float[np.ndarray, "runs n"],
) -> list[dict[str, Any]]:
    columns = np.stack([iou, dice, iou - iou[0], dice - dice[0]], axis=1)
    intervals = mean_intervals(columns.reshape(-1, columns.shape[-1]).T)
    scores = []
    for k, run in enumerate(runs):
        ious, dices, *differences = intervals[4 * k : 4 * k + 4]
        for difference in differences:
            ends = difference["ci95"]
            difference["excludes_zero"] = ends and not ends[0] <= 0 <= ends[1]
        named = dict(zip(("iou", "dice"), differences, strict=True))
        scores.append(
            {
                "name": names[k],
                "run": str(run.directory),
                "step": run.step,
                "encoder": run.config.model.encoder,
                "threshold": thresholds[k],
                "iou": ious,
                "dice": dices,
                "difference": named if k else None,
            }
        )
    return scores


def _write_table(
    path: Path, runs: Sequence[str], names: Sequence[str], iou: Float[np.ndarray, "runs n"]
) -> None:
    rows = ([name, *row] for name, row in zip(names, iou.T.tolist(), strict=True))
    replace_text(path, csv_text([["name", *runs], *rows]))


def _draw(
    runs: Sequence[Run],
    names: Sequence[str],
    split: Split,
    iou: Float[np.ndarray, "runs n"],
    thresholds: Sequence[float],
    path: Path,
) -> None:
    from ..report import save_comparison

    chosen = np.argsort(-np.ptp(iou, axis=0), kind="stable")[:_PICTURED]
    predictions = []
    for run, threshold in zip(runs, thresholds, strict=True):
        predictor = run.predictor(batch_size=_PICTURED)
        logits = predictor.logits(split.images[chosen])
        predictions.append(np.asarray(predictor.prediction(logits, threshold)))
    task = runs[0].task
    save_comparison(
        split.images[chosen],
        np.asarray(task.targets(split.labels[chosen])),
        np.stack(predictions),
        iou[:, chosen],
        [split.names[i] for i in chosen],
        names,
        task.classes,
        task.colours,
        f"{len(chosen)} of {len(split)} images, those on which the runs' IoU differs most",
        path,
        is_binary=task.outputs == 1,
    )
