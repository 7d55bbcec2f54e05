"""`eval`: a run's best checkpoint, scored on a split."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..config import SplitName
from ..text import printable
from .console import console, display, stage
from .options import Threshold
from .signals import advise

_OTHERS = {
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "boundary_iou": "boundary IoU",
    "hd95": "Hausdorff distance, 95%, px",
}
_MOST_GROUPS = 12  # that a terminal shows


def evaluate(
    run: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/latest"),
    data: Annotated[
        str | None, typer.Option(help="Other images than those the run was trained with.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = None,
    split: Annotated[SplitName, typer.Option(help="Split that is scored.")] = "test",
    threshold: Threshold = "0.5",
    original_size: Annotated[
        bool, typer.Option("--original-size", help="Score images at their own size.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.")] = None,
    cache: Annotated[
        bool | None, typer.Option(help="Keep decoded images, or not; by default as the run did.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the scores; by default eval/SPLIT in the run's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace other scores in --out.")] = False,
) -> None:
    """Scores a run's best checkpoint by IoU and Dice."""
    with stage("loading JAX and the run"):
        from .. import runs
        from .observer import Terminal

        terminal = Terminal()
        loaded = runs.load_run(run, observer=terminal)
    advise("the same command starts anew")
    metrics = runs.evaluate(
        loaded,
        split,
        data=data,
        data_dir=None if data_dir is None else str(data_dir),
        threshold=threshold,
        is_at_own_size=original_size,
        limit=limit,
        cache=cache,
        out=out,
        overwrite=overwrite,
        observer=terminal,
    )
    _print(metrics)


def _print(metrics: dict[str, Any]) -> None:
    threshold = f"threshold {metrics['threshold']:.4g}, " if metrics["task"] == "binary" else ""
    size = f"{metrics['size']} x {metrics['size']}"
    if metrics["at_own_size"]:
        size = f"at their own size (seen at {size})"
    console.print(
        f"{display(Path(metrics['run']))}: {metrics['encoder']}, {metrics['task']}, on "
        f"{metrics['count']} {metrics['split']} images of {printable(metrics['data'])}, "
        f"{size}, {threshold}step {metrics['step']}",
        soft_wrap=True,
    )
    table = Table("border as", "IoU [95%]", "Dice [95%]", "pooled", "trivial", box=box.SIMPLE)
    by_border = metrics["by_border"]
    if all(scores == by_border["ignore"] for scores in by_border.values()):
        by_border = {metrics["border"]: by_border["ignore"]}  # there are no borders
        table.columns[0].header = ""
    for border, scores in by_border.items():
        cells = [interval(scores[name]) for name in ("iou", "dice")]
        cells += [f"{scores[name]['iou']:.3f}" for name in ("pooled", "baseline")]
        style = "bold" if border == metrics["border"] and len(by_border) > 1 else None
        name = "not counted" if border == "ignore" else border
        table.add_row(name if len(by_border) > 1 else "", *cells, style=style)
    console.print(table)
    others = Table("", "mean [95%]", "pooled", box=box.SIMPLE)
    for key, title in _OTHERS.items():
        digits = 1 if key == "hd95" else 3
        pooled = metrics["pooled"].get(key)
        pooled = "" if pooled is None else f"{pooled:.3f}"
        others.add_row(title, interval(metrics[key], digits=digits), pooled)
    console.print(others)
    for title in ("sizes", "groups"):
        if metrics[title] and len(metrics[title]) <= _MOST_GROUPS:
            console.print(_breakdown(title, metrics[title]))
    if "per_class" in metrics:
        classes = Table("class", "IoU [95%]", "Dice [95%]", "pooled", "images", box=box.SIMPLE)
        for name, scores in metrics["per_class"].items():
            pooled = scores["pooled_iou"]
            classes.add_row(
                printable(name),
                *(interval(scores[kind]) for kind in ("iou", "dice")),
                "" if pooled is None else f"{pooled:.3f}",
                str(scores["images"]),
            )
        console.print(classes)
    console.print(
        "mean over images; pooled: IoU of all pixels together; trivial: IoU of predicting\n"
        f"{printable(metrics['baseline']['class'])} everywhere",
    )
    calibration = metrics["calibration"]
    if calibration and metrics["task"] == "binary" and metrics["threshold"] == 0.5:
        console.print(
            f"on validation images Dice is best at a threshold of {calibration['threshold']:.3f} "
            "(--threshold auto)",
            soft_wrap=True,
        )
    if images := metrics["empty"]["truth"]:
        console.print(
            f"images without foreground: {images}; where nothing is predicted, they score 1",
        )


def _breakdown(title: str, groups: dict[str, Any]) -> Table:
    table = Table(title.removesuffix("s"), "IoU [95%]", "images", box=box.SIMPLE)
    for name, group in groups.items():
        share = group.get("share")
        what = printable(name)
        if share:
            what += f", {share[0]:.1%} to {share[1]:.1%} of the image"
        table.add_row(what, interval(group["iou"]), str(group["images"]))
    return table


def interval(score: dict[str, Any] | None, sign: str = "", *, digits: int = 3) -> str:
    """A mean with its interval, for a table; with "+" before what is not negative, or without."""
    if score is None:
        return "in no image"
    low_high, form = score["ci95"], f"{sign}.{digits}f"
    ends = f" [{low_high[0]:{form}}, {low_high[1]:{form}}]" if low_high else ""
    return f"{score['mean']:{form}}{ends}"
