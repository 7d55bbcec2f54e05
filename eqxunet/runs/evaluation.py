"""A run's best checkpoint, scored on a split: all that the command `eval` does."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from ..config import DATASETS, SplitName
from ..data import Split, label_kind
from ..data.complaints import some_of
from ..data.source import open_source
from ..errors import InputError
from ..evaluation import per_image, score, score_at_own_size, summarise
from ..storage import replace_text
from .calibration import with_threshold
from .config import RunConfig, absolute
from .documents import write_json
from .load import Run, RunLike, as_run
from .observer import Observer
from .pictures import draw_examples
from .report import write_report
from .scores import check_same_images, check_scores, csv_text, scores_directory
from .splits import load


def evaluate(
    run: RunLike,
    split: SplitName = "test",
    *,
    data: str | None = None,
    data_dir: str | None = None,
    threshold: float | Literal["auto"] = 0.5,
    is_at_own_size: bool = False,
    limit: int | None = None,
    cache: bool | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Scores a run on a split: writes metrics.json, per_image.csv, examples.png and report.html.

    Returns what `metrics.json` holds: IoU and Dice, per image and pooled, by border policy.

    Arguments:

    - `run`: a run, or its directory.
    - `data`, `data_dir`, `limit`, `cache`: by default those that the run was trained with.
    - `threshold`: probability that counts as foreground; `"auto"` takes the one with the best Dice
      on the run's validation images.
    - `is_at_own_size`: score images at their own size, to which logits are resized, instead of the
      one that the model was trained at.
    - `out`: by default `eval/SPLIT` in the run's directory, or a folder beside it that names other
      conditions.
    - `overwrite`: replace other scores that `out` holds.
    - `observer`: is told what goes on.

    Raises InputError where `out` holds something else, and what `load_split` raises.
    """
    observer = observer or Observer()
    run = as_run(run, observer)
    run, threshold = with_threshold(run, threshold, observer)
    config = _config(run, data=data, data_dir=data_dir, limit=limit, cache=cache)
    conditions = {
        "data": config.data,
        "split": split,
        "threshold": threshold,
        "limit": config.limit,
        "at_own_size": is_at_own_size,
    }
    folder = Path(out) if out else scores_directory(run, **conditions)
    if not overwrite:
        check_scores(folder, conditions | ({"run": str(run.directory)} if out else {}))
    for warning in warnings_about(run, config, split):
        observer.warn(warning)
    arrays = load(config, split, observer)
    for note in arrays.notes:
        observer.warn(note)
    task = dataclasses.replace(run.task, kind=arrays.kind)
    check_classes(run, arrays)
    predictor = dataclasses.replace(run.predictor(), task=task)
    with observer.progress(f"scoring {split} images") as progress:
        if is_at_own_size:
            source = open_source(
                config.data,
                split,
                labels=arrays.kind,
                data_dir=Path(config.data_dir),
                limit=config.limit,
            )
            scores = score_at_own_size(predictor, source, threshold=threshold, progress=progress)
        else:
            scores = score(
                predictor, arrays, threshold=threshold, is_detailed=True, progress=progress
            )
    with observer.stage("intervals and pictures"):
        metrics = {
            "run": str(run.directory),
            "step": run.step,
            "encoder": config.model.encoder,
            "weights": config.weights_record,
            "size": config.model.size,
            "task": config.task,
            "labels": arrays.kind,
            **conditions,
            "calibration": _calibration(run),
            **summarise(scores),
        }
        folder.mkdir(parents=True, exist_ok=True)
        rows = per_image(scores)
        _write(folder, metrics, rows)
        draw_examples(run, arrays, scores, folder / "examples.png")
    with observer.stage("the report"):
        write_report(run, arrays, scores, metrics, rows, folder / "report.html", observer)
    observer.note(f"written: metrics.json, per_image.csv, examples.png and report.html in {folder}")
    return metrics


def _calibration(run: Run) -> dict[str, float] | None:
    if run.calibration is None:
        return None
    names = ("temperature", "ece", "ece_before", "threshold")
    return {name: getattr(run.calibration, name) for name in names}


def _config(run: Run, *, data: str | None, **options: Any) -> RunConfig:
    """The run's configuration, with other data where given."""
    before = run.config
    given = {"data": data and absolute(data), **options}
    config = dataclasses.replace(before, **{k: v for k, v in given.items() if v is not None})
    if config.data == before.data:
        return config
    labels = label_kind(config.data, task=config.task, labels=None)
    if config.task == "semantic" and {labels, before.labels} == {"species", "trimap"}:
        labels = before.labels
    return dataclasses.replace(config, labels=labels)


def warnings_about(run: Run, config: RunConfig, split: SplitName) -> list[str]:
    """What one should know of scores of a run on a split, or on other data."""
    warnings = []
    if warning := check_same_images(run, config):
        warnings.append(warning)
    if config.data == run.config.data and split in ("train", "all"):
        warnings.append("the run was trained on some of these images, so their scores flatter")
    elif config.data != run.config.data and config.data not in DATASETS and split != "all":
        warnings.append(f"the {split} split of {config.data} alone; --split all scores all images")
    return warnings


def check_classes(run: Run, split: Split) -> None:
    """Raises InputError where a split has classes that a run has not learnt, or others."""
    if run.config.task != "semantic":
        return
    theirs, learnt = split.classes, run.task.classes
    told = (
        f"its labels have {len(theirs)} classes ({some_of(theirs)}), {run.directory.name} has "
        f"learnt {len(learnt)} ({some_of(learnt)})"
    )
    if len(theirs) > len(learnt):
        raise InputError(f"{told}; score it on labels of those")
    for k, (a, b) in enumerate(zip(theirs, learnt, strict=False)):
        if a != b and str(k) not in (a, b):  # without names they are called by their numbers
            raise InputError(
                f"{told}; class {k} is {a} there and {b} here: score it on labels with the same "
                "classes in the same order"
            )


def _write(folder: Path, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    write_json(folder / "metrics.json", metrics)
    table = csv_text([list(rows[0]), *(list(row.values()) for row in rows)])
    replace_text(folder / "per_image.csv", table)
