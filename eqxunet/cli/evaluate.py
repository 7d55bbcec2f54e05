"""`eval`: a run's best checkpoint, scored on a split."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..config import DATASETS, SplitName
from .console import absolute, console, load, progress_bar, shown, stage, warn, warn_of_damage

if TYPE_CHECKING:
    from ..data.cache import Split
    from ..evaluation import Scores
    from ..runs import Run, RunConfig

_PICTURED = 8


def evaluate(
    run: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/latest"),
    data: Annotated[
        str | None, typer.Option(help="By default what the run was trained on.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = None,
    split: Annotated[SplitName, typer.Option(help="Which images.")] = "test",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Probability that counts as foreground.")
    ] = 0.5,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="By default eval/SPLIT in the run directory.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace other scores in --out.")] = False,
) -> None:
    """Scores a run's best checkpoint: IoU and Dice, per image and pooled, by border policy."""
    with stage("loading JAX and the run"):
        from .. import evaluation
        from ..runs import load_run
        from ..scores import check_same_images, check_scores, scores_directory

        loaded = load_run(run)
    warn_of_damage(loaded.damaged)
    changes = {
        "data": data and absolute(data),
        "data_dir": data_dir and absolute(str(data_dir)),
        "limit": limit,
    }
    config = dataclasses.replace(loaded.config, **{k: v for k, v in changes.items() if v})
    conditions = {
        "data": config.data,
        "split": split,
        "threshold": threshold,
        "limit": config.limit,
    }
    elsewhere = {"run": str(loaded.directory)} if out else {}
    out = out or scores_directory(loaded, **conditions)
    if not overwrite:
        check_scores(out, conditions | elsewhere)
    if warning := check_same_images(loaded, config):
        warn([warning])
    if config.data == loaded.config.data and split in ("train", "all"):
        warn(["the run was trained on some of these images, so their scores flatter"])
    elif config.data != loaded.config.data and config.data not in DATASETS and split != "all":
        warn([f"the {split} split of {config.data} alone; --split all scores all its images"])
    arrays = load(config, split)
    warn(arrays.notes)
    with progress_bar(f"scoring {split} images") as progress:
        scores = evaluation.evaluate(
            loaded.model,
            loaded.state,
            arrays,
            threshold=threshold,
            border=config.train.border,
            progress=progress,
        )
    with stage("intervals and pictures"):
        metrics = _write(loaded, config, arrays, scores, conditions, out)
    _print(metrics)
    written = f"written: metrics.json, per_image.csv and examples.png in {shown(out)}"
    console.print(written, markup=False, soft_wrap=True)


def _write(
    loaded: "Run",
    config: "RunConfig",
    arrays: "Split",
    scores: "Scores",
    conditions: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    from .. import evaluation

    metrics = {
        "run": str(loaded.directory),
        "step": loaded.step,
        "encoder": config.model.encoder,
        "weights": config.weights,
        "size": config.model.size,
        **conditions,
        **evaluation.summarise(scores),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    rows = evaluation.per_image(scores)
    with (out / "per_image.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    _draw(loaded, arrays, scores, out / "examples.png")
    return metrics


def _draw(run: "Run", arrays: "Split", scores: "Scores", path: Path) -> None:
    """Pictures examples from the worst to the best, evenly spaced by rank."""
    import jax
    import numpy as np

    from ..data.augment import to_float
    from ..evaluation import forward
    from ..report import save_predictions

    iou = scores.counts[scores.border].iou
    ranks = np.linspace(0, len(arrays) - 1, min(_PICTURED, len(arrays))).round().astype(int)
    chosen = np.argsort(iou, kind="stable")[ranks]
    logits = forward(run.model, run.state, to_float(arrays.images[chosen]))
    save_predictions(
        arrays.images[chosen],
        arrays.labels[chosen],
        np.asarray(jax.nn.sigmoid(logits)),
        [f"{arrays.names[i]}\nIoU {iou[i]:.2f}" for i in chosen],
        path,
        threshold=scores.threshold,
    )


def _print(metrics: dict[str, Any]) -> None:
    console.print(
        f"{shown(Path(metrics['run']))}: {metrics['encoder']} on {metrics['count']} "
        f"{metrics['split']} images of {metrics['data']}, {metrics['size']} x {metrics['size']}, "
        f"threshold {metrics['threshold']}, step {metrics['step']}",
        markup=False,
        soft_wrap=True,
    )
    table = Table("border as", "IoU \\[95%]", "Dice \\[95%]", "pooled", "trivial", box=box.SIMPLE)
    by_border = metrics["by_border"]
    if all(scores == by_border["ignore"] for scores in by_border.values()):
        by_border = {metrics["border"]: by_border["ignore"]}  # there are no borders
    for border, scores in by_border.items():
        cells = [_interval(scores[name]) for name in ("iou", "dice")]
        cells += [f"{scores[name]['iou']:.3f}" for name in ("pooled", "baseline")]
        style = "bold" if border == metrics["border"] else None
        table.add_row("not counted" if border == "ignore" else border, *cells, style=style)
    console.print(table)
    console.print(
        "mean over images; pooled: IoU of all pixels together; trivial: IoU of predicting\n"
        "foreground everywhere"
    )


def _interval(score: dict[str, Any]) -> str:
    interval = score["ci95"]
    ends = f" \\[{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return f"{score['mean']:.3f}{ends}"
